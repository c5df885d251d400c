"""Several processes train what one process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.callbacks.progress import read_progress
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
