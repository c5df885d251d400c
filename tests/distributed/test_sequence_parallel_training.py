"""Training runs whose sequences are shared by ranks, under every engine, against one process with the same batch."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.cli.world import main as vila_world
from llava.train.callbacks.progress import read_progress
from llava.train.checkpointing import complete_checkpoints
from tests.end_to_end.runs import run_killed_after

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BATCH = 4
SETTINGS = {"predictor_dim": 16, "num_heads": 2, "num_layers": 1, "gradient_every": 0}
FLAGS = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --stage sft --learning_rate 1e-2 --optim sgd "
    "--model_max_length 512 --logging_steps 1 --report_to none --vocab_size 300 --max_steps 4 --save_steps 2 "
    "--gradient_accumulation_steps 2 --enable_autoregressive True --autoregressive_config"
)
FSDP2 = json.dumps({"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer", "PredictorLayer"]})
ENGINES = {
    "ddp": [],
    "zero2": ["--deepspeed", str(ROOT / "scripts" / "zero2.json")],
    "zero3": ["--deepspeed", str(ROOT / "scripts" / "zero3.json")],
    "fsdp2": ["--fsdp", "full_shard auto_wrap", "--fsdp_config", FSDP2],
}


def run(folder: Path, world: Path, *flags: str, ranks: int, program: list[str]) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    words = [*FLAGS.split(), json.dumps(SETTINGS), "--data_root", str(world), "--output_dir", str(folder), *flags]
    return subprocess.run(
        [*(launch if ranks > 1 else [sys.executable]), *program, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def entry(name: str) -> list[str]:
    return [str(ROOT / "llava" / "train" / f"{name}.py")]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Walks of the embedded world, and the log of one process with the whole batch."""
    folder = tmp_path_factory.mktemp("sequence_parallel")
    world = folder / "world"
    size = ["--houses", "4", "--width", "32", "--height", "32", "--threads", "1"]
    assert not vila_world(["write", "--out", str(world), *size])
    done = run(folder / "one", world, "--per_device_train_batch_size", str(BATCH), ranks=1, program=entry("train"))
    assert done.returncode == 0, done.stderr[-4000:]
    return world, read_progress(folder / "one")


def assert_same(found, expected, *, rel=1e-3):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "main_loss", "autoregressive_loss", "autoregressive_skill"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], abs=2e-5), name
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=rel)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_ranks_with_one_batch_train_what_one_process_does(engine, one_process, tmp_path):
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip('deepspeed is not installed: pip install "llava[train]"')
    if engine.startswith("zero") and shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds its operators for CPU ranks with g++, which is not installed")
    world, expected = one_process
    flags = ["--per_device_train_batch_size", str(BATCH), *ENGINES[engine]]
    done = run(tmp_path / engine, world, *flags, ranks=2, program=entry("train_long"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(read_progress(tmp_path / engine), expected)
    assert len(complete_checkpoints(tmp_path / engine)) == 2


def test_two_groups_of_two_ranks_share_the_batch_and_each_sequence(one_process, tmp_path):
    world, expected = one_process
    flags = ["--per_device_train_batch_size", str(BATCH // 2), "--seq_parallel_size", "2"]
    done = run(tmp_path / "hybrid", world, *flags, ranks=4, program=entry("train_hybrid"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(read_progress(tmp_path / "hybrid"), expected)


def test_a_run_that_was_killed_goes_on_with_the_same_losses(one_process, tmp_path):
    world, expected = one_process
    flags = ["--per_device_train_batch_size", str(BATCH), "--seq_parallel_size", "2", "--seq_parallel_ring_size", "2"]
    program = tmp_path / "killed.py"
    program.write_text(run_killed_after(3))
    killed = run(tmp_path / "ring", world, *flags, ranks=2, program=[str(program)])
    assert killed.returncode != 0
    assert [path.name for path in complete_checkpoints(tmp_path / "ring")] == ["checkpoint-2"]
    done = run(tmp_path / "ring", world, *flags, ranks=2, program=entry("train_mem"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(read_progress(tmp_path / "ring"), expected)


def test_groups_that_do_not_fit_the_job_end_it_before_data_are_read(tmp_path):
    done = run(tmp_path / "wrong", tmp_path / "no data", "--seq_parallel_size", "3", ranks=2, program=entry("train"))
    assert done.returncode != 0
    assert "error: seq_parallel_size is 3 and the job has 2 processes" in done.stderr
