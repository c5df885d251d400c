"""Runs with adapters as a user starts them: killed and continued, moved, on two ranks, by the script."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llava
from llava.train.callbacks.progress import read_progress
from llava.train.checkpointing import complete_checkpoints
from llava.train.train import main, train
from tests.end_to_end.runs import ENVIRONMENT, ROOT, run_killed_after
from tests.unit.train.toy_world import write_toy_world

pytest.importorskip("peft")

RUN = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --learning_rate 5e-3 --lora_enable True "
    "--lora_r 4 --model_max_length 256 --logging_steps 1 --report_to none --vocab_size 400 --max_steps 4 --save_steps 2"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_toy_world(tmp_path_factory.mktemp("world"))


def flags(world: Path, output: Path, *more: str) -> list[str]:
    size = () if "--per_device_train_batch_size" in more else ("--per_device_train_batch_size", "4")
    return [*RUN.split(), "--data_root", str(world), "--output_dir", str(output), *size, *more]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("trained") / "lora"
    train(flags(world, output))
    return output


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_progress(output)]


def test_a_killed_run_with_adapters_continues_with_the_very_same_losses(world, trained, tmp_path):
    command = flags(world, tmp_path / "lora")
    killed = subprocess.run(
        [sys.executable, "-c", run_killed_after(3), *command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert [path.name for path in complete_checkpoints(tmp_path / "lora")] == ["checkpoint-2"]
    assert train(command).step == 4
    assert losses(tmp_path / "lora") == losses(trained)
    first, second = (llava.load(path, device="cpu").state_dict() for path in (trained, tmp_path / "lora"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_folder_of_a_run_holds_its_base_and_may_be_moved(trained, tmp_path):
    rows = {row["part"]: row["method"] for row in json.loads((trained / "trained_parts.json").read_text())}
    assert rows == {
        "language_model": "frozen",
        "language_model adapters": "LoRA r=4",
        "vision_tower": "frozen",
        "mm_projector": "whole",
    }
    before = llava.load(trained / "checkpoint-2", device="cpu").state_dict()
    place = trained.rename(trained.with_name("moved"))
    try:
        after = llava.load(place / "checkpoint-2", device="cpu").state_dict()
        final = llava.load(place, device="cpu")
    finally:
        place.rename(trained)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert final.config.navigation_prompt["format"] == "streaming"
    assert not torch.equal(final.state_dict()["llm.model.layers.0.mlp.up_proj.weight"],
                           before["llm.model.layers.0.mlp.up_proj.weight"])  # fmt: skip


def test_checkpoints_with_and_without_adapters_are_not_mixed(world, trained, tmp_path, capsys):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "checkpoint-2").symlink_to(trained / "checkpoint-2")
    command = [word if word != "True" else "False" for word in flags(world, tmp_path / "lora")]
    command.remove("--lora_r")
    command.remove("4")
    assert main([*command, "--stage", "sft"]) == 2
    assert "checkpoint-2 holds adapters, found no --lora_enable True" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_train_adapters_like_one_process_with_twice_the_batch(world, tmp_path):
    more = (
        "--lora_vt",
        "True",
        "--lora_llm",
        "True",
        "--lora_dropout",
        "0",
        "--optim",
        "sgd",
        "--learning_rate",
        "0.1",
    )
    train(flags(world, tmp_path / "one", *more, "--per_device_train_batch_size", "6"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(ROOT / "llava" / "train" / "train.py"),
         *flags(world, tmp_path / "two", *more, "--per_device_train_batch_size", "3")],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    one, two = (llava.load(tmp_path / name, device="cpu").state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_lora_sh_trains_adapters_of_the_embedded_model_without_arguments(world, tmp_path):
    environment = {**ENVIRONMENT, "DATA_ROOT": str(world), "OUTPUT": str(tmp_path / "model")}
    environment.pop("GPUS_PER_NODE", None)
    quick = ["--max_steps", "2", "--tokens_per_batch", "600", "--vocab_size", "500", "--report_to", "none"]
    script = ["bash", str(ROOT / "scripts" / "train" / "lora.sh"), *quick]
    done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert llava.load(tmp_path / "model", device="cpu").config.navigation_prompt["format"] == "navila"
