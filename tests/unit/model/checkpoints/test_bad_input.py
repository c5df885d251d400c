"""What is wrong with a folder is said with file, key and fix, whichever layout it has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llava
from llava.cli.inspect import main as inspect
from llava.model.checkpoints.export import export_llava_hf
from llava.model.make_delta import make_delta
from tests.unit.model.checkpoints.folders import edit_json, model_of, save_state, write_original

LAYOUTS = ["three_folder", "original", "llava_hf", "delta"]


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of()


class Checkpoint:
    """A folder, the folder of a part's weights, and one of its keys that every layout has under some name."""

    def __init__(self, layout: str, model: Any, root: Path) -> None:
        self.folder = {
            "three_folder": self.three, "original": write_original, "llava_hf": self.hf, "delta": self.delta
        }[layout](model, root)  # fmt: skip
        self.weights = self.folder / "llm" if layout == "three_folder" else self.folder
        self.key = "language_model.model.norm.weight" if layout == "llava_hf" else "model.norm.weight"

    def three(self, model: Any, root: Path) -> Path:
        model.save_pretrained(root / "three")
        return root / "three"

    def hf(self, model: Any, root: Path) -> Path:
        return export_llava_hf(model, root / "hf")

    def delta(self, model: Any, root: Path) -> Path:
        save_state(dict(model_of(seed=1).llm.state_dict()), root / "base")
        (root / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
        make_delta(root / "base", write_original(model, root, tower=False), root / "delta")
        return root / "delta"

    def rewrite(self, kind: str = "safetensors", **changes: Any) -> None:
        """The same weights in another kind of file; a change of None takes the key out."""
        state = {**load_file(self.weights / "model.safetensors"), **changes}
        (self.weights / "model.safetensors").unlink()
        save_state({name: value for name, value in state.items() if value is not None}, self.weights, kind)

    def refused(self, message: str, error: Any = ValueError) -> None:
        """By the loader; the description of the folder says so too, in one line or in its list."""
        with pytest.raises(error, match=message):
            llava.load(self.folder)
        assert inspect([str(self.folder)]) == 1


@pytest.fixture(params=LAYOUTS)
def checkpoint(request: Any, model: Any, tmp_path: Path) -> Checkpoint:
    return Checkpoint(request.param, model, tmp_path)


def test_what_is_right_is_read(checkpoint: Checkpoint):
    checkpoint.rewrite("bin shards")
    llava.load(checkpoint.folder)
    assert inspect([str(checkpoint.folder)]) == 0


def test_a_cut_file(checkpoint: Checkpoint):
    file = checkpoint.weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    checkpoint.refused(rf"{file} is no complete safetensors file \(\d+ bytes, expected \d+\).*copy it again")
    file.write_bytes(file.read_bytes()[:50])
    checkpoint.refused(rf"{file} is no complete safetensors file \(its header is cut\).*copy it again")
    file.write_bytes(b"")
    checkpoint.refused(rf"{file} is no complete safetensors file.*copy it again")


def test_a_cut_pickle(checkpoint: Checkpoint):
    checkpoint.rewrite("bin")
    file = checkpoint.weights / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-3000])
    checkpoint.refused(rf"{file} is no complete torch file.*copy it again")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_missing_shard(checkpoint: Checkpoint, kind: str):
    checkpoint.rewrite(f"{kind} shards")
    shard = next(checkpoint.weights.glob(f"*00002-of-00002.{kind}"))
    shard.unlink()
    checkpoint.refused(
        rf"{checkpoint.weights} lacks the shard {shard.name} with \d+ tensors, such as .*\(1 of 2.*copy it",
        FileNotFoundError,
    )


def test_a_shard_without_a_tensor_that_the_index_promises(checkpoint: Checkpoint):
    checkpoint.rewrite("safetensors shards")
    index = next(checkpoint.weights.glob("*.index.json"))
    stored = json.loads(index.read_text())
    edit_json(index, weight_map={**stored["weight_map"], "model.more": "model-00001-of-00002.safetensors"})
    checkpoint.refused(r"model-00001-of-00002.safetensors lacks model.more, which .*index.json promises there.*copy it")


def test_a_wrong_shape(checkpoint: Checkpoint):
    checkpoint.rewrite(**{checkpoint.key: torch.zeros(5)})
    fix = r"config.json|base that it was trained on"
    checkpoint.refused(rf"{checkpoint.weights}.*model.norm.weight.* has shape \[5\], .*\[32\].*({fix})")


def test_a_missing_weight(checkpoint: Checkpoint):
    checkpoint.rewrite(**{checkpoint.key: None})
    checkpoint.refused(rf"{checkpoint.weights} lacks .*model.norm.weight.*(config.json|base that it was trained on)")


def test_a_weight_of_another_model(checkpoint: Checkpoint):
    checkpoint.rewrite(**{"model.vision_resampler.queries": torch.zeros(2)})
    checkpoint.refused(rf"(?=.*{checkpoint.weights}).*model.vision_resampler.queries.*(config.json|trained on)")


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (str(Path("/tmp") / "should-not-exist-llava"),))


def put_code(file: Path) -> None:
    torch.save({"model.norm.weight": Evil()}, file)


def test_code_in_a_pickle_is_not_run(checkpoint: Checkpoint):
    (checkpoint.weights / "model.safetensors").unlink()
    put_code(checkpoint.weights / "pytorch_model.bin")
    checkpoint.refused(rf"{checkpoint.weights}/pytorch_model.bin holds more than tensors .*was not run.*safetensors")
    assert not Path("/tmp/should-not-exist-llava").exists()


def test_a_config_that_is_cut(checkpoint: Checkpoint):
    (checkpoint.folder / "config.json").write_text('{"model_type": "llava')
    checkpoint.refused(rf"{checkpoint.folder}/config.json is not valid JSON.*copy it again")


def test_a_model_type_that_nobody_knows(checkpoint: Checkpoint):
    place = checkpoint.weights / "config.json"
    edit_json(place, model_type="lama")
    checkpoint.refused(r"model_type.*'lama'.*(did you mean|expected one of)")


def test_two_layouts_in_one_folder(checkpoint: Checkpoint, tmp_path: Path):
    if checkpoint.weights != checkpoint.folder:
        write_original(model_of(), tmp_path)
        (tmp_path / "llava" / "model.safetensors").rename(checkpoint.folder / "model.safetensors")
        edit_json(checkpoint.folder / "config.json", mm_vision_tower="./tower", llm_cfg=None)
        config = json.loads((checkpoint.folder / "config.json").read_text())
        del config["llm_cfg"]
        (checkpoint.folder / "config.json").write_text(json.dumps(config))
    else:
        (checkpoint.folder / "llm").mkdir()
    checkpoint.refused(rf"{checkpoint.folder} holds 2 checkpoints \(three_folder: .*expected one; move one")


def test_a_path_of_another_machine(model: Any, tmp_path: Path):
    three = Checkpoint("three_folder", model, tmp_path)
    (three.folder / "vision_tower").rename(tmp_path / "away")
    edit_json(three.folder / "config.json", vision_tower_cfg="/data/models/siglip")
    three.refused(rf"{three.folder} has no vision_tower: expected .*/vision_tower/config.json.*copy", FileNotFoundError)
    original = Checkpoint("original", model, tmp_path)
    edit_json(original.folder / "config.json", mm_vision_tower="/data/models/clip")
    original.refused(r"mm_vision_tower '/data/models/clip'.*no such folder here; give its folder.*vision_tower=")


def write_projector(folder: Path, write: Callable[[Path], None]) -> Path:
    folder.mkdir()
    write(folder / "mm_projector.bin")
    return folder


def test_projectors_that_are_cut_or_hold_code(model: Any, tmp_path: Path):
    base = write_original(model, tmp_path)
    evil = write_projector(tmp_path / "evil", put_code)
    with pytest.raises(ValueError, match=rf"{evil}/mm_projector.bin holds more than tensors .*was not run"):
        llava.load(evil, model_base=str(base))
    cut = write_projector(tmp_path / "cut", lambda file: file.write_bytes(b"PK\x03\x04 and no more") and None)
    with pytest.raises(ValueError, match=rf"{cut}/mm_projector.bin is no complete torch file.*copy it again"):
        llava.load(cut, model_base=str(base))
    assert not Path("/tmp/should-not-exist-llava").exists()


def test_adapters_that_are_cut_or_hold_code(model: Any, tmp_path: Path):
    pytest.importorskip("peft")
    from tests.unit.model.checkpoints.test_on_a_base import write_adapter

    folder, _ = write_adapter(tmp_path, projector=model)
    base = str(write_original(model, tmp_path))
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=rf"{file} is no complete safetensors file.*copy it again"):
        llava.load(folder, model_base=base)
    file.write_bytes(whole)
    put_code(folder / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"non_lora_trainables.bin holds more than tensors .*was not run"):
        llava.load(folder, model_base=base)
    assert not Path("/tmp/should-not-exist-llava").exists()


def test_a_tokenizer_file_that_is_damaged(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    (folder / "tokenizer.model").write_text("no pieces")
    with pytest.raises(ValueError, match=rf"{folder}: its tokenizer cannot be read .*copy tokenizer.model again"):
        llava.load(folder)
