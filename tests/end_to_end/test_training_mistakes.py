"""What a user or a machine can do wrong: one line that says what to do, or an end instead of a wait."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train import disk_space
from llava.train.train import main
from tests.end_to_end.runs import ENVIRONMENT
from tests.unit.train.toy_world import write_toy_world

RUN = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --stage sft --model_max_length 256 "
    "--report_to none --vocab_size 400 --per_device_train_batch_size 4 --logging_steps 1"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_toy_world(tmp_path_factory.mktemp("world"))


def flags(world: Path, output: Path, text: str) -> list[str]:
    return [*RUN.split(), "--data_root", str(world), "--output_dir", str(output), *text.split()]


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(flags(world, tmp_path / "file" / "model", "--max_steps 1")) == 2
    assert f"nothing can be written to --output_dir {tmp_path / 'file' / 'model'}" in capsys.readouterr().err


def test_a_mixture_without_samples_is_named(world, tmp_path, capsys):
    empty = shutil.copytree(world, tmp_path / "world")
    (empty / "annotations.json").write_text("[]")
    assert main(flags(empty, tmp_path / "model", "--max_steps 1")) == 2
    error = capsys.readouterr().err
    assert "error: " in error and ("empty" in error or "no samples" in error), error


def test_a_full_disk_is_told_before_the_checkpoint_and_the_last_one_stays(world, tmp_path, capsys, monkeypatch):
    """Room before the run and for the first checkpoint, none for the second."""
    usage, asked = shutil.disk_usage(tmp_path), []

    def disk_usage(folder):
        asked.append(folder)
        return usage if len(asked) <= 2 else usage._replace(free=1000)

    monkeypatch.setattr(disk_space.shutil, "disk_usage", disk_usage)
    output = tmp_path / "model"
    assert main(flags(world, output, "--max_steps 2 --save_steps 1 --save_total_limit 1")) == 2
    error = capsys.readouterr().err
    assert "has 1 KB free, the next checkpoint needs" in error and "the last checkpoint is whole" in error
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.undo()
    assert main(flags(world, output, "--max_steps 2 --save_steps 1 --save_total_limit 1")) == 0
    assert json.loads((output / "training_complete.json").read_text())["step"] == 2


def test_a_disk_without_room_for_the_model_is_told_before_the_training(world, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert main(flags(world, tmp_path / "model", "--max_steps 2 --save_strategy no")) == 2
    assert "has 1 KB free, the trained model needs" in capsys.readouterr().err
    assert not (tmp_path / "model" / "progress.jsonl").exists()


def test_a_time_limit_ends_with_124_and_the_same_command_goes_on(world, tmp_path, capsys):
    """A limit of 0.06 s is over at the first step, which is saved."""
    run = flags(world, tmp_path, "--max_steps 3 --save_strategy no --total_time_limit 0.001 --pre_terminate_time 0")
    assert main(run) == 124
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "training_complete.json").exists()
    assert [main(run), main(run)] == [124, 0]
    assert [json.loads(line)["step"] for line in (tmp_path / "progress.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert main(run) == 0
    assert main([*run, "--resume_from_checkpoint", str(tmp_path / "checkpoint-9"), "--seed", "1"]) == 2
    assert "finished run with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_a_taken_port_is_named_with_the_variable_that_changes_it(world, tmp_path):
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        ranks["MASTER_PORT"] = str(server.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "llava.train.train", *flags(world, tmp_path / "model", "--max_steps 1")],
            env=ENVIRONMENT | ranks, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert "the ranks cannot meet" in done.stderr and "set MASTER_PORT to a free one" in done.stderr
