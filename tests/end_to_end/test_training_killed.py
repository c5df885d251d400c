"""A run that is killed at any moment trains what an undisturbed one does: same losses, same samples, same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llava
from llava.train.callbacks.progress import read_progress
from llava.train.callbacks.rank_log import FOLDER, file_of
from llava.train.callbacks.step_lines import read_lines
from llava.train.checkpointing import ASIDE, FINISHED, STAGING
from tests.end_to_end.runs import ENVIRONMENT, ROOT
from tests.unit.train.toy_world import write_toy_world

RUN = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --learning_rate 1e-3 --packing False "
    "--per_device_train_batch_size 2 --model_max_length 256 --logging_steps 1 --report_to none --vocab_size 400 "
    "--log_sample_ids True --save_steps 2 --save_total_limit 1"
)
VARIANTS = {
    "plain": "--stage sft",
    "async": "--stage sft --save_async True",
    "lora": "--lora_enable True --lora_r 4",
}


def samples(output: Path) -> list[tuple[int, list[str]]]:
    return [(row["step"], row["sample_ids"]) for row in read_lines(file_of(output / FOLDER, 0))]


def killed_often(folder: Path, *, kills: int, steps: int, variant: str) -> dict:
    world = write_toy_world(folder / "world", num_episodes=12)
    flags = [*RUN.split(), *VARIANTS[variant].split(), "--max_steps", str(steps), "--data_root", str(world)]
    program = Path(__file__).with_name("killed_often.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(kills), "7", *flags],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_same_run(folder: Path, steps: int) -> None:
    whole, killed = folder / "whole", folder / "killed"
    losses = [[(row["step"], row["loss"]) for row in read_progress(output)] for output in (whole, killed)]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, steps + 1))
    assert samples(whole) == samples(killed)
    epoch = [name for _, names in samples(whole)[:6] for name in names]  # 12 episodes in steps of two
    assert len(epoch) == len(set(epoch)) == 12
    assert json.loads((killed / FINISHED).read_text())["step"] == steps
    assert not (killed / STAGING).exists() and not (killed / ASIDE).exists()
    first, second = (llava.load(str(output), device="cpu").state_dict() for output in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    found = killed_often(tmp_path, kills=20, steps=40, variant="plain")
    assert found["kills"] >= 15, found
    assert len(set(found["starts"])) > 5, found  # from many different checkpoints
    check_same_run(tmp_path, 40)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("variant", ["async", "lora"])
def test_kills_with_adapters_or_while_a_thread_saves_change_nothing(tmp_path, variant):
    found = killed_often(tmp_path, kills=8, steps=16, variant=variant)
    assert found["kills"] >= 4, found
    check_same_run(tmp_path, 16)
