"""Samples packed into one row do not know of each other: in attention, in the loss, in the next-frame loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollator
from tests.numerics.models import IMAGE, pictures, tiny_model
from tests.unit.train.toy import IMAGE_TOKEN, ToyClips, toy_model


def rows(tokens_per_image: int) -> list[dict[str, Any]]:
    """Three samples with a picture each, of different lengths; the second half of the text is trained."""
    made = []
    for number, length in enumerate((9, 6, 12)):
        generator = torch.Generator().manual_seed(number)
        text = torch.randint(4, 50, (length,), generator=generator)
        ids = torch.cat([torch.full((tokens_per_image,), IMAGE), text])
        labels = ids.clone()
        labels[: -(length // 2)] = IGNORE_INDEX
        made.append({"input_ids": ids, "labels": labels, "images": pictures(1, seed=number), "sample_id": str(number)})
    return made


def packed(samples: list[dict[str, Any]], image_token_id: int = IMAGE) -> dict[str, Any]:
    collate = DataCollator(pad_token_id=0, max_length=512, mode="pack", rows="one", image_token_id=image_token_id)
    return {name: value for name, value in collate(samples).items() if name != "sample_ids"}  # pyright: ignore


def embeddings_of(model: Any) -> list[Tensor]:
    """Fills with what enters the language model, its gradient kept."""
    entered: list[Tensor] = []

    def keep(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        named["inputs_embeds"].retain_grad()
        entered.append(named["inputs_embeds"])

    model.llm.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    return entered


@pytest.mark.parametrize("llm", ["llama", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("trained", [0, 1, 2])
def test_the_loss_of_one_sample_has_no_gradient_at_the_others(llm: str, attention: str, trained: int):
    model = tiny_model(llm, attn_implementation=attention).train()
    samples = rows(model.tokens_per_image)
    for number, sample in enumerate(samples):
        if number != trained:
            sample["labels"] = torch.full_like(sample["labels"], IGNORE_INDEX)
    batch, entered = packed(samples), embeddings_of(model)
    model(**batch).loss.backward()
    gradient = entered[0].grad
    assert gradient is not None
    own = batch["segment_ids"][0] == trained
    assert (gradient[0, ~own] == 0).all()
    assert (gradient[0, own].abs().amax(dim=1) > 0).sum() > model.tokens_per_image


@pytest.mark.parametrize("llm", ["llama", "mistral"])
def test_the_loss_of_a_packed_row_is_the_mean_over_the_samples_alone(llm: str):
    model = tiny_model(llm).train()
    samples = rows(model.tokens_per_image)
    supervised = sum(int((sample["labels"] != IGNORE_INDEX).sum()) for sample in samples)
    alone = sum(model(**packed([sample]), num_items_in_batch=supervised).loss for sample in samples)
    together = model(**packed(samples), num_items_in_batch=supervised).loss
    assert together.item() == pytest.approx(alone.item(), abs=1e-5)


def test_the_next_frame_loss_of_one_sample_has_no_gradient_at_the_others():
    """The second sample of the row shows one picture: all of the loss comes from the clips of the other two."""
    model = toy_model()
    model.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    model.initialize_continuous_autoregressive_modules({"embedding_dim": None, "predictor_dim": 16, "num_heads": 2})
    torch.nn.init.normal_(model.autoregressive_reconstruction.predictor.output_projection.weight, std=0.1)
    data = ToyClips(9, blank=3)
    batch, entered = packed([data[1], data[3], data[2]], IMAGE_TOKEN), embeddings_of(model)
    assert "clip" not in data[3]
    output = model.train()(**batch)
    output.reconstruction.loss.backward()
    gradient = entered[0].grad
    assert gradient is not None
    without_clip = batch["segment_ids"][0] == 1
    assert (gradient[0, without_clip] == 0).all()
    assert gradient[0, ~without_clip].abs().max() > 0
