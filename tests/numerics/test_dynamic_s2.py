"""NVILA's `dynamic_s2` against a slow reference written from its description: one tile, one patch, one token at a time.

transformers has no model of this kind to compare with.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import SiglipImageProcessor

import llava
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collate import DataCollator
from llava.mm_utils import expand_image_tokens, process_images
from llava.model.builder import build_model
from llava.model.generation import encode_prompt
from llava.utils.cutting import cut_scales, resize
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import IMAGE, pictures, tiny_config, tiny_model, worst
from tests.unit.utils.test_dynamic_s2 import nearest_grid

FEATURES = 1e-5  # measured worst: 3.9e-6
LOGITS = 1e-5  # measured worst: 1.7e-6 (alone or in a batch, padded or packed)
SIZES = ((50, 31), (20, 90), (64, 64), (33, 34), (200, 70))
SIDE, SCALES = 32, (32, 64, 96)


def settings(**kw: Any) -> dict[str, Any]:
    return {
        "image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": "32,64,96",
        "s2_max_split_size": 32, "s2_resize_output_to_scale_idx": -1, "max_tiles": 12, **kw,
    }  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen2", "siglip_vision_model", **settings())


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def views_of(model: Any, sizes: Any = SIZES) -> tuple[Tensor, Tensor]:
    """uint8 tiles of a picture of every size, and the sizes."""
    cut = [cut_scales(noise(*size, seed), model.visual_spec.dynamic_s2) for seed, size in enumerate(sizes)]
    return torch.cat([views for views, _ in cut]), torch.tensor([size for _, size in cut])


def area_average(grid: Tensor, rows: int, columns: int) -> Tensor:
    """[y, x, d] -> [rows, columns, d]: each new cell is the mean of the old cells that it touches."""
    height, width, depth = grid.shape
    out = torch.zeros(rows, columns, depth)
    for y in range(rows):
        top, bottom = math.floor(y * height / rows), math.ceil((y + 1) * height / rows)
        for x in range(columns):
            left, right = math.floor(x * width / columns), math.ceil((x + 1) * width / columns)
            out[y, x] = grid[top:bottom, left:right].mean(dim=(0, 1))
    return out


def slow_tokens(model: Any, picture: Tensor, max_tiles: int = 12, output: int = -1) -> Tensor:
    """Visual tokens [t, h] of one picture; nothing of the package but the parts and the resizing of pixels."""
    _, height, width = picture.shape
    base = model.vision_tower.grid_side
    largest = SCALES[-1] // SIDE
    maps, grids = [], []
    for scale in SCALES:
        k = scale // SIDE
        columns, rows = nearest_grid(width, height, SIDE, largest**2, max_tiles) if k == largest else (k, k)
        scaled, whole = resize(picture, rows * SIDE, columns * SIDE), torch.zeros(rows * base, columns * base, 24)
        for row in range(rows):
            for column in range(columns):
                tile = scaled[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
                seen = model.vision_tower.encode(((tile.float() / 255 - 0.5) / 0.5)[None])[0]  # [p, d]
                for patch in range(base * base):
                    whole[row * base + patch // base, column * base + patch % base] = seen[patch]
        maps.append(whole)
        grids.append((rows, columns))
    merged = torch.cat([area_average(m, *maps[output].shape[:2]) for m in maps], dim=-1)
    rows, columns = grids[output]
    side = math.isqrt(model.tokens_per_image)
    tokens = torch.zeros(rows * side, columns * side, model.llm.config.hidden_size)
    for row in range(rows):
        for column in range(columns):
            tile = merged[row * base : (row + 1) * base, column * base : (column + 1) * base]
            said = model.mm_projector(tile.reshape(1, base * base, -1))[0]
            for token in range(side * side):
                tokens[row * side + token // side, column * side + token % side] = said[token]
    return tokens.flatten(0, 1)


@pytest.mark.parametrize(
    ("projector", "output"),
    [("mlp_downsample", -1), ("mlp_downsample", 0), ("mlp_downsample_3x3_fix", 1), ("mlp2x_gelu", 2)],
)
@pytest.mark.parametrize("tower", ["siglip_vision_model", "clip_vision_model"])
def test_tokens_are_those_of_the_slow_reference(projector: str, output: int, tower: str):
    how = settings(mm_projector_cfg=projector, s2_resize_output_to_scale_idx=output, image_mean=[0.5] * 3)
    model = tiny_model("qwen2", tower, **how, image_std=[0.5] * 3)
    assert model.mm_projector.config.mm_hidden_size == model.config.mm_hidden_size == 3 * 24
    with torch.no_grad():
        expected = [slow_tokens(model, noise(*size, seed), output=output) for seed, size in enumerate(SIZES[:3])]
        views, sizes = views_of(model, SIZES[:3])
        found = model.encode_pictures(views, sizes)[0]
    assert model.tokens_of_pictures(views, sizes) == [len(tokens) for tokens in expected]
    assert expected[0].abs().max() > 0.3
    assert worst(found, torch.cat(expected)) < FEATURES


def test_the_data_side_counts_what_the_model_gives(model: Any):
    spec = model.visual_spec
    assert spec == model.config.visual_spec()
    assert (spec.image_size, spec.tokens_per_image, spec.aspect_mode) == (32, 4, "dynamic_s2")
    views, sizes = views_of(model)
    layouts = [spec.view_rule.layout(*size) for size in sizes.tolist()]
    with torch.no_grad():
        found = model.encode_pictures(views, sizes)
    assert found.shape[1] == sum(layout.num_tokens for layout in layouts) == sum(model.tokens_of_pictures(views, sizes))
    assert len(views) == sum(layout.num_tiles for layout in layouts)


def row_of(counts: list[int]) -> Tensor:
    """One row that shows all pictures in turn."""
    parts = [part for k, count in enumerate(counts) for part in (torch.tensor([5 + k]), torch.full((count,), IMAGE))]
    return torch.cat([torch.tensor([1]), *parts, torch.tensor([7, 9])])[None]


def test_one_placeholder_per_picture_is_expanded(model: Any):
    views, sizes = views_of(model)
    whole = row_of(model.tokens_of_pictures(views, sizes))
    with torch.no_grad():
        expected = model(whole, images=views, image_sizes=sizes).logits
        found = model(row_of([1] * len(SIZES)), images=views, image_sizes=sizes).logits
    assert worst(found, expected) == 0


def test_a_picture_that_is_not_cut_has_the_same_features_at_every_scale(model: Any):
    views, sizes = views_of(model, SIZES[:1])
    mixed, images = torch.cat([sizes, torch.zeros(1, 2, dtype=torch.long)]), torch.cat([views, pictures(1)])
    with torch.no_grad():
        alone = model.mm_projector(model.vision_tower.encode(model.vision_tower.normalise(pictures(1))).repeat(1, 1, 3))
        found = model.encode_pictures(images, mixed)[0]
        assert worst(found[-4:], alone[0]) < FEATURES
        assert worst(model.encode_images(pictures(1)), alone) == 0


def samples_of(model: Any) -> list[dict[str, Any]]:
    """A sample of one cut picture for every size, one of two pictures that are not cut, one without any."""
    samples = []
    for seed, size in enumerate(SIZES):
        views, _ = cut_scales(noise(*size, seed), model.visual_spec.dynamic_s2)
        text, count = torch.tensor([1, 5 + seed, IMAGE, 8, 9, 11 + seed]), [model.visual_spec.dynamic_s2.layout(*size)]
        ids, labels = expand_image_tokens(text, text.clone(), [count[0].num_tokens], IMAGE)
        extra = {"image_sizes": torch.tensor([size]), "image_views": torch.tensor([len(views)]), "images": views}
        samples.append({"input_ids": ids, "labels": labels, **extra})
    text = torch.tensor([1, IMAGE, 8, IMAGE, 9])
    ids, labels = expand_image_tokens(text, text.clone(), [4, 4], IMAGE)
    samples.append({"input_ids": ids, "labels": labels, "images": pictures(2)})
    return [*samples, {"input_ids": torch.tensor([1, 7, 9]), "labels": torch.tensor([1, 7, 9])}]


def run(model: Any, batch: Any) -> Any:
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "sample_ids"})


def test_batched_is_single_and_packed_is_padded(model: Any):
    samples: Any = samples_of(model)
    pad = DataCollator(pad_token_id=0, max_length=512, image_token_id=IMAGE)
    pack = DataCollator(pad_token_id=0, max_length=512, mode="pack", rows="one", image_token_id=IMAGE)
    together, packed = run(model, pad(samples)), run(model, pack(samples))
    at, losses = 0, []
    for row, sample in enumerate(samples):
        alone, length = run(model, pad([sample])), len(sample["input_ids"])
        assert worst(together.logits[row, :length], alone.logits[0]) < LOGITS
        assert worst(packed.logits[0, at : at + length], alone.logits[0]) < LOGITS
        losses += [(float(alone.loss), int((sample["labels"][1:] != IGNORE_INDEX).sum()))]
        at += length
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert float(together.loss) == pytest.approx(mean, abs=1e-5)
    assert float(packed.loss) == pytest.approx(mean, abs=1e-5)


def test_the_gradient_reaches_every_weight_of_tower_and_projector():
    model = tiny_model("qwen2", "siglip_vision_model", **settings()).train()
    collator = DataCollator(pad_token_id=0, max_length=512, image_token_id=IMAGE)
    batch = collator(samples_of(model)[:2])  # pyright: ignore[reportArgumentType]
    batch.pop("sample_ids")
    model(**batch).loss.backward()
    vision = [*model.vision_tower.named_parameters(), *model.mm_projector.named_parameters()]
    trained = {name: p for name, p in vision if p.requires_grad}
    # a constant on every key moves no softmax: its gradient is zero in theory
    still = [n for n, p in trained.items() if p.grad is None or (not p.grad.any() and not n.endswith("k_proj.bias"))]
    assert len(trained) > 20 and still == []


def test_wrong_tiles_and_sizes_without_a_rule_are_named(model: Any):
    views, sizes = views_of(model)
    ids = row_of(model.tokens_of_pictures(views, sizes))
    with pytest.raises(ValueError, match=r"views were given, image_sizes ask for .*cut_scales"):
        model(ids, images=views[:-1], image_sizes=sizes)
    square = tiny_model("qwen2", "siglip_vision_model", **settings(image_aspect_ratio="resize"))
    with pytest.raises(ValueError, match="only anyres and dynamic_s2 read them"):
        square(ids, images=views, image_sizes=sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2": True}, "config.s2 and config.dynamic_s2 are both set"),
        ({"s2_scales": None}, "config.dynamic_s2 is set, but s2_scales is None"),
        ({"s2_scales": "48,96"}, "expected 32 .the side that the tower reads. and multiples of it"),
        ({"dynamic_s2": False, "s2": True}, "s2_resize_output_to_scale_idx is -1, expected 0 with s2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_model("qwen2", "siglip_vision_model", **settings(**change))


# ---- from pictures to answers, and folders ----


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = train_tokenizer(["go to the red ball and stop"] * 3, 300, tmp_path_factory.mktemp("tokenizer"))
    config = tiny_config("qwen2", "siglip_vision_model", version="llama_3", num_video_frames=3, **settings())
    config["llm_cfg"]["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    return build_model(config, tokenizer=tokenizer).eval()


def test_a_picture_alone_is_cut_and_frames_and_several_are_not(talking: Any):
    wide = PILImage.fromarray(noise(20, 90).permute(1, 2, 0).numpy())
    ids, views, sizes = encode_prompt(talking, [wide, "stop"])
    assert (sizes.tolist(), len(views)) == ([[20, 90]], talking.visual_spec.view_rule.layout(20, 90).num_tiles)
    assert int((ids == IMAGE_TOKEN_INDEX).sum()) == 1
    for several in ([wide, wide], [llava.Video([wide] * 5)]):
        ids, views, sizes = encode_prompt(talking, several)
        assert sizes is None and len(views) == int((ids == IMAGE_TOKEN_INDEX).sum())
    answers = [talking.generate_content([*p, "stop"], do_sample=False, max_new_tokens=4) for p in ([wide], [wide] * 2)]
    assert all(isinstance(answer, str) for answer in answers)


def test_the_published_path_of_pixels_gives_the_same_answer(talking: Any):
    """process_images with PIL, its tiles handed to generate, against generate_content: one grey level apart."""
    wide = PILImage.fromarray(np.full((40, 100, 3), (90, 140, 200), dtype=np.uint8))
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    tiles = process_images([wide], processor, talking.config)
    ours, size = cut_scales(wide, talking.visual_spec.dynamic_s2)
    assert tiles.shape == ours.shape
    assert ((tiles * 0.5 + 0.5) * 255 - ours).abs().max() < 1.01
    assert process_images([wide, wide], processor, talking.config).shape == (2, 3, 32, 32)
    ids, _, _ = encode_prompt(talking, [wide, "stop"])
    how = {"do_sample": False, "max_new_tokens": 4, "image_sizes": torch.tensor([size])}
    assert torch.equal(talking.generate(ids, tiles, **how), talking.generate(ids, ours, **how))


def test_a_folder_of_nvila_is_read_as_it_was_written(tmp_path: Path):
    """config.json with the keys and the values of a published NVILA, small sizes."""
    model = tiny_model("qwen2", "siglip_vision_model", mm_projector_cfg="mlp_downsample_3x3_fix", **settings())
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for ours in ("token_order", "image_mean", "image_std", "image_token_id"):
        stored.pop(ours)
    encoder = '{"_target_": "llava.model.encoders.BasicImageEncoder"}'
    stored |= {"s2": False, "min_tiles": 1, "max_tiles": 12, "video_max_tiles": 1, "image_encoder": encoder}
    stored |= {"image_token_id": IMAGE, "_name_or_path": "/train/nvila", "model_dtype": "torch.bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again: Any = llava.load(tmp_path)
    assert again.visual_spec == model.visual_spec
    assert again.vision_tower.takes_tiles and again.vision_tower.scales == (32, 64, 96)
    views, sizes = views_of(model)
    ids = row_of(model.tokens_of_pictures(views, sizes))
    with torch.no_grad():
        expected = model(ids, images=views, image_sizes=sizes).logits
        assert worst(again(ids, images=views, image_sizes=sizes).logits, expected) == 0
