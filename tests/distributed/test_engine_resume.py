"""Ranks that are killed, told to stop, or become fewer: the run goes on where it was, under every engine."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava.train.checkpointing import complete_checkpoints
from llava.train.resume import RunLayout, check_layout
from tests.distributed.engines import ENVIRONMENT, run, start_ranks, wait_for
from tests.distributed.slurm_cluster import wait_until

SLOW = pytest.mark.slow
ENGINES = ["ddp", "fsdp2", "zero2", "zero3"]
SAVING = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}


def losses(rows: list[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in rows]


def names(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(folder / "run")]


@SLOW
@pytest.mark.timeout(2500)
@pytest.mark.parametrize(("engine", "is_async"), [*((e, False) for e in ENGINES), ("fsdp2", True), ("ddp", True)])
def test_a_killed_rank_ends_the_others_and_the_next_start_has_the_same_losses(engine, is_async, tmp_path):
    """Rank 0 gets SIGKILL at the end of step 5; both go on from checkpoint-3; every loss is equal to the bit.

    A thread may not have finished checkpoint-3 by then, and the run begins again.
    """
    settings = {**SAVING, "save_async": is_async}
    whole = run(engine, tmp_path / "whole", ranks=2, **settings)
    ends = wait_for(start_ranks(engine, tmp_path / "killed", ranks=2, **settings, kill_at=5), 600)
    assert ends[0][0] == -signal.SIGKILL
    assert ends[1][0] != 0
    left = names(tmp_path / "killed")
    assert left == ["checkpoint-3"] or (is_async and left == [])
    assert losses(run(engine, tmp_path / "killed", ranks=2, **settings)) == losses(whole)
    assert names(tmp_path / "killed") == names(tmp_path / "whole") == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]
    seen = [json.loads((tmp_path / f / f"seen{rank}.json").read_text()) for f in ("whole", "killed") for rank in (0, 1)]
    begin = 3 * len(left)
    assert [rank[begin:8] for rank in seen[:2]] == [rank[: 8 - begin] for rank in seen[2:]]


def stopped(folder: Path) -> list[dict]:
    return [json.loads((folder / f"end{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("ddp", signal.SIGTERM),
        pytest.param("ddp", signal.SIGUSR1, marks=SLOW),
        *(pytest.param(engine, signal.SIGTERM, marks=SLOW) for engine in ENGINES[1:]),
    ],
)
def test_a_signal_to_one_rank_stops_all_at_the_same_step_with_a_checkpoint(engine, number, tmp_path):
    ranks = start_ranks(engine, tmp_path, ranks=2, max_steps=10_000, save_strategy="no")
    wait_until(lambda: "step 2\n" in ranks[0].out.read_text(), "the second step", 300)
    ranks[1].process.send_signal(number)  # rank 0 learns of it from rank 1
    assert [code for code, _ in wait_for(ranks, 600)] == [124, 124]
    first, second = stopped(tmp_path)
    assert first["step"] == second["step"] > 2
    assert second["because"] == number.name and first["because"] == "signal on another rank"
    assert names(tmp_path) == [f"checkpoint-{first['step']}"]


@SLOW
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_time_limit_stops_all_ranks_at_the_same_step(engine, tmp_path):
    ranks = start_ranks(engine, tmp_path, ranks=2, max_steps=10_000, limit=5.0)
    assert [code for code, _ in wait_for(ranks, 600)] == [124, 124]
    first, second = stopped(tmp_path)
    assert first["step"] == second["step"]
    assert names(tmp_path) == [f"checkpoint-{first['step']}"]


@SLOW
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_one_rank_goes_on_with_what_two_wrote(engine, tmp_path):
    whole = run(engine, tmp_path / "whole", ranks=2, **SAVING)
    run(engine, tmp_path / "two", ranks=2, **SAVING | {"max_steps": 3})
    found = run(engine, tmp_path / "two", ranks=1, **SAVING)
    assert losses(found) == pytest.approx(losses(whole), abs=1e-5)


@SLOW
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_refuses_another_number_of_ranks_and_names_the_command_that_converts(engine, tmp_path):
    run(engine, tmp_path / "two", ranks=2, **SAVING | {"max_steps": 3})
    ((code, errors),) = wait_for(start_ranks(engine, tmp_path / "two", ranks=1, **SAVING), 600)
    assert code == 1
    assert "was written by 2 processes" in errors and "deepspeed.checkpoint.ds_to_universal" in errors
    assert (tmp_path / "two" / "run" / "checkpoint-3" / "global_step3").is_dir()  # as the command says


@SLOW
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_the_command_that_is_named_converts_and_one_rank_goes_on(engine, tmp_path):
    """As the error of the test above says; what one rank writes at step 6 is an ordinary checkpoint again."""
    whole = run(engine, tmp_path / "whole", ranks=2, **SAVING)
    run(engine, tmp_path / "two", ranks=2, **SAVING | {"max_steps": 3})
    before = RunLayout(engine=engine, world_size=2, batches_per_step=2, samples_per_batch=2)
    with pytest.raises(ValueError, match="convert it once") as error:
        check_layout(
            tmp_path / "two" / "run" / "checkpoint-3", {"layout": before.as_dict()}, replace(before, world_size=1)
        )
    (command,) = (line for line in str(error.value).splitlines() if line.startswith("  python -m deepspeed"))
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run(engine, tmp_path / "two", ranks=1, **SAVING | {"max_steps": 6})
    found = run(engine, tmp_path / "two", ranks=1, **SAVING)
    assert losses(found) == pytest.approx(losses(whole), abs=1e-5)


@SLOW
@pytest.mark.timeout(1500)
def test_a_rank_that_fails_ends_the_other_with_its_message_and_no_hang(tmp_path):
    ranks = start_ranks("ddp", tmp_path, ranks=2, max_steps=50, fail_at=3)
    (first, _), (last, error) = wait_for(ranks, 300)
    assert last == 1 and "this rank has an accident" in error
    assert first == 1
