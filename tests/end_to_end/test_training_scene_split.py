"""Trainings with the split as a user starts them: walks of the embedded world with true masks, flags and scripts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llava
from llava.cli.world import main as vila_world
from llava.train.callbacks.progress import read_progress
from llava.train.train import main, train
from tests.end_to_end.runs import ENVIRONMENT, ROOT, run_killed_after

pytestmark = pytest.mark.slow

COMMON = (
    "--model_name_or_path embedded --stage sft --learning_rate 1e-3 --packing True --tokens_per_batch 200 "
    "--model_max_length 512 --logging_steps 1 --report_to none --vocab_size 300"
)
OWN = '{"shared_projectors": false, "shared_encoder": false}'


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    size = ["--width", "64", "--height", "64", "--threads", "1", "--object-masks"]
    assert vila_world(["write", "--out", str(folder), "--houses", "4", *size]) in (None, 0)
    return folder


def flags(world: Path, output: Path, mixture: str, text: str, config: str = OWN) -> list[str]:
    chosen = ["--data_mixture", mixture, "--data_root", str(world), "--output_dir", str(output)]
    return [*COMMON.split(), *chosen, "--scene_split", "True", "--scene_split_config", config, *text.split()]


@pytest.mark.parametrize(
    ("mixture", "config"),
    [
        ("embedded_navigation+embedded_grounding", {"shared_projectors": False, "shared_encoder": False}),
        ("embedded_streaming", {"positions": "own_range", "dilation": 1}),
        ("embedded_navigation", {"background_per": "clip", "prefusion_layers": 1}),
    ],
)
def test_every_format_trains_with_true_masks(world, tmp_path, mixture, config):
    """A mask that is missing, or of another size, would stop the run."""
    more = "--max_steps 2 --broken_samples raise"
    more += " --grounding_questions 1" if mixture == "embedded_streaming" else ""
    train(flags(world, tmp_path, mixture, more, json.dumps({**config, "missing_masks": "error"})))
    assert all(row["loss"] > 0 for row in read_progress(tmp_path))
    model = llava.load(str(tmp_path), device="cpu")
    assert model.scene_split is not None
    assert {name: model.config.scene_split[name] for name in config} == config


def test_a_killed_run_goes_on_with_the_very_same_losses(world, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(flags(world, whole, "embedded_navigation", "--max_steps 4 --save_steps 2"))
    command = flags(world, killed, "embedded_navigation", "--max_steps 4 --save_steps 2")
    done = subprocess.run(
        [sys.executable, "-c", run_killed_after(3), *command], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    train(command)
    a, b = ([row["loss"] for row in read_progress(folder)] for folder in (whole, killed))
    assert a == b
    first, second = (llava.load(str(folder), device="cpu") for folder in (whole, killed))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def run_script(name: str, world: Path, output: Path, **environment: str) -> None:
    quick = ["--max_steps", "1", "--max_train_seconds", "-1", "--data_root", str(world), "--vocab_size", "300"]
    quick += ["--report_to", "none", "--tokens_per_batch", "300"]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "train" / name), *quick],
        env={**ENVIRONMENT, "OUTPUT": str(output), **environment},
        capture_output=True, text=True, cwd=output.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_scripts_go_through_all_their_stages(world, tmp_path, method):
    two = tmp_path / "two"
    run_script("scene_split_two_stage.sh", world, two, METHOD=method)
    stages = [
        {row["part"]: row["trainable"] > 0 for row in json.loads((two / stage / "trained_parts.json").read_text())}
        for stage in ("background", "objects", "both")
    ]
    assert [(each["background_projector"], each["object_projector"]) for each in stages] == [
        (True, False), (False, True), (True, True),
    ]  # fmt: skip
    plain, steps = tmp_path / "plain", tmp_path / "steps"
    unsplit = f"{COMMON} --data_mixture embedded_navigation --data_root {world} --output_dir {plain} --max_steps 1"
    train(unsplit.split())
    run_script("scene_split_progressive.sh", world, steps, METHOD=method, MODEL=str(plain), SPLIT_CONFIG="{}")
    last = "4_all" if method == "full" else "4_lora"
    assert sorted(path.name for path in steps.iterdir()) == ["1_untuned", "2_projector", "3_last_layers", last]
    for folder in (two / "both", steps / last):
        assert llava.load(str(folder), device="cpu").scene_split is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--object_masks nowhere", "object_masks is nowhere, which does not exist"),
        ("--enable_autoregressive True", "train them one after the other"),
    ],
)
def test_wrong_settings_end_with_one_line(world, tmp_path, capsys, text, message):
    assert main(flags(world, tmp_path, "embedded_navigation", f"--max_steps 1 {text}")) == 2
    assert message in capsys.readouterr().err
