"""Training runs as a user starts them, on a toy world: from flags to a checkpoint that loads, killed and continued."""

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
from llava.train.checkpointing import FINISHED, complete_checkpoints
from llava.train.train import main, train
from tests.end_to_end.runs import ENVIRONMENT, ROOT, run_killed_after
from tests.unit.train.toy_world import write_toy_world

STREAMING = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --stage sft --learning_rate 1e-3 --packing True "
    "--tokens_per_batch 200 --model_max_length 256 --logging_steps 1 --report_to none --vocab_size 400"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_toy_world(tmp_path_factory.mktemp("world"))


def flags(world: Path, output: Path, text: str) -> list[str]:
    return [*STREAMING.split(), "--data_root", str(world), "--output_dir", str(output), *text.split()]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """A run of 10 steps that nothing disturbed."""
    output = tmp_path_factory.mktemp("trained")
    train(flags(world, output, "--max_steps 10 --save_steps 4"))
    return output


def losses(output: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_progress(output)}


def test_a_run_leaves_a_checkpoint_that_loads_and_says_how_it_was_trained(trained):
    model = llava.load(str(trained), device="cpu")
    config = model.config
    assert config.version == "llama_3"
    assert config.navigation_prompt["format"] == "streaming"
    assert 2_000_000 < model.num_parameters() < 5_000_000
    assert {row["part"] for row in json.loads((trained / "trained_parts.json").read_text())} == {
        "language_model",
        "vision_tower",
        "mm_projector",
    }
    assert (trained / "loss_curve.png").stat().st_size > 1000
    found = losses(trained)
    assert list(found) == list(range(1, 11))
    assert found[10] < found[1]


def test_a_run_killed_by_sigkill_continues_with_the_very_same_losses(world, trained, tmp_path):
    command = flags(world, tmp_path, "--max_steps 10 --save_steps 4")
    killed = subprocess.run(
        [sys.executable, "-c", run_killed_after(7), *command], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4"]
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "config.json").write_text("{")
    result = train(command)
    assert result.step == 10
    assert losses(tmp_path) == losses(trained)
    first, second = (llava.load(str(path), device="cpu").state_dict() for path in (trained, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_is_recognised_and_not_repeated(world, trained):
    before = (trained / FINISHED).read_text()
    result = train(flags(world, trained, "--max_steps 10 --save_steps 4 --logging_steps 2"))
    assert result.was_finished
    assert result.step == 10
    assert (trained / FINISHED).read_text() == before
    with pytest.raises(ValueError, match="max_steps 10 -> 20"):
        train(flags(world, trained, "--max_steps 20"))


def test_settings_of_a_checkpoint_survive_unless_a_flag_changes_them(world, trained, tmp_path):
    text = "--stage align --data_mixture embedded_grounding --max_steps 1 --image_aspect_ratio pad"
    command = flags(world, tmp_path, text)
    command[command.index("embedded")] = str(trained)
    train(command)
    config = llava.load(str(tmp_path), device="cpu").config
    assert config.version == "llama_3"
    assert config.navigation_prompt["format"] == "streaming"
    assert config.image_aspect_ratio == "pad"
    before, after = (llava.load(str(path), device="cpu") for path in (trained, tmp_path))
    assert torch.equal(before.llm.state_dict()["lm_head.weight"], after.llm.state_dict()["lm_head.weight"])


def test_a_time_budget_ends_the_run(world, tmp_path):
    result = train(flags(world, tmp_path, "--max_train_seconds 3 --warmup_ratio 0.1"))
    facts = json.loads((tmp_path / FINISHED).read_text())
    assert result.stopped_because is None
    assert 2.0 < facts["elapsed"] < 6.0
    assert read_progress(tmp_path)[-1]["eta"] < 1.5


def test_mistakes_are_one_line_with_the_next_step(world, tmp_path, capsys):
    assert main(flags(tmp_path / "nowhere", tmp_path / "a", "--max_steps 1")) == 2
    assert "make demo" in capsys.readouterr().err
    assert main(flags(world, tmp_path / "b", "--data_mixture embedded_streamin")) == 2
    assert "did you mean 'embedded_streaming'" in capsys.readouterr().err
    assert main(flags(world, tmp_path / "c", "--version llama_4")) == 2
    assert "did you mean 'llama_3'" in capsys.readouterr().err
    assert main(flags(world, tmp_path / "d", "--stage sft --model_name_or_path /no/model")) == 2
    assert "no config.json was found" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", ["sft_8frames.sh", "sft_episodes.sh", "align.sh", "lora.sh", "pretrain.sh", "sft.sh"]
)
def test_a_script_is_flags_only(script):
    path = ROOT / "scripts" / "train" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert sum('"$@"' in line for line in lines) == 2


def test_sft_8frames_trains_the_embedded_model_without_arguments(world, tmp_path):
    environment = {**ENVIRONMENT, "DATA_ROOT": str(world), "OUTPUT": str(tmp_path / "model")}
    environment.pop("GPUS_PER_NODE", None)
    quick = ["--max_steps", "3", "--tokens_per_batch", "600", "--vocab_size", "500", "--report_to", "none"]
    script = ["bash", str(ROOT / "scripts" / "train" / "sft_8frames.sh"), *quick]
    done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert llava.load(str(tmp_path / "model"), device="cpu").config.navigation_prompt["format"] == "navila"
