"""Greedy answers for a batch of growing sequences: the same few lines serve whole prompts and kept caches."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache


@dataclass(kw_only=True)
class Context:
    """B sequences inside one key/value cache. A column is real for some rows and padding for others.

    Attributes:
        cache: the keys and values of all columns so far.
        mask: which columns are real, [B, S].
        lengths: real tokens per row, which is also the position of the next token.
    """

    cache: DynamicCache
    mask: Bool[Tensor, "b s"]
    lengths: Int[Tensor, " b"]

    @classmethod
    def empty(cls, rows: int, device: torch.device | str = "cpu") -> Context:
        no_columns = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        return cls(cache=DynamicCache(), mask=no_columns, lengths=torch.zeros(rows, dtype=torch.long, device=device))

    @property
    def columns(self) -> int:
        return self.mask.shape[1]

    def keep_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Forget all other rows."""
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]
        if self.columns:
            self.cache.batch_select_indices(rows)

    def crop(self, columns: int) -> None:
        """Forget everything after the first `columns` columns."""
        if columns < self.columns:
            self.mask = self.mask[:, :columns]
            self.lengths = self.mask.sum(1)
            self.cache.crop(columns - self.cache.get_seq_length())  # negative: how many to remove

    @torch.no_grad()
    def feed(self, model: Any, embeds: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        """Append n columns and return the logits after the last of them."""
        positions = (self.lengths[:, None] + real.long().cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, real], dim=1)
        self.lengths = self.lengths + real.sum(1)
        output = model(
            inputs_embeds=embeds,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


@torch.no_grad()
def greedy_answers(
    model: Any, context: Context, logits: Float[Tensor, "b v"], stop_ids: Collection[int], max_new_tokens: int
) -> list[list[int]]:
    """The most probable continuation of every row, token by token, given the logits after the last column.

    A row ends at any of `stop_ids`, which is not part of its answer. The context is left as it was found.
    """
    before = context.columns
    answers: list[list[int]] = [[] for _ in range(len(logits))]
    open_rows = [True] * len(answers)
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            open_rows[row] = open_rows[row] and token not in stop_ids
            if open_rows[row]:
                answers[row].append(token)
        if not any(open_rows) or step + 1 == max_new_tokens:
            break
        real = torch.tensor(open_rows, device=logits.device)[:, None]
        logits = context.feed(model, model.get_input_embeddings()(tokens)[:, None], real)
    context.crop(before)
    return answers


def left_padded(
    rows: list[Float[Tensor, "_ d"]],
) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
    """Sequences of unequal length as one block whose padding stands at the left, and which of its columns are real."""
    longest = max(len(row) for row in rows)
    block = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    real = torch.zeros(len(rows), longest, dtype=torch.bool, device=block.device)
    for i, row in enumerate(rows):
        block[i, longest - len(row) :] = row
        real[i, longest - len(row) :] = True
    return block, real
