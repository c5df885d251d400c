"""The original LLaVA-1.5 code on a tiny random checkpoint, and this package on the same folder: the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.conversation import get_template
from llava.data.preprocess import encode_conversation
from llava.model.builder import load_pretrained_model
from llava.utils.anyres import AnyresRule
from llava.utils.cutting import cut_anyres
from llava.utils.tokenizer import TokenizationCompat
from tests.numerics.models import worst

NAMES = ("one_image", "two_turns", "two_images", "text_only")
HIDDEN = 1e-4  # measured worst: 3.3e-6 (vision), 3.3e-6 (embeddings), 4.7e-6 (language model)
LOGITS = 1e-4  # measured worst: 3.9e-6 (1.5)
LOSS = 1e-5  # measured worst: 9.5e-7


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "C_llava15"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_pretrained_model(str(folder / "llava-v1.5-tiny"), device="cpu")[1]


@pytest.fixture(scope="module")
def samples(folder: Path) -> dict[str, dict[str, Any]]:
    return {sample["name"]: sample for sample in json.loads((folder / "conversations.json").read_text())}


def arrays(folder: Path, name: str) -> dict[str, Tensor]:
    with np.load(folder / "arrays" / f"{name}.npz") as stored:
        return {key: torch.from_numpy(np.asarray(stored[key])) for key in stored}


@pytest.fixture(scope="module")
def conversations(folder: Path) -> dict[str, Tensor]:
    return arrays(folder, "conversations")


@pytest.fixture(scope="module")
def pixels(folder: Path) -> Tensor:
    return arrays(folder, "preprocess")["pixel_values_pad"]


def given(conversations: dict[str, Tensor], sample: dict[str, Any], pixels: Tensor) -> dict[str, Any]:
    name = sample["name"]
    images = pixels[sample["images"]] if sample["images"] else None
    ids, labels = conversations[f"{name}/input_ids"][None], conversations[f"{name}/labels"][None]
    return {"input_ids": ids, "labels": labels, "images": images}


def test_the_folder_gives_the_parts_of_the_original_loader(folder: Path):
    path = str(folder / "llava-v1.5-tiny")
    tokenizer, model, processor, context_len = load_pretrained_model(path, device="cpu")
    assert context_len == 2048
    assert tokenizer.padding_side == "right"
    assert "CLIPImageProcessor" in type(processor).__name__
    assert model.tokens_per_image == 16
    assert model.config.aspect_mode() == "pad"
    assert model.config.version == "v1"
    assert model.llm.config.rope_parameters["rope_theta"] == 10000.0


def test_every_weight_of_the_recorded_state_dict_is_in_the_model(folder: Path, model: Any):
    recorded = json.loads((folder / "llava-v1.5-tiny_state_dict_shapes.json").read_text())
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    published = {
        name.replace("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_tower.").replace(
            "model.mm_projector.", "mm_projector.layers."
        ): shape
        for name, shape in recorded.items()
        if "position_ids" not in name and "inv_freq" not in name
    }
    published = {
        name if name.startswith(("vision_tower.", "mm_projector.")) else f"llm.{name}": shape
        for name, shape in published.items()
    }
    assert ours == published


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_labels_of_a_dialogue(model: Any, conversations: Any, samples: Any, name: str):
    compat = TokenizationCompat.from_config(model.config.tokenization_compat)
    template = get_template(model.config.version)
    encoded = encode_conversation(samples[name]["messages"], model.tokenizer, template, compat=compat)
    ids, recorded = encoded.input_ids, conversations[f"{name}/labels"]
    assert torch.equal(ids, conversations[f"{name}/input_ids"])
    differs = encoded.labels != recorded  # the row "space before the answer" of DIFFERENCES.md
    assert differs.sum() == (2 if name == "two_turns" else 0)
    assert (ids[differs] == model.tokenizer.convert_tokens_to_ids("▁")).all()
    assert (encoded.labels[differs] == IGNORE_INDEX).all()


def test_tower_and_projector(folder: Path, model: Any, pixels: Tensor):
    vision = arrays(folder, "vision")
    with torch.no_grad():
        assert worst(model.vision_tower(pixels), vision["vision_tower_out_patch"]) < HIDDEN
        assert worst(model.encode_images(pixels), vision["encode_images"]) < HIDDEN


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_logits_and_loss_of_a_dialogue(
    model: Any, conversations: Any, samples: Any, pixels: Tensor, name: str
):
    inputs = given(conversations, samples[name], pixels)
    mask = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        _, position_ids, attention_mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
            inputs["input_ids"], mask, mask, None, inputs["labels"], inputs["images"]
        )
        output = model(**inputs, output_hidden_states=True)
    assert worst(embeds, conversations[f"{name}/inputs_embeds"]) < HIDDEN
    assert torch.equal(labels, conversations[f"{name}/new_labels"])
    assert torch.equal(position_ids, conversations[f"{name}/new_position_ids"])
    assert torch.equal(attention_mask, conversations[f"{name}/new_attention_mask"])
    assert worst(output.logits, conversations[f"{name}/logits"]) < LOGITS
    assert worst(output.loss, conversations[f"{name}/loss"]) < LOSS
    for layer, hidden in enumerate(output.hidden_states):
        assert worst(hidden, conversations[f"{name}/llm_hidden_{layer}"]) < HIDDEN


def test_a_padded_batch(folder: Path, model: Any):
    batch = arrays(folder, "batch")
    inputs = {key: batch[f"collated/{key}"] for key in ("input_ids", "labels", "attention_mask", "images")}
    has_image = (inputs["input_ids"] == -200).any(dim=1)
    inputs["images"] = inputs["images"][has_image]  # the original adds a zero picture to the row without one
    with torch.no_grad():
        output = model(**inputs)
        ones = torch.ones_like(inputs["input_ids"])
        _, _, attention_mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
            inputs["input_ids"], ones, inputs["attention_mask"], None, inputs["labels"], inputs["images"]
        )
    real = batch["merged/attention_mask"]
    assert torch.equal(attention_mask, real)
    assert torch.equal(labels, batch["merged/labels"])
    assert worst(embeds, batch["merged/inputs_embeds"]) < HIDDEN
    assert worst(output.logits[real], batch["logits"][real]) < LOGITS
    assert worst(output.loss, batch["loss"]) < LOSS


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers(model: Any, conversations: Any, samples: Any, pixels: Tensor, name: str):
    inputs = given(conversations, samples[name], pixels)
    output = model.generate(
        conversations[f"{name}/gen_prompt_ids"],
        inputs["images"],
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, conversations[f"{name}/gen_ids_noeos"][:, 1:])
    assert worst(torch.stack(output.scores, dim=1), conversations[f"{name}/gen_step_logits"]) < LOGITS


@pytest.fixture(scope="module")
def anyres_model(folder: Path) -> Any:
    return load_pretrained_model(str(folder / "llava-v1.6-tiny-anyres"), device="cpu")[1]


def test_sizes_of_anyres_pictures(folder: Path):
    recorded = json.loads((folder / "anyres_haotian_liu.json").read_text())
    for kind, side, patches in (("real", 336, 24), ("tiny", 56, 4)):
        resolutions = tuple((height, width) for width, height in recorded[f"pinpoints_{kind}"])
        for case in recorded["cases"]:
            width, height = case["image_size_wh"]
            expected = case if kind == "real" else case["tiny"]
            layout = AnyresRule(resolutions=resolutions, patches=patches, side=side).layout(height, width)
            assert [layout.columns, layout.rows] == expected["grid_wh"]
            assert list(layout.kept) == expected["unpadded_feature_hw"], case["image_size_wh"]
            assert layout.num_tokens == expected["tokens_spatial_unpad"]


@pytest.mark.parametrize("name", ["img0", "img1", "img2"])
def test_anyres_embeddings_logits_and_answer(folder: Path, anyres_model: Any, name: str):
    stored = arrays(folder, "anyres_tiny")
    picture = PILImage.open(folder / "images" / f"{name}.png")
    ids, views = stored[f"input_ids_{name}"], stored[f"pixel_values_{name}"]
    sizes = torch.tensor([[picture.height, picture.width]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        embeds = anyres_model.prepare_inputs_labels_for_multimodal(
            ids, None, mask, None, None, views, image_sizes=sizes
        )[4]
        logits = anyres_model(ids, images=views, attention_mask=mask, image_sizes=sizes).logits
        answer = anyres_model.generate(
            ids, views, image_sizes=sizes, max_new_tokens=12, do_sample=False, eos_token_id=[419]
        )
    assert worst(embeds, stored[f"inputs_embeds_{name}"]) < HIDDEN
    assert worst(logits, stored[f"logits_{name}"]) < LOGITS
    recorded = stored[f"gen_ids_{name}"][0, -12:]
    assert answer[0, :12].tolist() == recorded[: len(answer[0])].tolist()


def test_anyres_pixels(folder: Path, anyres_model: Any):
    stored, spec = arrays(folder, "anyres_tiny"), anyres_model.visual_spec
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.image_mean, spec.image_std))
    for name in ("img0", "img1", "img2"):
        views, _ = cut_anyres(PILImage.open(folder / "images" / f"{name}.png").convert("RGB"), spec.anyres)
        levels = (stored[f"pixel_values_{name}"] * std + mean) * 255
        assert views.shape == levels.shape
        assert (views - levels).abs().max() < 1.001  # grey levels; the recorded ones went through a float
