"""Every reader -> our three folders -> llava-hf -> ours: not one bit changes, and a tuned tower stays tuned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import llava
from llava.model.apply_delta import apply_delta
from llava.model.checkpoints import LAYOUTS, find_layout
from llava.model.checkpoints.export import export_llava_hf
from llava.model.consolidate import consolidate
from llava.model.make_delta import make_delta
from tests.unit.model.checkpoints.folders import (
    IMAGE,
    logits_of,
    model_of,
    original_config,
    original_state,
    same_weights,
    save_state,
    write_original,
)
from tests.unit.model.checkpoints.test_export_anyres import tiled

TUNED = "vision_tower.vision_tower.encoder.layers.0.mlp.fc1.weight"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint on disk, what loads it, and the model that must come out (None: what is loaded counts)."""

    path: Path
    layout: str
    model: Any = None
    base: Path | None = None

    def load(self) -> Any:
        return llava.load(self.path, **({} if self.base is None else {"model_base": str(self.base)}))


def tuned(model: Any) -> Any:
    """With a tower that is no longer the published one."""
    with torch.no_grad():
        model.get_parameter(TUNED).fill_(0.125)
    return model


def three_folders(root: Path) -> Written:
    model = tuned(model_of("qwen2"))
    model.save_pretrained(root / "three")
    return Written(path=root / "three", layout="three_folder", model=model)


def original(root: Path) -> Written:
    """The tower in the folder is tuned, the one beside it is not."""
    model = tuned(model_of())
    folder = write_original(model, root, kind="bin shards")
    model_of().vision_tower.vision_tower.save_pretrained(root / "tower")
    return Written(path=folder, layout="original", model=model)


def consolidated(root: Path) -> Written:
    first = original(root)
    return Written(path=consolidate(first.path, root / "clean", "40KB"), layout="original", model=first.model)


def llava_hf(root: Path) -> Written:
    model = tuned(model_of("mistral", "siglip_vision_model"))
    return Written(path=export_llava_hf(model, root / "hf"), layout="llava_hf", model=model)


def llava_next(root: Path) -> Written:
    model = tuned(tiled("llama", "clip_vision_model", image_aspect_ratio="anyres"))
    return Written(path=export_llava_hf(model, root / "hf"), layout="llava_hf", model=model)


def llava_onevision(root: Path) -> Written:
    model = tuned(tiled("qwen2", "siglip_vision_model", image_aspect_ratio="anyres_max_2"))
    return Written(path=export_llava_hf(model, root / "hf"), layout="llava_hf", model=model)


def projector_only(root: Path) -> Written:
    base, model = tuned(model_of()), tuned(model_of())
    model.mm_projector.load_state_dict(model_of(seed=5).mm_projector.state_dict())
    folder = root / "stage1"
    folder.mkdir()
    layers = {f"model.mm_projector.{name.removeprefix('layers.')}": value.clone()
              for name, value in model.mm_projector.state_dict().items()}  # fmt: skip
    torch.save(layers, folder / "mm_projector.bin")
    return Written(path=folder, layout="projector_only", model=model, base=write_original(base, root))


def lora(root: Path) -> Written:
    pytest.importorskip("peft")
    from tests.unit.model.checkpoints.test_on_a_base import write_adapter

    folder, _ = write_adapter(root, projector=model_of())
    return Written(path=folder, layout="lora", base=write_original(tuned(model_of()), root))


def delta(root: Path) -> Written:
    model, base = tuned(model_of(seed=2)), write_delta_base(root)
    make_delta(base, write_original(model, root), root / "delta")
    (root / "base").rename(root / "away")
    return Written(path=root / "delta", layout="delta", model=model, base=root / "away")


def write_delta_base(root: Path) -> Path:
    save_state(dict(model_of(seed=1).llm.state_dict()), root / "base", "bin")
    (root / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return root / "base"


def applied_delta(root: Path) -> Written:
    first = delta(root)
    assert first.base is not None
    return Written(path=apply_delta(first.base, root / "out", first.path), layout="original", model=first.model)


READERS: list[Callable[[Path], Written]] = [
    three_folders, original, consolidated, llava_hf, llava_next, llava_onevision, projector_only, lora, delta,
    applied_delta,
]  # fmt: skip


@pytest.mark.parametrize("write", READERS)
def test_not_one_bit_changes_on_the_way(tmp_path: Path, write: Callable[[Path], Written]):
    written = write(tmp_path)
    layout = find_layout(written.path)
    assert layout is not None and layout is LAYOUTS[written.layout]
    first = written.load()
    expected = first if written.model is None else written.model
    assert same_weights(first, expected)
    assert first.get_parameter(TUNED).eq(0.125).all()
    first.save_pretrained(tmp_path / "ours", max_shard_size="40KB")
    second = llava.load(tmp_path / "ours")
    assert same_weights(second, expected)
    second.config.image_token_id = IMAGE  # a tokenizer would say it
    export_llava_hf(second, tmp_path / "theirs", max_shard_size="40KB")
    third = llava.load(tmp_path / "theirs")
    assert same_weights(third, expected)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs")
    table = expected.llm.get_input_embeddings().weight
    assert torch.equal(again.get_input_embeddings().weight, table)
    assert first.visual_spec == second.visual_spec
    if first.visual_spec.anyres is None:
        assert torch.equal(logits_of(third), logits_of(expected))


def test_every_layout_takes_the_round_trip(tmp_path: Path):
    roots = []
    for write in READERS:
        root = tmp_path / write.__name__
        root.mkdir()
        roots.append(write(root).layout)
    assert set(roots) == set(LAYOUTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_it_too(tmp_path: Path, dtype: torch.dtype):
    model = tuned(model_of())
    save_state({name: value.to(dtype) for name, value in original_state(model).items()}, tmp_path / "llava")
    model.vision_tower.vision_tower.save_pretrained(tmp_path / "tower")
    (tmp_path / "llava" / "config.json").write_text(json.dumps(original_config(model, "./tower")))
    first = llava.load(tmp_path / "llava")
    first.save_pretrained(tmp_path / "ours")
    second = llava.load(tmp_path / "ours")
    second.config.image_token_id = IMAGE
    export_llava_hf(second, tmp_path / "theirs")
    third = llava.load(tmp_path / "theirs")
    assert {p.dtype for p in third.parameters()} == {dtype}
    assert same_weights(third, first)
