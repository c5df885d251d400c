"""The four tokens around background and objects, as real tokens of tokenizer and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

SEPARATOR_TOKENS = ("[BG_START]", "[BG_END]", "[OBJ_START]", "[OBJ_END]")


@dataclass(frozen=True, kw_only=True)
class Separators:
    """Ids of the four tokens in the tokenizer of the language model."""

    background_start: int
    background_end: int
    objects_start: int
    objects_end: int

    def around(self, kind: str) -> tuple[int, int]:
        """Start and end token of "background" or "objects"."""
        ids = {
            "background": (self.background_start, self.background_end),
            "objects": (self.objects_start, self.objects_end),
        }
        return ids[kind]

    @classmethod
    def of(cls, tokenizer: Any) -> Separators:
        """Ids of tokens that the tokenizer knows.

        Raises:
            ValueError: naming those that it lacks.
        """
        unknown = [token for token in SEPARATOR_TOKENS if _known_id(tokenizer, token) is None]
        if unknown:
            raise ValueError(
                f"the tokenizer has no token {', '.join(unknown)}, expected all of {' '.join(SEPARATOR_TOKENS)}; call "
                "add_separators(tokenizer, llm), or load the tokenizer that was saved with the model"
            )
        return cls(
            **dict(zip(cls.__annotations__, map(tokenizer.convert_tokens_to_ids, SEPARATOR_TOKENS), strict=True))
        )


def add_separators(tokenizer: Any, llm: PreTrainedModel) -> Separators:
    """Makes the four tokens known to a tokenizer and its language model, both changed in place; harmless when repeated.

    A new token starts as the mean of the rows of the tokens that were known before, in the embedding and, where that is
    a table of its own, in the language head: no chance is involved. Tables grow where they must and never shrink. Call
    it before the model is wrapped for training.
    """
    known = [token for token in SEPARATOR_TOKENS if _known_id(tokenizer, token) is not None]
    num_rows = _tables(llm)[0].shape[0]
    num_before = min(num_rows, len(tokenizer))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(SEPARATOR_TOKENS)}, replace_extra_special_tokens=False
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SEPARATOR_TOKENS}
    if max(ids.values()) >= num_rows:
        llm.resize_token_embeddings(max(*ids.values(), len(tokenizer) - 1) + 1, mean_resizing=False)
    new = [row for token, row in ids.items() if token not in known and row < num_rows]
    for table in _tables(llm):
        new_rows = [*new, *range(num_rows, table.shape[0])]  # also rows that nobody reads, such as that of <image>
        _fill_with_mean(table, new_rows, num_before)
    return Separators.of(tokenizer)


def _tables(llm: PreTrainedModel) -> list[Tensor]:
    """Input rows, and output rows and their bias where they are not the same memory."""
    inputs: Any = llm.get_input_embeddings()
    tables, head = [inputs.weight], llm.get_output_embeddings()
    if head is None:
        return tables
    if head.weight is not inputs.weight:
        tables.append(head.weight)  # pyright: ignore[reportArgumentType]
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)  # pyright: ignore[reportArgumentType]
    return tables


@torch.no_grad()
def _fill_with_mean(table: Tensor, rows: list[int], num_before: int) -> None:
    if rows:
        table[rows] = table[:num_before].mean(dim=0, dtype=torch.float32).to(table.dtype)


def _known_id(tokenizer: Any, token: str) -> int | None:
    found = tokenizer.convert_tokens_to_ids(token)
    return found if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None
