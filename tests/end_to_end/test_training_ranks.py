"""Several processes train what one process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.callbacks.progress import read_progress
from llava.train.callbacks.rank_log import file_of
from llava.train.callbacks.step_lines import read_lines
from llava.train.checkpointing import complete_checkpoints
from llava.train.train import train
from tests.unit.train.toy_world import write_toy_world

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --stage sft --learning_rate 1e-2 --optim sgd "
    "--model_max_length 256 --logging_steps 1 --report_to none --vocab_size 400 --max_steps 4 --save_steps 2"
)


def test_two_ranks_train_like_one_process_with_twice_the_batch(tmp_path):
    world = write_toy_world(tmp_path / "world")
    flags = [*FLAGS.split(), "--data_root", str(world)]
    train([*flags, "--output_dir", str(tmp_path / "one"), "--per_device_train_batch_size", "6"])
    two = [*flags, "--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "3"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, str(ROOT / "llava" / "train" / "train.py"), *two],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two_ranks = (read_progress(tmp_path / name) for name in ("one", "two"))
    assert [row["loss"] for row in two_ranks] == pytest.approx([row["loss"] for row in one], abs=1e-5)
    assert [row["main_loss"] for row in two_ranks] == pytest.approx([row["loss"] for row in one], abs=1e-5)
    assert [row["grad_norm"] for row in two_ranks] == pytest.approx([row["grad_norm"] for row in one], rel=1e-3)
    assert len(complete_checkpoints(tmp_path / "two")) == 2
    for part in ("language_model", "vision_tower", "mm_projector"):
        norms = [[row[f"grad_norm_{part}"] for row in rows] for rows in (two_ranks, one)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    whole = step_lines(tmp_path / "one", 0)
    shares = [step_lines(tmp_path / "two", rank) for rank in (0, 1)]
    for key, combine in {"tokens": sum, "samples": sum, "main_loss": lambda pair: sum(pair) / 2}.items():
        joined = [combine([first[key], second[key]]) for first, second in zip(*shares, strict=True)]
        assert joined == pytest.approx([row[key] for row in whole], abs=1e-5), key
    assert (tmp_path / "two" / "run_report.html").is_file()


def step_lines(folder: Path, rank: int) -> list[dict]:
    return read_lines(file_of(folder / "logs", rank))
