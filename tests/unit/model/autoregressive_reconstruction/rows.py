"""Rows of a toy language model: an instruction, then picture, answer, picture, answer ..., padded or packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.attention import may_attend

INSTRUCTION, SLOTS, ANSWER = 2, 4, 2
"""Tokens of an instruction, of a picture, of an answer."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """frame_of [B, S] = clip * T + frame of each slot, -1 elsewhere; the rest as a collator would give it."""

    frame_of: Tensor
    segment_ids: Tensor
    branch_ids: Tensor
    frame_ends: Tensor
    answer_ends: Tensor
    clip_rows: Tensor | None

    def known(self, *, answers: bool = False) -> dict[str, Any]:
        """Keyword arguments of the loss."""
        told: dict[str, Any] = {
            "frame_end_positions": self.frame_ends,
            "segment_ids": self.segment_ids,
            "branch_ids": self.branch_ids,
        }
        if self.clip_rows is not None:
            told["clip_rows"] = self.clip_rows
        return {**told, "answer_end_positions": self.answer_ends} if answers else told


def lay_out(lengths: list[int], num_frames: int, *, packed: bool) -> RowLayout:
    """lengths: frames of each clip that its row holds, of `num_frames`; later ones are cut off."""
    columns, ends, answers = [], [], []
    for clip, length in enumerate(lengths):
        frame_of, branch = [-1] * INSTRUCTION, [0] * INSTRUCTION
        end, answer = [-1] * num_frames, [-1] * num_frames
        for frame in range(length):
            frame_of += [clip * num_frames + frame] * SLOTS + [-1] * ANSWER
            branch += [0] * SLOTS + [frame + 1] * ANSWER
            end[frame], answer[frame] = len(frame_of) - ANSWER - 1, len(frame_of) - 1
        columns.append((frame_of, branch))
        ends.append(torch.tensor(end))
        answers.append(torch.tensor(answer))
    sizes = [len(frame_of) for frame_of, _ in columns]
    if packed:
        starts = [sum(sizes[:clip]) for clip in range(len(sizes))]
        shift = [torch.where(end >= 0, end + start, end) for end, start in zip(ends, starts, strict=True)]
        later = [torch.where(end >= 0, end + start, end) for end, start in zip(answers, starts, strict=True)]
        return RowLayout(
            frame_of=torch.tensor([[f for frames, _ in columns for f in frames]]),
            segment_ids=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[None],
            branch_ids=torch.tensor([[b for _, branch in columns for b in branch]]),
            frame_ends=torch.stack(shift),
            answer_ends=torch.stack(later),
            clip_rows=torch.zeros(len(sizes), dtype=torch.long),
        )
    width = max(sizes) + 1
    pad = [width - size for size in sizes]
    return RowLayout(
        frame_of=torch.tensor([frames + [-1] * p for (frames, _), p in zip(columns, pad, strict=True)]),
        segment_ids=torch.tensor([[0] * size + [-1] * p for size, p in zip(sizes, pad, strict=True)]),
        branch_ids=torch.tensor([branch + [0] * p for (_, branch), p in zip(columns, pad, strict=True)]),
        frame_ends=torch.stack(ends),
        answer_ends=torch.stack(answers),
        clip_rows=None,
    )


class ToyLanguageModel(nn.Module):
    """Two attention layers under the rule of `model/attention.py`, on projected patches and random words."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.project = nn.Linear(vision_width, width)
        self.layers = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))

    def forward(self, features: Tensor, words: Tensor, layout: RowLayout) -> Tensor:
        """features [V, T, P, D], words [B, S, width] -> hidden states [B, S, width]."""
        pooled = features.flatten(0, 1).unflatten(1, (SLOTS, -1)).mean(dim=2)  # [V*T, SLOTS, D]
        is_slot = layout.frame_of >= 0
        slot_number = (is_slot.cumsum(1) - 1) % SLOTS
        slots = self.project(pooled)[layout.frame_of.clamp(min=0), slot_number.clamp(min=0)]
        hidden = torch.where(is_slot[..., None], slots, words)
        mask = may_attend(layout.segment_ids, layout.branch_ids)[:, None]
        for layer in self.layers:
            query, key, value = (part[:, None] for part in layer(hidden).chunk(3, dim=-1))
            hidden = hidden + F.scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, 0]
        return hidden
