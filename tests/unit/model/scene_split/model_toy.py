"""A whole model of a few thousand parameters with the split, and rows with pictures for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.builder import build_model
from llava.model.language_model.base import LlavaCausalLM
from tests.unit.model.scene_split.toy import make_tokenizer, mask_of

NUM_WORDS = 20
QUARTER = mask_of("##..##..........")
"""The first of the four cells of a picture is an object."""
NOTHING, EVERYTHING = mask_of("." * 16), mask_of("#" * 16)
TEXT = [1, 5, 6]
ANSWER = [7, 8, 9]


def make_model(split: dict[str, Any] | None = None, *, seed: int = 0, **config: Any) -> LlavaCausalLM:
    """Llama of width 16 behind a tower of 4 x 4 patches; a picture has 4 tokens (cells of 2 x 2 patches)."""
    torch.manual_seed(seed)
    model = build_model(
        {
            "llm_cfg": {
                "model_type": "llama", "vocab_size": NUM_WORDS + 4, "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128,
            },
            "vision_tower_cfg": {
                "model_type": "siglip_stem", "image_size": 16, "patch_size": 4, "stem_strides": [2, 2], "stem_width": 4,
                "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            },
            "mm_projector_cfg": "mlp_downsample",
            "token_order": "row",
            "version": "vicuna_v1",
            "scene_split": split,
            **config,
        },
        tokenizer=make_tokenizer(NUM_WORDS),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


def row(model: LlavaCausalLM, *pictures_and_texts: int | list[int]) -> tuple[Tensor, Tensor]:
    """Ids and labels [S]: `0` stands for a picture's slots, a list for text; the last list is trained."""
    ids: list[int] = []
    for piece in pictures_and_texts:
        ids += [model.image_token_id] * model.slots_per_image if piece == 0 else list(piece)  # pyright: ignore
    labels = torch.full((len(ids),), IGNORE_INDEX)
    last = pictures_and_texts[-1]
    assert isinstance(last, list)
    labels[-len(last) :] = torch.tensor(last)
    return torch.tensor(ids), labels


def padded(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """One sample per row, as the collator pads."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = (pad(list(each), batch_first=True, padding_value=value)
                   for each, value in zip(zip(*rows, strict=True), (0, IGNORE_INDEX), strict=True))  # fmt: skip
    lengths = torch.tensor([len(each) for each, _ in rows])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "segment_ids": mask.long() - 1}


def packed(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """All samples in one row."""
    lengths = torch.tensor([len(each) for each, _ in rows])
    return {
        "input_ids": torch.cat([ids for ids, _ in rows])[None],
        "labels": torch.cat([labels for _, labels in rows])[None],
        "segment_ids": torch.arange(len(rows)).repeat_interleave(lengths)[None],
    }
