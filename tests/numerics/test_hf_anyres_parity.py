"""transformers' LLaVA-1.6 and OneVision with our weights, pictures of any size: the same tokens and the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

import llava
from llava.utils.cutting import cut_anyres
from tests.numerics.models import VOCAB, tiny_model, worst

LOGITS = 1e-5  # measured worst: 0, for both families
IMAGE = VOCAB - 1
SIZES = ((50, 31), (20, 90), (64, 64), (33, 34), (200, 70))
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def config_of(part: Any) -> Any:
    settings = part.config.to_dict()
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def same_weights(ours: Any, theirs: Any) -> Any:
    theirs.model.vision_tower.load_state_dict(ours.vision_tower.vision_tower.state_dict())
    theirs.model.language_model.load_state_dict(ours.llm.model.state_dict())
    theirs.lm_head.load_state_dict(ours.llm.lm_head.state_dict())
    layers = ours.mm_projector.layers
    projector = theirs.model.multi_modal_projector
    projector.linear_1.load_state_dict(layers[0].state_dict())
    projector.linear_2.load_state_dict(layers[2].state_dict())
    with torch.no_grad():
        theirs.model.image_newline.copy_(ours.mm_projector.image_newline)
    return theirs.eval()


def next_pair() -> tuple[Any, Any]:
    ours = tiny_model(
        "llama", "clip_vision_model", mm_projector_cfg="mlp2x_gelu", image_token_id=IMAGE,
        image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS, mm_patch_merge_type="spatial_unpad",
    )  # fmt: skip
    config = LlavaNextConfig(
        text_config=config_of(ours.llm), vision_config=config_of(ours.vision_tower), image_token_id=IMAGE,
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return ours, same_weights(ours, LlavaNextForConditionalGeneration(config))


def onevision_pair() -> tuple[Any, Any]:
    ours = tiny_model(
        "qwen2", "siglip_vision_model", mm_projector_cfg="mlp2x_gelu", image_token_id=IMAGE,
        image_aspect_ratio="anyres_max_2", image_grid_pinpoints="(1x1),...,(3x3)",
        mm_patch_merge_type="spatial_unpad", mm_vision_select_layer=-1, mm_vision_select_feature="cls_patch",
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config=config_of(ours.llm), vision_config=config_of(ours.vision_tower), image_token_id=IMAGE,
        vision_feature_layer=-1, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2",
        image_grid_pinpoints=[[32 * a, 32 * b] for a in (1, 2, 3) for b in (1, 2, 3)],
    )  # fmt: skip
    return ours, same_weights(ours, LlavaOnevisionForConditionalGeneration(config))


@pytest.fixture(scope="module", params=[next_pair, onevision_pair])
def pair(request: Any) -> tuple[Any, Any]:
    return request.param()


def views_of(ours: Any) -> tuple[list[Tensor], Tensor]:
    """Normalised views of a picture of every size, and the sizes."""
    generator = torch.Generator().manual_seed(0)
    cut = [
        cut_anyres(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator), ours.visual_spec.anyres)
        for size in SIZES
    ]
    return [(views.float() / 255 - 0.5) / 0.5 for views, _ in cut], torch.tensor([size for _, size in cut])


def stacked(views: list[Tensor]) -> Tensor:
    """[pictures, most views, 3, H, W] as transformers takes them."""
    return torch.nn.utils.rnn.pad_sequence(views, batch_first=True)


def prompt(counts: list[int]) -> Tensor:
    """One row that shows all pictures in turn."""
    parts = [part for k, count in enumerate(counts) for part in (torch.tensor([5 + k]), torch.full((count,), IMAGE))]
    return torch.cat([torch.tensor([1]), *parts, torch.tensor([7, 9])])[None]


def test_logits_of_pictures_of_five_shapes(pair: tuple[Any, Any]):
    ours, theirs = pair
    views, sizes = views_of(ours)
    ids = prompt(ours.tokens_of_pictures(views, sizes))
    with torch.no_grad():
        found = ours(ids, images=torch.cat(views), image_sizes=sizes).logits
        expected = theirs(ids, pixel_values=stacked(views), image_sizes=sizes).logits
    assert expected.abs().max() > 0.5
    assert worst(found, expected) < LOGITS


def test_one_placeholder_per_picture_is_expanded_to_the_same(pair: tuple[Any, Any]):
    ours, _ = pair
    views, sizes = views_of(ours)
    whole, short = prompt(ours.tokens_of_pictures(views, sizes)), prompt([1] * len(SIZES))
    with torch.no_grad():
        expected = ours(whole, images=torch.cat(views), image_sizes=sizes).logits
        assert worst(ours(short, images=torch.cat(views), image_sizes=sizes).logits, expected) == 0


def test_a_folder_of_transformers_answers_alike(pair: tuple[Any, Any], tmp_path: Any):
    ours, theirs = pair
    views, sizes = views_of(ours)
    ids = prompt(ours.tokens_of_pictures(views, sizes))
    theirs.save_pretrained(tmp_path)
    again = llava.load(tmp_path)
    with torch.no_grad():
        expected = theirs(ids, pixel_values=stacked(views), image_sizes=sizes).logits
        assert worst(again(ids, images=torch.cat(views), image_sizes=sizes).logits, expected) < LOGITS


def test_the_newline_learns_and_survives(pair: tuple[Any, Any], tmp_path: Any):
    ours, _ = pair
    views, sizes = views_of(ours)
    ids = prompt(ours.tokens_of_pictures(views, sizes))
    ours.train()
    ours(ids, images=torch.cat(views), image_sizes=sizes, labels=ids.masked_fill(ids == IMAGE, -100)).loss.backward()
    ours.eval()
    assert ours.mm_projector.image_newline.grad.abs().sum() > 0
    ours.zero_grad()
    ours.train()
    ours(torch.tensor([[1, 7, 9]]), labels=torch.tensor([[1, 7, 9]])).loss.backward()
    ours.eval()
    assert ours.mm_projector.image_newline.grad is not None  # zero, but there: no rank of a group skips it
    ours.zero_grad()
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert torch.equal(again.mm_projector.image_newline, ours.mm_projector.image_newline)
    assert again.visual_spec == ours.visual_spec


def test_a_picture_that_is_not_cut_stands_beside_others(pair: tuple[Any, Any]):
    ours, _ = pair
    views, sizes = views_of(ours)
    mixed = torch.tensor([[0, 0], sizes[1].tolist()])
    ids = prompt(ours.tokens_of_pictures(views[:2], mixed))
    with torch.no_grad():
        alone = ours.encode_pictures(views[0][:1], None)[0]
        merged = ours.encode_pictures(torch.cat([views[0][:1], views[1]]), mixed)[0]
        assert worst(merged[: len(alone)], alone) < LOGITS
        assert ours(ids, images=torch.cat([views[0][:1], views[1]]), image_sizes=mixed).logits.isfinite().all()


def test_wrong_views_and_wrong_placeholders_are_named(pair: tuple[Any, Any]):
    ours, _ = pair
    views, sizes = views_of(ours)
    ids = prompt(ours.tokens_of_pictures(views, sizes))
    with pytest.raises(ValueError, match=r"views were given, image_sizes ask for"):
        ours(ids, images=torch.cat(views)[:-1], image_sizes=sizes)
    with pytest.raises(ValueError, match=r"5 pictures need 5 placeholders, or \d+ expanded ones"):
        ours(ids[:, :-40], images=torch.cat(views), image_sizes=sizes)
    with pytest.raises(ValueError, match="only anyres and dynamic_s2 read them"):
        tiny_model("llama", "clip_vision_model", mm_projector_cfg="mlp2x_gelu")(ids, images=views[0], image_sizes=sizes)
