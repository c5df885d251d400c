"""The published form: every decision asks anew, with frames of the history, the current one and the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llava.eval.decoding import Context, greedy_answers, left_padded
from llava.eval.model_side import ModelSide
from llava.eval.policies import Decision, EpisodeView
from llava.navigation.actions import DEFAULT_FALLBACK, Action, decide
from llava.navigation.prompt import NavilaFormat


@dataclass
class _Question:
    """The prompt of one episode: embeddings with holes for its pictures, and the features of its frames by index."""

    embeds: Float[Tensor, "s d"]
    is_picture: Tensor
    features: dict[int, Tensor] = field(default_factory=dict)


class NavilaPolicy:
    """Every decision asks anew.

    A frame is encoded when it is first shown and its features are kept until the episode ends; the fixed words are
    embedded once per episode, and those before the first picture, which all episodes share, are read once for all; all
    running episodes are answered in one left-padded batch.
    """

    name = "navila"
    needs_every_frame = True

    def __init__(
        self, side: ModelSide, prompt: NavilaFormat, *, max_new_tokens: int = 32, fallback: Action = DEFAULT_FALLBACK
    ) -> None:
        self.side, self.prompt, self.fallback = side, prompt, fallback
        self.max_new_tokens = max_new_tokens
        self.stop_ids = side.stop_ids()
        self._questions: dict[str, _Question] = {}
        self._black: Tensor | None = None
        self._opening: Context | None = None

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        shown = [self.prompt.frame_indices(len(view.frames)) for view in views]
        self._encode_new(views, shown)
        rows = [self._row(view, indices) for view, indices in zip(views, shown, strict=True)]
        context = self._shared_opening(views[0], rows[0]).repeated(len(views))
        block, real = left_padded([row[context.columns :] for row in rows])
        logits = context.feed(self.side.model, block, real)
        lengths = context.lengths.tolist()
        answers = greedy_answers(self.side.model, context, logits, self.stop_ids, self.max_new_tokens)
        return [self._decision(ids, length) for ids, length in zip(answers, lengths, strict=True)]

    def finish(self, key: str) -> None:
        self._questions.pop(key, None)

    def describe(self) -> dict[str, Any]:
        return {"prompt": self.prompt.to_config(), "decoding": f"greedy, at most {self.max_new_tokens} tokens"}

    @torch.no_grad()
    def sample(self, instruction: str, frames: Sequence[np.ndarray], **generation: Any) -> Decision:
        """One decision through the model's own `generate`, with transformers' arguments for sampling and beams."""
        view = EpisodeView(key="sample", instruction=instruction, frames=list(frames))
        indices = self.prompt.frame_indices(len(view.frames))
        self._encode_new([view], [indices])
        embeds = self._row(view, indices)[None]
        self.finish(view.key)
        stops, pad = sorted(self.stop_ids), self.side.tokenizer.pad_token_id
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        out = self.side.model.llm.generate(
            inputs_embeds=embeds, attention_mask=mask, eos_token_id=stops, pad_token_id=pad, **generation
        )
        kept = [token for token in out[0].tolist() if token not in self.stop_ids]
        return self._decision(kept, embeds.shape[1])

    def _decision(self, ids: list[int], prompt_tokens: int) -> Decision:
        text = self.side.text(ids)
        reading = decide(text, self.prompt.action_format, self.fallback)
        tokens = prompt_tokens + len(ids) + 1
        return Decision(action=reading.action, understood=reading.understood, text=text, tokens=tokens)

    def _question(self, view: EpisodeView) -> _Question:
        if view.key not in self._questions:
            ids = self.side.question_ids(self.prompt.question(view.instruction))
            is_picture = ids == self.side.image_token_id
            self._questions[view.key] = _Question(self.side.embed(ids), is_picture.to(self.side.device))
        return self._questions[view.key]

    def _shared_opening(self, view: EpisodeView, row: Tensor) -> Context:
        """Keys and values of the words before the first picture: the same ones in every question."""
        if self._opening is None:
            length = int(self._question(view).is_picture.int().argmax())
            context = Context.empty(1, row.device)
            if length:
                context.feed(
                    self.side.model, row[None, :length], torch.ones(1, length, dtype=torch.bool, device=row.device)
                )
            self._opening = context
        return self._opening

    def _encode_new(self, views: Sequence[EpisodeView], shown: Sequence[Sequence[int]]) -> None:
        """One vision batch for the frames that are shown now and were never encoded."""
        wanted = [
            (view, index)
            for view, indices in zip(views, shown, strict=True)
            for index in sorted(set(indices))
            if index >= 0 and index not in self._question(view).features
        ]
        pictures = [view.frames[index] for view, index in wanted]
        if self._black is None and any(index < 0 for indices in shown for index in indices):
            pictures.append(np.zeros_like(views[0].frames[0]))
        if not pictures:
            return
        features = self.side.picture_features(pictures)
        for (view, index), value in zip(wanted, features, strict=False):
            self._questions[view.key].features[index] = value
        if len(pictures) > len(wanted):
            self._black = features[-1]

    def _row(self, view: EpisodeView, indices: Sequence[int]) -> Tensor:
        question = self._question(view)
        row = question.embeds.clone()
        pictures = [self._black if index < 0 else question.features[index] for index in indices]
        row[question.is_picture] = torch.cat(pictures).to(row.dtype)  # pyright: ignore[reportArgumentType,reportCallIssue]
        return row
