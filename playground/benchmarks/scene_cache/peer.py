"""The same prompts asked of transformers' LLaVA with the same weights, with and without a kept prefix."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from playground.benchmarks.hf_peer import peer_of
from playground.benchmarks.scene_cache.samples import FirstToken, Sample, now
from playground.benchmarks.scene_cache.shapes import QUESTION_TOKENS

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


class PeerBench:
    """
    Args:
        model: ours, whose weights are copied.
        input_ids: the prompt with one placeholder per picture.
    """

    def __init__(self, model: Any, input_ids: Tensor) -> None:
        self.ours, self.device = model, str(input_ids.device)
        self.model: Any = peer_of(model).to(model.dtype).eval()
        self.model.to(self.device)
        repeats = torch.where(input_ids[0] == model.config.image_token_id, model.tokens_per_image, 1)
        self.input_ids = input_ids[0].repeat_interleave(repeats)[None]  # placeholders multiplied, as the peer wants

    def ask(self, frames: Tensor, *, tokens: int = 1, prefix: Any = None) -> tuple[Tensor, float]:
        """New ids, and seconds until the first. prefix: keys and values of everything up to the last picture."""
        begin, clock, ids = now(self.device), FirstToken(self.device), self.input_ids
        if prefix is None:
            given: dict[str, Any] = {"pixel_values": self._normalised(frames)}
        else:
            given = {"past_key_values": copy.deepcopy(prefix)}
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
            stopping_criteria=StoppingCriteriaList([clock]), **given, **GREEDY,
        )  # fmt: skip
        return out[:, ids.shape[1] :], clock.seen - begin

    @torch.no_grad()
    def prefix(self, frames: Tensor) -> Any:
        """Keys and values of everything before the question."""
        ids = self.input_ids[:, :-QUESTION_TOKENS]
        return self.model(input_ids=ids, pixel_values=self._normalised(frames), use_cache=True).past_key_values

    def sample(self, frames: Tensor, prefix: Any = None) -> Sample:
        _, seconds = self.ask(frames, prefix=prefix)
        total = self.input_ids.shape[1]
        return Sample(seconds, QUESTION_TOKENS if prefix is not None else total, total)

    def _normalised(self, frames: Tensor) -> Tensor:
        return self.ours.vision_tower.normalise(frames.to(self.device)).to(self.ours.dtype)
