"""The sequences of an instruction-tuning step: text, one picture, eight pictures, with the answer trained only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.batch import MultimodalBatch, Sample
from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollator

SHARES = ((0, 0.2), (1, 0.5), (8, 0.3))
"""Pictures per sequence -> share of the sequences."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shapes of the compared models; the defaults take seconds on two CPU cores."""

    width: int = 256
    layers: int = 4
    heads: int = 8
    key_value_heads: int = 2
    vocabulary: int = 32_000
    image_size: int = 112
    patch_size: int = 14
    tower_width: int = 192
    tower_layers: int = 4


SIZES = {
    "cpu": Size(),
    "1b": Size(
        width=2048,
        layers=16,
        heads=32,
        key_value_heads=8,
        vocabulary=128_256,
        image_size=224,
        tower_width=1024,
        tower_layers=24,
    ),
}


def make_samples(count: int, size: Size, tokens_per_image: int, *, seed: int = 0) -> list[Sample]:
    """`count` sequences in random order; text of 24 to 120 tokens, the last 8 to 40 of them trained."""
    draw = torch.Generator().manual_seed(seed)
    numbers = [pictures for pictures, share in SHARES for _ in range(round(share * count))]
    numbers = [numbers[i] for i in torch.randperm(len(numbers), generator=draw)]
    return [_sample(n, size, tokens_per_image, draw, name=f"{i}") for i, n in enumerate(numbers)]


def _sample(num_pictures: int, size: Size, tokens_per_image: int, draw: torch.Generator, *, name: str) -> Sample:
    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draw))

    question, answer = between(16, 80), between(8, 40)
    text = torch.randint(3, size.vocabulary - 1, (question + answer,), generator=draw)
    slots = torch.full((num_pictures * tokens_per_image,), size.vocabulary - 1)
    input_ids = torch.cat([text[:4], slots, text[4:]])
    labels = input_ids.clone()
    labels[:-answer] = IGNORE_INDEX
    shape = (num_pictures, 3, size.image_size, size.image_size)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    return Sample(input_ids=input_ids, labels=labels, images=pictures, sample_id=name)


def arrange(samples: Sequence[Sample], arrangement: str, *, batch_size: int, row: int) -> list[MultimodalBatch]:
    """The same samples as the batches of one pass.

    Args:
        arrangement: "padded" keeps the order, "grouped" sorts by length first, "packed" fills rows of `row` tokens.
    """
    if arrangement == "packed":
        collate = DataCollator(pad_token_id=0, max_length=row, mode="pack")
        batch = collate(samples)
        return [_row_of(batch, index) for index in range(len(batch["input_ids"]))]
    order = list(samples)
    if arrangement == "grouped":
        order.sort(key=lambda sample: len(sample["input_ids"]))
    collate = DataCollator(pad_token_id=0, max_length=1 << 20)
    return [collate(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def _row_of(batch: MultimodalBatch, index: int) -> MultimodalBatch:
    """One packed row with its own pictures and without the padding at its end."""
    real = int(batch["attention_mask"][index].sum())
    image_id = int(batch["input_ids"].max())
    slots = (batch["input_ids"] == image_id).sum(dim=1)
    per_picture = int(slots.sum()) // max(1, len(batch["images"]))
    first, last = int(slots[:index].sum()) // per_picture, int(slots[: index + 1].sum()) // per_picture
    row = {
        name: value[index : index + 1, :real]
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.ndim == 2
    }
    return MultimodalBatch(**row, images=batch["images"][first:last])  # pyright: ignore[reportArgumentType]


def count_tokens(batches: Sequence[MultimodalBatch]) -> tuple[int, int]:
    """(real tokens, positions computed) of a pass."""
    return sum(int(b["attention_mask"].sum()) for b in batches), sum(b["input_ids"].numel() for b in batches)
