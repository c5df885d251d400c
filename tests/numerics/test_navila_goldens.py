"""The original NaVILA code, run on a tiny random checkpoint, and this package on the same files: the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava.constants import IGNORE_INDEX
from llava.conversation import get_template
from llava.data.preprocess import encode_conversation
from llava.model.builder import load_pretrained_model
from llava.utils.tokenizer import TokenizationCompat

CONVERSATIONS = ("one_image", "two_images_two_turns", "nav_8_frames")
HIDDEN = 1e-4  # measured worst: 5.7e-6 (vision), 2.4e-6 (embeddings), 4.4e-6 (language model)
LOGITS = 1e-4  # measured worst: 5.8e-6
LOSS = 1e-5  # measured worst: 9.5e-7


class Arrays(Mapping[str, torch.Tensor]):
    """An npz file whose arrays are tensors."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def __iter__(self) -> Any:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item()


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "A_navila"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_pretrained_model(str(folder / "checkpoint"), device="cpu")[1]


@pytest.fixture(scope="module")
def conversations(folder: Path) -> Arrays:
    return Arrays(folder / "arrays" / "conversations.npz")


@pytest.fixture(scope="module")
def batch(folder: Path) -> Arrays:
    return Arrays(folder / "arrays" / "batch.npz")


def collated(batch: Arrays) -> dict[str, torch.Tensor]:
    return {name: batch[f"collated/{name}"] for name in ("input_ids", "labels", "attention_mask", "images")}


def sample(arrays: Arrays, name: str) -> dict[str, torch.Tensor]:
    ids, labels = arrays[f"{name}/input_ids"][None], arrays[f"{name}/labels"][None]
    return {"input_ids": ids, "labels": labels, "images": arrays[f"{name}/pixel_values"]}


def test_the_folder_gives_the_parts_of_the_original_loader(folder: Path):
    tokenizer, model, processor, context_len = load_pretrained_model(str(folder / "checkpoint"), device="cpu")
    expected = json.loads((folder / "load_pretrained_model.json").read_text())
    assert context_len == expected["context_len"]
    assert tokenizer.padding_side == expected["padding_side"]
    assert expected["image_processor"] in type(processor).__name__
    assert model.llm.get_input_embeddings().weight.shape[0] == expected["embed_rows"]
    assert model.config.token_order == "column"
    assert model.tokens_per_image == 9


def test_parameters_have_the_names_and_shapes_of_the_original(folder: Path, model: Any):
    expected = json.loads((folder / "state_dict_shapes.json").read_text())
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    as_published = {
        name.replace("vision_tower.vision_tower.vision_model.", "vision_tower.vision_tower."): shape
        for name, shape in expected.items()
        if "position_ids" not in name and "rotary" not in name
    }
    assert found == as_published


def test_the_tower_gives_the_layer_before_the_last(folder: Path, model: Any):
    vision = Arrays(folder / "arrays" / "vision.npz")
    pixels = Arrays(folder / "arrays" / "preprocess.npz")
    with torch.no_grad():
        features = model.vision_tower(pixels["pixel_values_resize"])
        assert worst(features, vision["vision_tower_out_selected"]) < HIDDEN
        assert worst(features, vision["siglip_hidden_2"]) < HIDDEN
        for mode in ("resize", "pad"):
            visual_tokens = model.encode_images(pixels[f"pixel_values_{mode}"])
            assert worst(visual_tokens, vision[f"encode_images_{mode}"]) < HIDDEN


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_embeddings_labels_logits_and_loss_of_a_conversation(model: Any, conversations: Arrays, name: str):
    given = sample(conversations, name)
    mask = torch.ones_like(given["input_ids"])
    with torch.no_grad():
        _, position_ids, attention_mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
            given["input_ids"], mask, mask, None, given["labels"], given["images"]
        )
        output = model(**given, output_hidden_states=True)
    assert worst(embeds, conversations[f"{name}/inputs_embeds"]) < HIDDEN
    assert torch.equal(labels, conversations[f"{name}/new_labels"])
    assert torch.equal(attention_mask, conversations[f"{name}/new_attention_mask"])
    assert torch.equal(position_ids, conversations[f"{name}/new_position_ids"])
    assert worst(output.logits, conversations[f"{name}/logits"]) < LOGITS
    assert worst(output.loss, conversations[f"{name}/loss"]) < LOSS
    for layer, hidden in enumerate(output.hidden_states):
        assert worst(hidden, conversations[f"{name}/llm_hidden_{layer}"]) < HIDDEN


def test_nothing_given_is_nothing_returned(model: Any, conversations: Arrays):
    given = sample(conversations, "one_image")
    with torch.no_grad():
        prepared = model.prepare_inputs_labels_for_multimodal(
            given["input_ids"], None, None, None, None, given["images"]
        )
    assert [value is None for value in prepared] == [True, True, True, True, False, True]


def test_a_padded_batch_is_merged_as_by_the_original(model: Any, batch: Arrays):
    given = collated(batch)
    ones = torch.ones_like(given["input_ids"])
    with torch.no_grad():
        _, position_ids, attention_mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
            given["input_ids"], ones, given["attention_mask"], None, given["labels"], given["images"]
        )
        output = model(**given)
    assert torch.equal(position_ids, batch["merged/position_ids"])
    assert torch.equal(attention_mask, batch["merged/attention_mask"])
    assert torch.equal(labels, batch["merged/labels"])
    assert worst(embeds, batch["merged/inputs_embeds"]) < HIDDEN
    real = attention_mask[..., None]  # what the original leaves at padding is an artefact of its kernel
    assert worst(output.logits * real, batch["eval/logits"] * real) < LOGITS
    assert worst(output.loss, batch["eval/loss"]) < LOSS
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize(
    ("prefix", "setting", "value"),
    [("merged_leftpad", "tokenizer_padding_side", "left"), ("merged_trunc150", "tokenizer_model_max_length", 150)],
)
def test_padding_side_and_cut_follow_the_config(model: Any, batch: Arrays, prefix: str, setting: str, value: Any):
    given = collated(batch)
    ones = torch.ones_like(given["input_ids"])
    usual = getattr(model.llm.config, setting)
    setattr(model.llm.config, setting, value)
    try:
        with torch.no_grad():
            _, position_ids, attention_mask, _, _, labels = model.prepare_inputs_labels_for_multimodal(
                given["input_ids"], ones, given["attention_mask"], None, given["labels"], given["images"]
            )
    finally:
        setattr(model.llm.config, setting, usual)
    assert torch.equal(position_ids, batch[f"{prefix}/position_ids"])
    assert torch.equal(attention_mask, batch[f"{prefix}/attention_mask"])
    assert torch.equal(labels, batch[f"{prefix}/labels"])


def pack(arrays: Arrays, tokens_per_image: int, image_token_id: int) -> dict[str, torch.Tensor]:
    """All conversations in one row, placeholders expanded."""
    ids, labels, segments, pictures = [], [], [], []
    for segment, name in enumerate(CONVERSATIONS):
        given = sample(arrays, name)
        repeats = torch.where(given["input_ids"][0] == -200, tokens_per_image, 1)
        ids.append(given["input_ids"][0].repeat_interleave(repeats))
        labels.append(given["labels"][0].repeat_interleave(repeats))
        segments.append(torch.full_like(ids[-1], segment))
        pictures.append(given["images"])
    ids_row = torch.cat(ids)[None].masked_fill(torch.cat(ids)[None] == -200, image_token_id)
    return {
        "input_ids": ids_row,
        "labels": torch.cat(labels)[None],
        "segment_ids": torch.cat(segments)[None],
        "images": torch.cat(pictures),
    }


def test_packed_training_gives_the_loss_of_the_original_packing(model: Any, batch: Arrays, conversations: Arrays):
    packed = pack(conversations, model.tokens_per_image, model.config.image_token_id)
    model.train()
    try:
        output = model(**packed)
    finally:
        model.eval()
    assert output.logits is None
    assert worst(output.loss, batch["train/loss"]) < LOSS


def test_gradients_of_the_batch_are_those_of_the_original(folder: Path, model: Any, batch: Arrays):
    model.zero_grad()
    model(**collated(batch)).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    published = "vision_tower.vision_tower.vision_model."
    for name, expected in load_file(folder / "arrays" / "grads_eval_batch.safetensors").items():
        gradient = found[name.replace(published, "vision_tower.vision_tower.")]
        assert worst(gradient, expected) < 1e-5  # measured worst: 1.5e-7
    norms = json.loads((folder / "arrays" / "grad_norms_eval_batch.json").read_text())
    for name, norm in norms.items():
        gradient = found[name.replace(published, "vision_tower.vision_tower.")]
        if norm is None:
            assert gradient is None
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_answers_are_those_of_the_original(model: Any, conversations: Arrays, name: str):
    prompt, pixels = conversations[f"{name}/gen_prompt_ids"], conversations[f"{name}/pixel_values"]
    output = model.generate(
        prompt,
        pixels,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    expected = conversations[f"{name}/gen_ids_noeos"][:, 1:]  # the original repeats a beginning-of-text token first
    assert torch.equal(output.sequences, expected)
    assert worst(torch.stack(output.scores, dim=1), conversations[f"{name}/gen_step_logits"]) < LOGITS


def test_half_precision_weights_are_read_and_rounded_as_by_the_original(folder: Path, conversations: Arrays):
    model = load_pretrained_model(str(folder / "checkpoint"), device="cpu", dtype=torch.float16)[1].float()
    rounded = Arrays(folder / "arrays" / "logits_fp16_rounded_weights.npz")
    for name in CONVERSATIONS:
        with torch.no_grad():
            output = model(**sample(conversations, name))
        assert worst(output.logits, rounded[f"{name}/logits"]) < LOGITS
        assert worst(output.loss, rounded[f"{name}/loss"]) < LOSS


def test_labels_never_stand_on_a_picture(model: Any, conversations: Arrays):
    given = sample(conversations, "nav_8_frames")
    with torch.no_grad():
        *_, labels = model.prepare_inputs_labels_for_multimodal(
            given["input_ids"], None, None, None, given["labels"], given["images"]
        )
    start = int((given["input_ids"][0] == -200).nonzero()[0, 0])
    assert (labels[0, start : start + model.tokens_per_image] == IGNORE_INDEX).all()


def test_texts_are_cut_as_in_the_training_of_the_published_weights(
    model: Any, folder: Path, conversations: Arrays, tmp_path: Path
):
    """The published folder says nothing of it; ours stores both switches, and they are what the ids are exact with."""
    model.save_pretrained(tmp_path)
    again: Any = load_pretrained_model(str(tmp_path), device="cpu")[1]
    samples = json.loads((folder / "conversations.json").read_text())
    for found in (model, again):
        assert found.config.tokenization_compat == {"double_bos": True, "chunkwise": True}
        compat, template = TokenizationCompat.from_config(found.config.tokenization_compat), get_template("llama_3")
        for sample in samples:
            encoded = encode_conversation(sample["messages"], found.tokenizer, template, compat=compat)
            assert torch.equal(encoded.input_ids, conversations[f"{sample['name']}/input_ids"])
            assert torch.equal(encoded.labels, conversations[f"{sample['name']}/labels"])


@pytest.mark.parametrize("compat", [{"double_bos": False, "chunkwise": True}, {"double_bos": True, "chunkwise": False}])
def test_a_stored_way_to_cut_texts_wins(folder: Path, tmp_path: Path, compat: dict[str, bool]):
    shutil.copytree(folder / "checkpoint", tmp_path / "copy")
    stored = json.loads((folder / "checkpoint" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**stored, "tokenization_compat": compat}))
    assert load_pretrained_model(str(tmp_path / "copy"), device="cpu")[1].config.tokenization_compat == compat
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**stored, "max_tiles": 12}))  # a key of NVILA
    assert load_pretrained_model(str(tmp_path / "copy"), device="cpu")[1].config.tokenization_compat is None
