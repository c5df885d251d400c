"""vila-eval: choosing, skipping, resuming, joining chunks, and errors that say what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llava.cli.eval import main, model_name
from llava.eval.results import read_results
from llava.model.builder import build_model
from llava.navigation.prompt import StreamingFormat
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.episode_files import write_episodes
from llava.navigation.worlds.episodes import make_episodes
from llava.utils.tokenizer import train_tokenizer

FAST = ["--episodes", "3", "--option", "max_steps=12", "--option", "batch_size=2"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A streaming model of a few thousand random weights."""
    folder = tmp_path_factory.mktemp("toy")
    words = ["Your task is: Go to the red ball and stop.\n ↑ ↑↑ ↑↑↑ ← ←← ←←← → →→ →→→ STOP system user assistant"] * 4
    tokenizer = train_tokenizer(words, 400, folder / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **size}
    language = {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 512, **size}
    torch.manual_seed(0)
    model = build_model(
        {
            "llm_cfg": language,
            "vision_tower_cfg": {**vision, "num_hidden_layers": 2},
            "mm_projector_cfg": {"mm_projector_type": "linear"},
            "version": "llama_3",
            "navigation_prompt": StreamingFormat().to_config(),
            "camera_profile": CameraProfile(width=16, height=16).to_dict(),
        },
        tokenizer=tokenizer,
    )
    model.save_pretrained(folder / "Toy-Model")
    return folder / "Toy-Model"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def evaluate(checkpoint, *arguments, floors=False):
    extra = [] if floors else ["--no-floors"]
    return main(["-m", str(checkpoint), "-t", "navigation-embedded", *FAST, *extra, *arguments])


RESULT = Path("runs/eval/toy-model/navigation-embedded/results.json")


def test_a_task_is_measured_tabulated_and_then_skipped(checkpoint, capsys):
    assert evaluate(checkpoint, floors=True) == 0
    out = capsys.readouterr().out
    content = read_results(RESULT)
    assert content["complete"]
    assert content["summary"]["total_episodes"] == 3
    assert content["protocol"]["policy"]["prompt"]["format"] == "streaming"
    assert content["protocol"]["policy"]["fingerprint"]
    assert set(content["floors"]) == {"random", "forward", "any object", "oracle"}
    assert "3/3 episodes" in out
    assert "navigation-embedded/success_1m" in out
    assert max(map(len, out.splitlines())) <= 110  # paths of the test folder are long
    metrics = json.loads(Path("runs/eval/toy-model/metrics.json").read_text())
    assert metrics["navigation-embedded/success_1m"] == content["summary"]["mean_success_1m"]
    before = RESULT.stat().st_mtime_ns
    assert evaluate(checkpoint, floors=True) == 0
    assert "finished before, skipped" in capsys.readouterr().out
    assert RESULT.stat().st_mtime_ns == before


def test_an_interrupted_result_goes_on(checkpoint, capsys):
    assert evaluate(checkpoint) == 0
    content = json.loads(RESULT.read_text())
    lost = content["episodes"].pop("1")
    content["complete"] = False
    RESULT.write_text(json.dumps(content))
    assert evaluate(checkpoint) == 0
    assert "2/3 episodes were finished before" in capsys.readouterr().out
    again = read_results(RESULT)
    assert again["complete"]
    assert again["episodes"]["1"]["actions"] == lost["actions"]


def test_chunks_are_measured_apart_and_joined(checkpoint, capsys):
    for index in range(2):
        assert evaluate(checkpoint, "--num-chunks", "2", "--chunk-idx", str(index)) == 0
    assert not RESULT.exists()
    assert evaluate(checkpoint) == 0
    assert "3/3 episodes were finished before" in capsys.readouterr().out
    assert read_results(RESULT)["complete"]


@pytest.mark.slow
def test_several_processes_share_the_episodes(checkpoint):
    assert evaluate(checkpoint, "-n", "2") == 0
    joined = {key: row["actions"] for key, row in read_results(RESULT)["episodes"].items()}
    assert evaluate(checkpoint, "--output-dir", "alone") == 0
    alone = read_results(Path("alone/navigation-embedded"))["episodes"]
    assert joined == {key: row["actions"] for key, row in alone.items()}


def test_new_weights_do_not_inherit_old_results(checkpoint, tmp_path, capsys):
    own = tmp_path / "toy-model"
    shutil.copytree(checkpoint, own)
    assert evaluate(own) == 0
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "changed": 1}))
    assert evaluate(own) == 1
    assert "another protocol (different: policy)" in capsys.readouterr().err
    assert evaluate(own, "--overwrite") == 0
    assert (RESULT.parent / "results.1.json").exists()


def test_another_camera_is_refused_until_allowed(checkpoint, tmp_path, capsys):
    own = tmp_path / "lower"
    shutil.copytree(checkpoint, own)
    config = json.loads((own / "config.json").read_text())
    config["camera_profile"]["height_m"] = 0.5
    (own / "config.json").write_text(json.dumps(config))
    data = tmp_path / "data"
    episodes = make_episodes("one_room", np.arange(3), CameraProfile(width=16, height=16))
    write_episodes(data / "val_unseen.json.gz", episodes)
    assert evaluate(own, "--data-root", str(data)) == 1
    assert "another camera (height_m 0.5 -> 1.25)" in capsys.readouterr().err
    assert evaluate(own, "--data-root", str(data), "--allow-camera-mismatch") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-t", "navigation-embeded"], "unknown task 'navigation-embeded'; did you mean 'navigation-embedded'"),
        (["-t", "navigation-embedded", "--episodes", "0"], "--episodes is 0, expected at least 1"),
        (["-i", "naviagtion"], "unknown tag 'naviagtion'; did you mean 'navigation'"),
        (["-t", "navigation-embedded", "--num-chunks", "2", "--chunk-idx", "2"], "--chunk-idx is 2, expected 0 to 1"),
        (["-t", "navigation-embedded", "-o", "max_step=3"], "did you mean 'max_steps'"),
        (["-t", "navigation-embedded", "-o", "max_steps"], "is no NAME=VALUE"),
        (["-t", "navigation-embedded", "-o", "level=one_rom"], "unknown level 'one_rom'; did you mean 'one_room'"),
        (["-t", "navigation-embedded", "--data-root", "nowhere"], "no val_unseen.json.gz in nowhere"),
        (["-t", "navigation-embedded", "-c", "lama_3", "-o", "population=embeded"], "did you mean 'embedded'"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(checkpoint, arguments, words, capsys):
    assert main(["-m", str(checkpoint), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_missing_checkpoint_suggests_its_neighbour(checkpoint, capsys):
    assert main(["-m", str(checkpoint.parent / "Toy-Modle"), "-t", "navigation-embedded"]) == 1
    error = capsys.readouterr().err
    assert "does not exist; did you mean 'Toy-Model'?" in error
    assert main(["-m", str(checkpoint.parent), "-t", "navigation-embedded"]) == 1
    assert "is no checkpoint folder (no config.json)" in capsys.readouterr().err


def test_the_tasks_are_listed_without_a_checkpoint(capsys):
    assert main(["--list"]) == 0
    assert "navigation-embedded-rooms" in capsys.readouterr().out


def test_result_folders_are_named_after_the_checkpoint():
    assert model_name("checkpoints/NaVILA-8B") == "navila-8b"
    assert model_name("runs/train/demo/model") == "demo-model"
    assert model_name("runs/train/demo/checkpoint-300") == "demo-checkpoint-300"
    assert model_name("x", "given") == "given"
