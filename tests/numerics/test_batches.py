"""A batch is its rows: padded or packed, together or one at a time, trained on all logits or on supervised rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.numerics.models import IMAGE, pictures, tiny_model, worst, worst_gradient

TOLERANCE = 1e-5  # measured worst: 3.7e-6 (logits), 1.0e-6 (gradients, by the largest of a tensor)
LLMS = ["llama", "qwen2", "qwen3"]


def samples(tokens_per_image: int) -> list[dict[str, Tensor]]:
    """Rows with no, one, two and three pictures; answers are the last four tokens."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for num_pictures in (1, 0, 3, 2):
        ids = torch.randint(4, 50, (8 + num_pictures,), generator=generator)
        for picture in range(num_pictures):
            ids = torch.cat([ids[: 2 + picture], torch.full((tokens_per_image,), IMAGE), ids[2 + picture :]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[-4:] = ids[-4:]
        made.append({"input_ids": ids, "labels": labels, "images": pictures(num_pictures, seed=num_pictures)})
    return made


def padded(rows: list[dict[str, Tensor]], side: str = "right") -> dict[str, Tensor]:
    length = max(len(row["input_ids"]) for row in rows)

    def pad(row: Tensor, value: int) -> Tensor:
        missing = length - len(row)
        return torch.nn.functional.pad(row, (missing, 0) if side == "left" else (0, missing), value=value)

    return {
        "input_ids": torch.stack([pad(row["input_ids"], 0) for row in rows]),
        "labels": torch.stack([pad(row["labels"], IGNORE_INDEX) for row in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row["labels"]), 0) for row in rows]).bool(),
        "images": torch.cat([row["images"] for row in rows]),
    }


def packed(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {key: torch.cat([row[key] for row in rows])[None] for key in ("input_ids", "labels")}
    segments = [torch.full_like(row["labels"], index) for index, row in enumerate(rows)]
    return {**batch, "segment_ids": torch.cat(segments)[None], "images": torch.cat([row["images"] for row in rows])}


def alone(model: Any, row: dict[str, Tensor]) -> Any:
    return model(input_ids=row["input_ids"][None], labels=row["labels"][None], images=row["images"])


@pytest.mark.parametrize("llm", LLMS)
def test_every_row_of_a_batch_is_as_if_it_were_alone(llm: str):
    model = tiny_model(llm)
    rows = samples(model.tokens_per_image)
    with torch.no_grad():
        expected = [alone(model, row).logits[0] for row in rows]
        for side in ("left", "right"):
            batch = padded(rows, side)
            output = model(**batch)
            for row, logits in enumerate(expected):
                assert worst(output.logits[row][batch["attention_mask"][row]], logits) < TOLERANCE
            assert torch.isfinite(output.logits).all()
        together = model(**packed(rows))
    assert worst(together.logits[0], torch.cat(expected)) < TOLERANCE


@pytest.mark.parametrize("llm", LLMS)
def test_packed_and_padded_training_agree_in_loss_and_gradients(llm: str):
    model = tiny_model(llm).train()
    rows = samples(model.tokens_per_image)
    gradients = []
    for batch in (padded(rows), packed(rows)):
        model.zero_grad()
        output = model(**batch)
        assert output.logits is None
        output.loss.backward()
        gradients.append(
            (output.loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    (loss, found), (expected_loss, expected) = gradients
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for name, gradient in expected.items():
        assert worst_gradient(found[name], gradient) < TOLERANCE


def test_supervised_rows_give_the_loss_and_the_gradients_of_all_rows():
    model = tiny_model().train()
    batch = padded(samples(model.tokens_per_image))
    labels = batch.pop("labels")
    model.zero_grad()
    logits = model(**batch).logits
    full = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )
    full.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = model(**batch, labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(full.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        if name in expected:
            assert worst_gradient(parameter.grad, expected[name]) < TOLERANCE


@pytest.mark.parametrize("llm", LLMS)
def test_left_padded_generation_is_the_generation_of_each_row(llm: str):
    model = tiny_model(llm)
    rows = samples(model.tokens_per_image)
    how = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    expected = torch.cat([model.generate(row["input_ids"][None], row["images"], **how) for row in rows])
    for side in ("left", "right"):
        batch = padded(rows, side)
        assert torch.equal(
            model.generate(batch["input_ids"], batch["images"], batch["attention_mask"], **how), expected
        )


def test_placeholders_may_be_expanded_or_not():
    model = tiny_model()
    (row,) = samples(model.tokens_per_image)[:1]
    is_image = row["input_ids"] == IMAGE
    keep = ~is_image | (is_image.cumsum(0) == 1)
    short = row["input_ids"][keep].masked_fill(is_image[keep], IMAGE_TOKEN_INDEX)
    with torch.no_grad():
        expanded = alone(model, row)
        unexpanded = model(input_ids=short[None], labels=row["labels"][keep][None], images=row["images"])
    assert torch.equal(expanded.logits, unexpanded.logits)
    assert expanded.loss == unexpanded.loss


def test_steps_behind_a_cache_with_hidden_tokens_are_the_whole_sequence():
    """A streaming evaluation: the answer is decoded, then hidden by zeros in the mask, and the next picture follows."""
    model = tiny_model()
    per_image = model.tokens_per_image
    shown = pictures(2)
    picture = [IMAGE] * per_image
    trunk, answer, more = [1, 7, 8, *picture], [9, 3], [*picture, 11]
    with torch.no_grad():
        first = model(input_ids=torch.tensor([trunk + answer]), images=shown[:1], use_cache=True)
        hidden = torch.tensor([[1] * len(trunk) + [0] * len(answer) + [1] * len(more)])
        positions = torch.arange(len(trunk), len(trunk) + len(more))[None]
        second = model(
            input_ids=torch.tensor([more]),
            images=shown[1:],
            attention_mask=hidden,
            position_ids=positions,
            past_key_values=first.past_key_values,
            use_cache=True,
        )
        whole = model(input_ids=torch.tensor([trunk + more]), images=shown)
    assert worst(second.logits[0], whole.logits[0, len(trunk) :]) < TOLERANCE


def test_packed_or_branched_rows_refuse_a_cache_and_unexpanded_pictures():
    model = tiny_model()
    ids = torch.tensor([[1, 5, 6]])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cache that is not empty"):
        model(input_ids=ids, segment_ids=torch.zeros_like(ids), past_key_values=cache)
    with pytest.raises(ValueError, match="before packing"):
        model(input_ids=torch.tensor([[1, -200, 6]]), images=pictures(1), segment_ids=torch.zeros_like(ids))
