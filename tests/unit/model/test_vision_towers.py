"""Each vision tower is transformers' own: the same features, other sizes and scales, tuned weights that survive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import llava
from llava.model import LlavaConfig
from llava.model.builder import build_model
from llava.model.checkpoints import ReadOptions
from llava.model.multimodal_encoder.builder import build_vision_tower, read_vision_tower, wrap_vision_tower
from llava.model.multimodal_encoder.families import scales_of, square_side
from llava.model.multimodal_encoder.multi_scale import cut_tiles, encode_scales, merge_tiles
from llava.model.multimodal_encoder.resolution import resize_positions
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from tests.numerics.models import pictures, tiny_config, tiny_model, worst

TOLERANCE = 1e-6
NEW = ["dinov2", "dinov2_with_registers", "internvl_vision", "radio"]
TOWERS = ["siglip_vision_model", "clip_vision_model", "siglip_stem", *NEW]
PREFIX = {"clip_vision_model": 1, "dinov2": 1, "dinov2_with_registers": 4, "internvl_vision": 1, "radio": 5}
SELF_RESIZING = [kind for kind in TOWERS if kind != "siglip_stem"]
TWO_SCALES = {"s2": True, "s2_scales": "32,64", "s2_max_split_size": 32}


def floats(count: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def hidden_states(model: Any, pixels: Tensor, **kw: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(pixels, output_hidden_states=True, **kw).hidden_states


# ---- features ----


@pytest.mark.parametrize("layer", [-1, -2, 0, 1, None])
@pytest.mark.parametrize("kind", TOWERS)
def test_features_are_the_hidden_states_of_transformers_own_class(kind: str, layer: int | None):
    tower = tiny_model(tower=kind, mm_vision_select_layer=layer, mm_vision_select_feature="cls_patch").vision_tower
    with torch.no_grad():
        found = tower(floats(2))
    expected = hidden_states(tower.vision_tower, floats(2))[tower.select_layer]
    assert expected.abs().max() > 0.1
    assert worst(found, expected) <= TOLERANCE  # measured worst: 0
    assert found.shape[1] == tower.num_patches == 16 + PREFIX.get(kind, 0)


@pytest.mark.parametrize("kind", TOWERS)
def test_by_default_patches_and_nothing_else_leave_a_tower(kind: str):
    model = tiny_model(tower=kind)
    tower = model.vision_tower
    with torch.no_grad():
        found = tower(floats(2))
    expected = hidden_states(tower.vision_tower, floats(2))[tower.select_layer]
    assert worst(found, expected[:, PREFIX.get(kind, 0) :]) <= TOLERANCE
    assert (found.shape[1], model.tokens_per_image) == (16, 4)
    assert model.visual_spec == model.config.visual_spec()


def test_the_selected_layer_is_the_one_that_the_family_itself_hands_on():
    layers = {kind: tiny_model(tower=kind).vision_tower.select_layer for kind in TOWERS}
    last = {kind for kind, layer in layers.items() if layer == -1}
    assert last == {"siglip_stem", "internvl_vision", "radio"}
    assert set(layers.values()) == {-1, -2}


def test_radio_gives_its_own_features_and_normalises_by_itself():
    tower, shown = tiny_model(tower="radio").vision_tower, pictures(2)
    with torch.no_grad():
        expected = tower.vision_tower(shown / 255).features
        assert worst(tower(shown), expected) <= TOLERANCE


def test_a_processor_that_leaves_normalising_to_the_tower_is_believed():
    tower = tiny_model(tower="radio").vision_tower
    processor = SimpleNamespace(do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    wrapped = wrap_vision_tower(type(tower), tower.vision_tower, LlavaConfig(), processor)
    assert (wrapped.image_mean, wrapped.image_std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "internvl_vision"])
def test_towers_of_imagenet_get_its_statistics(kind: str):
    spec = tiny_model(tower=kind).visual_spec
    assert spec.image_mean == (0.485, 0.456, 0.406)
    assert spec.aspect_mode == "resize"


# ---- training, saving ----


@pytest.mark.parametrize("kind", NEW)
def test_a_gradient_reaches_every_trained_weight(kind: str):
    model = tiny_model(tower=kind, mm_vision_select_layer=-2).train()
    ids = torch.tensor([[1, -200, 5, 6, 7]])
    model(ids, pictures(1), labels=ids.masked_fill(ids < 0, -100)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.vision_tower.parameters())


@pytest.mark.parametrize("extra", [{}, TWO_SCALES, {"vision_resolution": 48}])
@pytest.mark.parametrize("kind", TOWERS)
def test_a_tuned_tower_survives(tmp_path: Path, kind: str, extra: dict[str, Any]):
    model = tiny_model(tower=kind, **extra)
    with torch.no_grad():
        for parameter in model.vision_tower.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path)
    again = llava.load(tmp_path)
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    shown = pictures(1, size=model.visual_spec.image_size)
    with torch.no_grad():
        assert torch.equal(model.encode_images(shown), again.encode_images(shown))
    assert again.visual_spec == model.visual_spec == again.config.visual_spec()


@pytest.mark.parametrize("kind", NEW)
def test_the_stored_settings_build_the_same_tower(kind: str):
    model = tiny_model(tower=kind)
    twin = build_model(model.config)
    assert {name: p.shape for name, p in twin.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }


# ---- another resolution ----


@pytest.mark.parametrize("side", [64, 16])
@pytest.mark.parametrize("kind", SELF_RESIZING)
def test_another_resolution_is_what_transformers_own_class_interpolates(kind: str, side: int):
    small = tiny_model(tower=kind).vision_tower
    config = LlavaConfig(vision_resolution=side)
    tower = wrap_vision_tower(type(small), small.vision_tower, config)
    asks = {"interpolate_pos_encoding": True} if kind in ("siglip_vision_model", "clip_vision_model") else {}
    expected = hidden_states(small.vision_tower, floats(2, side), **asks)[tower.select_layer]
    with torch.no_grad():
        found = tower(floats(2, side))
    assert worst(found, expected[:, PREFIX.get(kind, 0) :]) <= TOLERANCE  # measured worst: 0
    assert (tower.image_size, tower.num_patches) == (side, (side // 8) ** 2)
    assert small.image_size == 32


def test_a_resize_by_hand():
    table = torch.tensor([[9.0], [0.0], [1.0], [2.0], [3.0]])  # a class token, then the grid 0 1 / 2 3
    found = resize_positions(table, 1, 4, "bilinear")[:, 0]
    assert found[0] == 9
    rows = [[0, 0.25, 0.75, 1], [0.5, 0.75, 1.25, 1.5], [1.5, 1.75, 2.25, 2.5], [2, 2.25, 2.75, 3]]
    assert torch.equal(found[1:].reshape(4, 4), torch.tensor(rows))
    assert torch.equal(resize_positions(table, 1, 2), table)
    assert resize_positions(table[None], 1, 3).shape == (1, 10, 1)


def test_a_resize_along_the_rows_laid_end_to_end_is_refused():
    with pytest.raises(ValueError, match="interpolate_mode is 'linear', expected 'bicubic' or 'bilinear'"):
        tiny_model(tower="siglip_vision_model", vision_resolution=64, interpolate_mode="linear")
    same = tiny_model(tower="siglip_vision_model", vision_resolution=-1, interpolate_mode="linear")  # nothing to resize
    assert same.vision_tower.image_size == 32
    with pytest.raises(ValueError, match="vision_resolution is 4, expected at least one patch of 8 pixels"):
        tiny_model(tower="siglip_vision_model", vision_resolution=4)


# ---- several scales ----


def mean_colour(pixels: Tensor) -> Tensor:
    """A tower that is known: 2 x 2 patches of a 4 x 4 picture, each the mean of its pixels."""
    return torch.nn.functional.avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)


def test_scales_by_hand():
    pixels = torch.arange(64.0).reshape(1, 1, 8, 8)
    found = encode_scales(mean_colour, pixels, (4, 8))
    assert found.shape == (1, 4, 2)  # as many tokens as with one scale, two channels for one
    # the large scale: 4 x 4 means of 2 x 2 pixels, pooled to 2 x 2: the means of the quarters of the picture
    quarters = [13.5, 17.5, 45.5, 49.5]
    assert found[0, :, 1].tolist() == quarters
    # the small scale: a ramp shrunk to half keeps its means, but for the bicubic kernel at the edges
    assert found[0, :, 0].tolist() == pytest.approx(quarters, abs=0.5)
    assert torch.equal(
        found[..., :1],
        mean_colour(torch.nn.functional.interpolate(pixels, size=(4, 4), mode="bicubic")),
    )


def test_tiles_are_cut_row_by_row_and_merged_back():
    pixels = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    tiles = cut_tiles(pixels, 2)
    assert tiles.shape == (18, 1, 2, 2)
    assert tiles[1, 0].tolist() == [[2, 3], [8, 9]]
    assert tiles[3, 0].tolist() == [[12, 13], [18, 19]]
    assert torch.equal(merge_tiles(tiles.flatten(2).transpose(1, 2), 3), pixels)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_of_two_scales_is_the_tower_on_the_picture_and_on_its_quarters(kind: str):
    model = tiny_model(tower=kind, **TWO_SCALES)
    one, tower = tiny_model(tower=kind).vision_tower, model.vision_tower
    one.load_state_dict(tower.state_dict())
    large = floats(2, 64)
    small = torch.nn.functional.interpolate(large, size=(32, 32), mode="bicubic")
    with torch.no_grad():
        found, first = tower(large), one(small)
        quarters = [one(large[:, :, y : y + 32, x : x + 32]) for y in (0, 32) for x in (0, 32)]
    assert worst(found[..., :24], first) <= TOLERANCE
    top_left = quarters[0].reshape(2, 2, 2, 2, 2, 24).mean(dim=(2, 4))  # [n, y, x, d] of a 4 x 4 grid in 2 x 2 blocks
    assert worst(found[..., 24:].reshape(2, 4, 4, 24)[:, :2, :2], top_left) <= TOLERANCE  # measured worst: 2.4e-7
    bottom_right = quarters[3].reshape(2, 2, 2, 2, 2, 24).mean(dim=(2, 4))
    assert worst(found[..., 24:].reshape(2, 4, 4, 24)[:, 2:, 2:], bottom_right) <= TOLERANCE
    assert (tower.hidden_size, tower.num_patches, tower.image_size) == (48, 16, 64)
    assert (model.config.mm_hidden_size, model.tokens_per_image) == (48, 4)
    assert model.visual_spec == model.config.visual_spec()
    assert model.visual_spec.image_size == 64


def test_scales_train_the_tower():
    model = tiny_model(tower="dinov2", **TWO_SCALES).train()
    model.encode_images(pictures(1, size=64)).sum().backward()
    assert [name for name, p in model.vision_tower.named_parameters() if p.requires_grad and p.grad is None] == []


def test_scales_follow_another_resolution():
    model = tiny_model(tower="siglip_vision_model", vision_resolution=48, s2=True, s2_scales=[96, 48, 144])
    assert model.vision_tower.scales == (48, 96, 144)
    assert (model.vision_tower.hidden_size, model.vision_tower.num_patches) == (72, 36)
    assert model.encode_images(pictures(1, size=144)).shape == (1, 9, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s2_scales": None}, "s2_scales is None, expected sides such as"),
        ({"s2_scales": "32,48"}, r"s2_scales is '32,48', expected 32 .* such as '32,64'"),
        ({"s2_scales": "64,128"}, "or set vision_resolution to the smallest scale"),
        ({"s2_scales": "32,64", "s2_max_split_size": 64}, "s2_max_split_size is 64, expected 32"),
    ],
)
def test_scales_that_do_not_cut_into_tiles_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_model(s2=True, **settings)
    assert scales_of(SimpleNamespace(s2=False, **settings), 32) == ()


def test_class_tokens_have_no_place_among_tiles():
    with pytest.raises(ValueError, match="1 class tokens have no place in a grid of tiles, expected 'patch'"):
        tiny_model(tower="clip_vision_model", mm_vision_select_feature="cls_patch", **TWO_SCALES)


def test_other_forms_of_several_scales_are_refused():
    with pytest.raises(ValueError, match=r"config.ps3 is set, .* expected s2, dynamic_s2 or neither"):
        tiny_model(ps3=True)


# ---- folders ----


def test_a_processor_makes_pictures_of_the_size_that_the_tower_reads(tmp_path: Path):
    tower = tiny_model(tower="clip_vision_model").vision_tower.vision_tower
    tower.save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    config = {**tiny_config(), "vision_tower_cfg": str(tmp_path)}
    for extra, side in (({}, 32), ({"vision_resolution": 48}, 48), (TWO_SCALES, 64)):
        model = build_model({**config, **extra})
        made = model.image_processor(images=floats(1, 40)[0], return_tensors="pt", do_rescale=False).pixel_values
        assert made.shape == (1, 3, side, side)
        model.save_pretrained(tmp_path / str(side))
        again = llava.load(tmp_path / str(side)).image_processor
        assert dict(again.crop_size) == {"height": side, "width": side}


def test_siglip2_of_a_fixed_size_is_a_siglip(tmp_path: Path):
    width = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={"vocab_size": 90, "projection_size": 24, **width},  # another tokenizer is all that is new in it
        vision_config={"image_size": 32, "patch_size": 8, **width},
    )
    whole = transformers.SiglipModel(config).eval()
    whole.save_pretrained(tmp_path)
    tower = build_vision_tower(str(tmp_path), LlavaConfig())
    assert type(tower) is SiglipVisionTower
    expected = hidden_states(whole.vision_model, floats(1))[tower.select_layer]
    with torch.no_grad():
        assert worst(tower(floats(1)), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("siglip2_vision_model", r"variable picture sizes \(naflex\), which is not supported"),
        ("siglip2", r"model_type 'siglip2' is the SigLIP2 of variable picture sizes"),
        ("internvl", "a whole InternVL; take its tower"),
        ("dinov3_vit", "unknown vision tower 'dinov3_vit'; did you mean 'dinov2'"),
    ],
)
def test_towers_that_are_not_supported_say_so(tmp_path: Path, model_type: str, message: str):
    config = LlavaConfig()
    with pytest.raises(ValueError, match=message):
        build_vision_tower({"model_type": model_type}, config)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(ValueError, match=message):
        read_vision_tower(tmp_path, config, ReadOptions())


def test_pictures_that_are_no_squares_are_refused():
    assert square_side([448, 448]) == square_side(448) == 448
    with pytest.raises(ValueError, match=r"image_size of the vision tower is \(32, 48\), expected a square"):
        square_side((32, 48))
