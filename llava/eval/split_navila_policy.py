"""The published form for models that read background and objects apart: every decision is one `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from llava.eval.frame_objects import FrameObjects
from llava.eval.model_side import ModelSide
from llava.eval.policies import Decision, EpisodeView
from llava.mm_utils import to_uint8_tensor
from llava.model.attention import layer_windows
from llava.model.scene_split.report import SceneReport
from llava.navigation.actions import DEFAULT_FALLBACK, Action, decide
from llava.navigation.prompt import NavilaFormat
from llava.scene.detector import ObjectDetector
from llava.scene.token_cache import BackgroundTokenCache, CacheConfig

COMPUTED = ("miss", "no cache", "rejected", "bypass")
"""How the provenance of a background begins that went through the tower."""


class SplitNavilaPolicy:
    """Every decision asks anew, with frames of the history, the current one and the instruction.

    An exact cache of backgrounds lies under all decisions: a background that was shown before is not encoded again, and
    leading frames that stay keep their keys and values. Objects are encoded whenever theirs are not known.

    Args:
        detector: finds the objects, instead of the one that the model's configuration names.
        kept_bytes: of that cache; 0 = none, everything is computed.
    """

    name = "navila"
    needs_every_frame = True

    def __init__(
        self,
        side: ModelSide,
        prompt: NavilaFormat,
        *,
        max_new_tokens: int = 32,
        fallback: Action = DEFAULT_FALLBACK,
        detector: ObjectDetector | None = None,
        kept_bytes: int = 2**30,
    ) -> None:
        self.side, self.prompt, self.fallback = side, prompt, fallback
        self.max_new_tokens = max_new_tokens
        self.stop_ids = side.stop_ids()
        self.objects = FrameObjects(side.model, detector)
        self.cache: BackgroundTokenCache | None = None
        if kept_bytes:
            self.cache = BackgroundTokenCache(CacheConfig(device_bytes=kept_bytes, device=side.device))
        self._question_ids: dict[str, Int[Tensor, " s"]] = {}
        self._has_windows = any(window is not None for window in layer_windows(side.model.llm.config).values())

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_new_tokens}
        if self._has_windows:  # which count padding too: prompts of unequal length are not read together
            return [decision for view in views for decision in self._decisions([view], greedy)]
        return self._decisions(views, greedy)

    def sample(self, instruction: str, frames: Sequence[np.ndarray], **generation: Any) -> Decision:
        """One decision with transformers' arguments for sampling and beams."""
        view = EpisodeView(key="sample", instruction=instruction, frames=list(frames))
        (decision,) = self._decisions([view], generation)
        self.finish(view.key)
        return decision

    def finish(self, key: str) -> None:
        self._question_ids.pop(key, None)
        self.objects.forget(key)

    def describe(self) -> dict[str, Any]:
        decoding = f"greedy, at most {self.max_new_tokens} tokens"
        return {"prompt": self.prompt.to_config(), "decoding": decoding, "objects": self.objects.describe()}

    def _decisions(self, views: Sequence[EpisodeView], generation: dict[str, Any]) -> list[Decision]:
        shown = [self.prompt.frame_indices(len(view.frames)) for view in views]
        ids, is_real = self._left_padded([self._question(view) for view in views])
        answer = self.side.model.generate(
            ids,
            torch.cat([self._pixels(view, indices) for view, indices in zip(views, shown, strict=True)]),
            attention_mask=is_real,
            object_patches=torch.cat([self.objects.of(view, own) for view, own in zip(views, shown, strict=True)]),
            background_cache=self.cache,
            return_provenance=True,
            **generation,
        )
        rows = answer.output.tolist()
        return [self._decision(rows[row], answer.report, row, own) for row, own in enumerate(shown)]

    def _question(self, view: EpisodeView) -> Int[Tensor, " s"]:
        if view.key not in self._question_ids:
            self._question_ids[view.key] = self.side.question_ids(self.prompt.question(view.instruction))
        return self._question_ids[view.key]

    def _left_padded(self, rows: Sequence[Int[Tensor, " _"]]) -> tuple[Int[Tensor, "b s"], Bool[Tensor, "b s"]]:
        """On the model's device; what stands in the padding is never read."""
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        is_real = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, longest - len(row) :], is_real[number, longest - len(row) :] = row, True
        return ids.to(self.side.device), is_real.to(self.side.device)

    def _pixels(self, view: EpisodeView, indices: Sequence[int]) -> UInt8[Tensor, "n 3 size size"]:
        """At the tower's size; history that is not there yet is black."""
        black = np.zeros_like(view.frames[0])
        frames = {index: view.frames[index] if index >= 0 else black for index in indices}
        resized = {index: to_uint8_tensor(frame, self.side.spec) for index, frame in frames.items()}
        return torch.stack([resized[index] for index in indices]).to(self.side.device)

    def _decision(self, new_ids: list[int], report: SceneReport, row: int, indices: Sequence[int]) -> Decision:
        stop = next((place for place, token in enumerate(new_ids) if token in self.stop_ids), len(new_ids))
        text = self.side.text(new_ids[:stop])
        reading = decide(text, self.prompt.action_format, self.fallback)
        own = [picture.background for picture in report.pictures if picture.row == row]
        encoded = {index for index, word in zip(indices, own, strict=True) if index >= 0 and word.startswith(COMPUTED)}
        return Decision(
            action=reading.action,
            understood=reading.understood,
            text=text,
            tokens=report.prompt_tokens[row] + stop + 1,
            frames_encoded=len(encoded),
            frames_reused=len({index for index in indices if index >= 0} - encoded),
            kept_tokens=report.cached_tokens[row],
        )
