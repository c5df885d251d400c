"""Tiled pictures through both packages: theirs -> ours -> theirs gives the same logits, tokens and views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava
from llava.model.checkpoints.export import export_llava_hf
from llava.utils.cutting import cut_anyres
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import VOCAB, tiny_model, worst
from tests.numerics.test_hf_anyres_parity import next_pair, onevision_pair, prompt, stacked, views_of
from tests.unit.model.checkpoints.folders import same_weights

LOGITS = 1e-5  # measured worst: 0, the same kernels in the same order
GREY = 1e-3  # of 255 levels; measured worst: 1.6e-5, of undoing the normalisation
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
KINDS = {
    "LlavaNextForConditionalGeneration": {"image_aspect_ratio": "anyres"},
    "LlavaOnevisionForConditionalGeneration": {"image_aspect_ratio": "anyres_max_2"},
}


def tiled(llm: str, tower: str, **kw: Any) -> Any:
    feature = "cls_patch" if tower.startswith("siglip") else "patch"
    how = {"image_grid_pinpoints": PINPOINTS, "mm_patch_merge_type": "spatial_unpad", "mm_projector_cfg": "mlp2x_gelu"}
    return tiny_model(llm, tower, **{"image_token_id": VOCAB - 1, "mm_vision_select_feature": feature, **how, **kw})


def logits_ours(model: Any, ids: Tensor, views: list[Tensor], sizes: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, images=torch.cat(views), image_sizes=sizes).logits


def logits_theirs(model: Any, ids: Tensor, views: list[Tensor], sizes: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, pixel_values=stacked(views), image_sizes=sizes).logits


def settings_of(folder: Path) -> dict[str, Any]:
    stored = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        stored[part].pop("dtype", None)  # written with the parts, or once for all
    return stored


@pytest.mark.parametrize("pair", [next_pair, onevision_pair])
def test_theirs_to_ours_to_theirs(tmp_path: Path, pair: Any):
    twin, theirs = pair()
    views, sizes = views_of(twin)
    ids = prompt(twin.tokens_of_pictures(views, sizes))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = llava.load(tmp_path / "theirs")
    again = AutoModelForImageTextToText.from_pretrained(export_llava_hf(ours, tmp_path / "again")).eval()
    assert type(again) is type(theirs)
    assert same_weights(again, theirs)
    expected = logits_theirs(theirs, ids, views, sizes)
    assert expected.abs().max() > 0.5
    assert worst(logits_ours(ours, ids, views, sizes), expected) <= LOGITS
    assert worst(logits_theirs(again, ids, views, sizes), expected) <= LOGITS
    assert llava.load(tmp_path / "again").visual_spec == ours.visual_spec == twin.visual_spec
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    first, second = (settings_of(tmp_path / name) for name in ("theirs", "again"))
    assert {key for key in first if first[key] != second.get(key)} <= {"image_seq_length"}  # theirs is a default


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_ours_to_theirs_to_ours(tmp_path: Path, kind: str, tower: str):
    ours = tiled("mistral", tower, **KINDS[kind])
    views, sizes = views_of(ours)
    ids = prompt(ours.tokens_of_pictures(views, sizes))
    theirs = AutoModelForImageTextToText.from_pretrained(export_llava_hf(ours, tmp_path)).eval()
    assert type(theirs).__name__ == kind
    assert worst(logits_theirs(theirs, ids, views, sizes), logits_ours(ours, ids, views, sizes)) <= LOGITS
    assert same_weights(llava.load(tmp_path), ours)
    assert f"{kind}.from_pretrained" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_the_processor_cuts_and_counts_as_we_do(tmp_path: Path, kind: str, tower: str):
    tokenizer = train_tokenizer(["go to the red ball and stop"] * 3, 280, tmp_path / "t")
    ours = tiled("qwen2", tower, **KINDS[kind])
    ours.llm.resize_token_embeddings(300)
    ours.tokenizer = tokenizer
    ours.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    processor = AutoProcessor.from_pretrained(export_llava_hf(ours, tmp_path / "out"))
    pixels = torch.randint(0, 256, (50, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.numpy())
    given = processor(text="go to <image>", images=picture, return_tensors="pt")
    rule: Any = ours.visual_spec.anyres
    views, size = cut_anyres(picture, rule)
    mean, std = (torch.tensor(v)[:, None, None] for v in (ours.visual_spec.image_mean, ours.visual_spec.image_std))
    assert worst((given["pixel_values"][0] * std + mean) * 255, views.float()) <= GREY
    assert tuple(given["image_sizes"][0].tolist()) == size
    assert (given["input_ids"] == ours.config.image_token_id).sum() == rule.layout(*size).num_tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type is 'spatial', .*'spatial_unpad' only; save it"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat'"),
    ],
)
def test_other_ways_to_merge_tiles_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    model = tiled("llama", "clip_vision_model", image_aspect_ratio="anyres", **settings)
    with pytest.raises(ValueError, match=message):
        export_llava_hf(model, tmp_path)


def test_pictures_that_transformers_does_not_cut_are_refused(tmp_path: Path):
    model = tiled("llama", "clip_vision_model", image_aspect_ratio="dynamic")
    with pytest.raises(ValueError, match=r"image_aspect_ratio is 'dynamic', which .*save_pretrained"):
        export_llava_hf(model, tmp_path)
    model = tiled("llama", "clip_vision_model", image_aspect_ratio="anyres")
    model.config.image_aspect_ratio = "pad"
    with pytest.raises(ValueError, match=r"image_aspect_ratio is 'pad', and the projector holds the image_newline"):
        export_llava_hf(model, tmp_path)
    assert not list(tmp_path.iterdir())
