"""transformers' LLaVA and ours with the same random weights (Llama + CLIP): the same logits, losses and answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig
from transformers import LlavaConfig as HFLlavaConfig
from transformers import LlavaForConditionalGeneration as HFLlava

from tests.numerics.models import VOCAB, tiny_model, worst, worst_gradient

LOGITS = 1e-5  # measured worst: 0, the same kernels in the same order
LOSS = 1e-6  # measured worst: 0
GRADIENTS = 1e-5  # measured worst: 0
IMAGE = VOCAB - 1


@pytest.fixture(scope="module")
def ours() -> Any:
    return tiny_model("llama", "clip_vision_model", mm_projector_cfg="mlp2x_gelu", image_token_id=IMAGE)


@pytest.fixture(scope="module")
def theirs(ours: Any) -> Any:
    config = HFLlavaConfig(
        text_config=LlamaConfig(**{k: v for k, v in ours.llm.config.to_dict().items() if k != "model_type"}),
        vision_config=CLIPVisionConfig(
            **{k: v for k, v in ours.vision_tower.config.to_dict().items() if k != "model_type"}
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    model = HFLlava(config)
    model.model.vision_tower.load_state_dict(ours.vision_tower.vision_tower.state_dict())
    model.model.language_model.load_state_dict(ours.llm.model.state_dict())
    model.lm_head.load_state_dict(ours.llm.lm_head.state_dict())
    layers = ours.mm_projector.layers.state_dict()
    names = {"linear_1.weight": "0.weight", "linear_1.bias": "0.bias", "linear_2.weight": "2.weight",
             "linear_2.bias": "2.bias"}  # fmt: skip
    model.model.multi_modal_projector.load_state_dict({name: layers[ours_] for name, ours_ in names.items()})
    return model.eval()


def rows(tokens_per_image: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(ids with expanded placeholders, normalised pictures): no, one and two pictures."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for num_pictures, length in ((0, 9), (1, 6), (2, 12)):
        text = torch.randint(3, 50, (length,), generator=generator)
        picture = torch.full((num_pictures * tokens_per_image,), IMAGE)
        pixels = torch.randn(num_pictures, 3, 32, 32, generator=generator)
        made.append((torch.cat([text[:2], picture, text[2:]]), pixels))
    return made


def padded(made: list[tuple[Tensor, Tensor]], side: str) -> dict[str, Tensor]:
    length = max(len(ids) for ids, _ in made)
    ids, mask = torch.zeros(len(made), length, dtype=torch.long), torch.zeros(len(made), length, dtype=torch.long)
    for row, (tokens, _) in enumerate(made):
        columns = slice(length - len(tokens), None) if side == "left" else slice(0, len(tokens))
        ids[row, columns], mask[row, columns] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask, "images": torch.cat([pixels for _, pixels in made])}


def hf(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {("pixel_values" if key == "images" else key): value for key, value in batch.items()}


def labels_of(batch: dict[str, Tensor]) -> Tensor:
    trained = batch["attention_mask"].bool() & (batch["input_ids"] != IMAGE)
    return batch["input_ids"].masked_fill(~trained, -100)


def test_logits_of_a_padded_batch(ours: Any, theirs: Any):
    batch = padded(rows(ours.tokens_per_image), "right")
    with torch.no_grad():
        found, expected = ours(**batch).logits, theirs(**hf(batch)).logits
    real = batch["attention_mask"].bool()
    assert expected[real].abs().max() > 0.5
    assert worst(found[real], expected[real]) < LOGITS


def test_loss_and_gradients(ours: Any, theirs: Any):
    batch = padded(rows(ours.tokens_per_image), "right")
    labels = labels_of(batch)
    ours.train(), theirs.train()
    try:
        found = ours(**batch, labels=labels, num_items_in_batch=17).loss
        expected = theirs(**hf(batch), labels=labels, num_items_in_batch=17).loss
        found.backward(), expected.backward()
    finally:
        ours.eval(), theirs.eval()
    assert worst(found.detach(), expected.detach()) < LOSS
    pairs = [
        (ours.llm.model, theirs.model.language_model),
        (ours.llm.lm_head, theirs.lm_head),
        (ours.vision_tower.vision_tower, theirs.model.vision_tower),
    ]
    for our_part, their_part in pairs:
        named = dict(their_part.named_parameters())
        for name, parameter in our_part.named_parameters():
            if parameter.grad is not None:
                assert worst_gradient(parameter.grad, named[name].grad) < GRADIENTS
    ours.zero_grad(), theirs.zero_grad()


def test_greedy_answers_of_a_left_padded_batch(ours: Any, theirs: Any):
    batch = padded(rows(ours.tokens_per_image, seed=3), "left")
    how = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(**hf(batch), **how)[:, batch["input_ids"].shape[1] :]
    assert torch.equal(ours.generate(**batch, **how), expected)
