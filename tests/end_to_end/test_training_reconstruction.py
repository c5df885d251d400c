"""Trainings with the next-frame loss as a user starts them: on walks of the embedded world, killed and continued."""

from __future__ import annotations

import json
import shutil
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

COMMON = (
    "--model_name_or_path embedded --stage sft --learning_rate 1e-3 --packing True --tokens_per_batch 200 "
    "--model_max_length 512 --logging_steps 1 --report_to none --vocab_size 300 --enable_autoregressive True"
)
SETTINGS = {"predictor_dim": 32, "num_layers": 1, "num_heads": 2, "gradient_every": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    size = ["--width", "64", "--height", "64", "--threads", "1"]
    assert vila_world(["write", "--out", str(folder), "--houses", "6", "--noise", "0.15", "--depth", *size]) in (
        None,
        0,
    )
    return folder


def flags(world: Path, output: Path, mixture: str, settings: dict, text: str) -> list[str]:
    chosen = ["--data_mixture", mixture, "--data_root", str(world), "--output_dir", str(output)]
    return [*COMMON.split(), *chosen, "--autoregressive_config", json.dumps({**SETTINGS, **settings}), *text.split()]


@pytest.mark.parametrize(
    ("mixture", "settings"),
    [
        ("embedded_streaming", {"site": "both", "condition_on_action": "answer"}),
        ("embedded_navigation", {"site": "answer", "condition_on_action": "history"}),
        ("embedded_navigation", {"use_fast_slow_frames": True, "num_fast": 3, "num_slow": 3, "slow_stride": 2}),
    ],
)
def test_both_formats_learn_to_predict(world, tmp_path, mixture, settings):
    train(flags(world, tmp_path, mixture, settings, "--max_steps 3"))
    rows = [row for row in read_progress(tmp_path) if "autoregressive_loss" in row]
    assert len(rows) == 3
    assert all(row["autoregressive_loss"] > 0 and row["main_loss"] > 0 for row in rows)
    sums = [row["main_loss"] + 0.1 * row["autoregressive_loss"] for row in rows]
    assert [row["loss"] for row in rows] == pytest.approx(sums, rel=1e-3)
    assert {"autoregressive_skill", "gradient_cosine_language_model", "gradient_ratio_vision_tower"} <= rows[0].keys()
    parts = json.loads((tmp_path / "trained_parts.json").read_text())
    assert "autoregressive" in [row["part"] for row in parts]


@pytest.mark.parametrize(
    ("mixture", "settings"),
    [("embedded_streaming", {"site": "both"}), ("embedded_navigation", {"site": "answer", "geometry_weight": 0.5})],
)
def test_depth_of_the_next_frame_is_a_second_target_with_its_own_figures(world, tmp_path, mixture, settings):
    """Of six walks one has no depth: its frames are counted, the others are learnt from."""
    data = tmp_path / "data"
    shutil.copytree(world, data)
    (data / "depth" / "train" / "2.npz").unlink()
    command = "--autoregressive_depth True --max_steps 6"
    train(flags(data, tmp_path / "out", mixture, {"loss_weight": 1.0, **settings}, command))
    rows = [row for row in read_progress(tmp_path / "out") if "autoregressive_loss" in row]
    known = [row for row in rows if "autoregressive_geometry_loss" in row]
    assert known and all(row["autoregressive_geometry_loss"] > 0 for row in known)
    assert sum(row["autoregressive_geometry_unknown"] for row in rows) > 0
    alone = [
        row["autoregressive_loss"] - row["autoregressive_mse"]
        for row in known
        if not row["autoregressive_geometry_unknown"]
    ]
    whole = [row["autoregressive_geometry_loss"] for row in known if not row["autoregressive_geometry_unknown"]]
    factor = settings.get("geometry_weight", 1.0)
    assert alone and alone == pytest.approx([factor * loss for loss in whole], abs=2e-3)
    stored = json.loads((tmp_path / "out" / "autoregressive" / "config.json").read_text())["config"]
    assert (stored["geometry_dim"], stored["geometry_origin"]) == (1, "depth")


def test_a_killed_run_goes_on_with_the_very_same_losses_and_teacher(world, tmp_path):
    settings = {"max_loss_ratio": 0.05, "weight_decay": "linear"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(flags(world, whole, "embedded_streaming", settings, "--max_steps 6 --save_steps 2"))
    command = flags(world, killed, "embedded_streaming", settings, "--max_steps 6 --save_steps 2")
    done = subprocess.run(
        [sys.executable, "-c", run_killed_after(5), *command], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    train(command)
    names = ("loss", "autoregressive_loss", "autoregressive_weight")
    a, b = ([[row[name] for name in names] for row in read_progress(folder)] for folder in (whole, killed))
    assert a == b
    first, second = (llava.load(str(folder), device="cpu") for folder in (whole, killed))
    assert first.autoregressive_reconstruction is None
    assert all(torch.equal(v, second.state_dict()[n]) for n, v in first.state_dict().items())


def test_the_script_trains_the_embedded_model(world, tmp_path):
    quick = ["--max_steps", "1", "--max_train_seconds", "-1", "--data_root", str(world), "--vocab_size", "300"]
    script = ["bash", str(ROOT / "scripts" / "train" / "sft_8frames_autoregressive.sh"), *quick]
    environment = {
        **ENVIRONMENT,
        "OUTPUT": str(tmp_path / "out"),
        "AUTOREGRESSIVE_CONFIG": '{"num_layers": 1}',
        "DEPTH": "True",
    }
    done = subprocess.run(script, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((tmp_path / "out" / "autoregressive" / "config.json").read_text())["config"]
    assert (config["num_layers"], config["geometry_dim"]) == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--autoregressive_config {}", "--autoregressive_config is read with --enable_autoregressive True; add it"),
        ("--turn_degrees 30", "--turn_degrees is read with --enable_autoregressive True; add it"),
        ("--enable_autoregressive True --autoregressive_config nowhere.yaml", "or a YAML or JSON file"),
        ('--enable_autoregressive True --autoregressive_config {"num_hits":3}', "no option 'num_hits'; did you mean"),
        ("--autoregressive_depth True", "--autoregressive_depth is read with --enable_autoregressive True; add it"),
        (
            '--enable_autoregressive True --autoregressive_depth True --autoregressive_config {"geometry_dim":4}',
            "there is one second target",
        ),
        (
            '--enable_autoregressive True --autoregressive_config {"geometry_dim":4,"geometry_origin":"dinov3"}',
            "has a features_path",
        ),
        ('--enable_autoregressive True --autoregressive_config {"embedding_dim":1152}', "the vision tower gives 128"),
    ],
)
def test_wrong_settings_end_with_one_line(world, tmp_path, capsys, text, message):
    chosen = ["--data_mixture", "embedded_streaming", "--data_root", str(world), "--output_dir", str(tmp_path)]
    base = COMMON.replace("--enable_autoregressive True", "").split()
    assert main([*base, *chosen, "--max_steps", "1", *text.split()]) == 2
    assert message in capsys.readouterr().err
