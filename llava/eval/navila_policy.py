"""The published form: every decision asks anew, with frames of the history, the current one and the instruction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llava.eval.decoding import Context, greedy_answers, left_padded
from llava.eval.frame_features import FrameFeatures
from llava.eval.model_side import ModelSide
from llava.eval.policies import Decision, EpisodeView
from llava.model.attention import layer_windows
from llava.model.scene_split.kv_chain import share_chains
from llava.model.scene_split.prefix import KvPrefix, compute_prefix
from llava.navigation.actions import DEFAULT_FALLBACK, Action, decide
from llava.navigation.prompt import NavilaFormat


@dataclass
class _Question:
    """The prompt of one episode: embeddings with holes for its pictures, and the features of its frames by index.

    Attributes:
        shown: frames of the last prompt; kept: its keys and values up to its last picture.
    """

    embeds: Float[Tensor, "s d"]
    is_picture: Tensor
    features: dict[int, Tensor] = field(default_factory=dict)
    shown: list[int] = field(default_factory=list)
    kept: KvPrefix | None = None


BLACK = "the black frame"
"""Name under which its features are kept: that of no episode, whose names are unique numbers or paths."""


class NavilaPolicy:
    """Every decision asks anew.

    A frame is encoded when its content is first shown and its features are kept until the episode ends; the fixed words
    are embedded once per episode, and those before the first picture, which all episodes share, are read once for all.
    As long as the first frames are those of the last prompt their keys and values are used again; where the sampling
    of the history has moved on, the rest is read anew. All running episodes are answered in one left-padded batch.

    Args:
        kept_bytes: of keys and values of last prompts, all running episodes together; an episode for which no room is
            left reads its prompts whole.
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
        kept_bytes: int = 4 * 2**30,
    ) -> None:
        if side.model.scene_split is not None:
            raise ValueError(
                "the model reads background and objects apart; ask it with SplitNavilaPolicy (make_policy)"
            )
        self.side, self.prompt, self.fallback = side, prompt, fallback
        self.max_new_tokens = max_new_tokens
        self.stop_ids = side.stop_ids()
        self._questions: dict[str, _Question] = {}
        self._black: Tensor | None = None
        self._opening: KvPrefix | None = None
        self._pictures = FrameFeatures(side)
        has_windows = any(window is not None for window in layer_windows(side.model.llm.config).values())
        self.kept_bytes = 0 if has_windows else kept_bytes  # windows count the padding between prefix and rest

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        shown = [self.prompt.frame_indices(len(view.frames)) for view in views]
        encoded = self._encode_new(views, shown)
        rows = [self._row(view, indices) for view, indices in zip(views, shown, strict=True)]
        known = [self._known_prefix(view, indices) for view, indices in zip(views, shown, strict=True)]
        cache, is_real = share_chains([[prefix] for prefix in known], 1, rows[0].device)
        context = Context(cache=cache, mask=is_real, lengths=is_real.sum(dim=1))
        block, real = left_padded([row[prefix.length :] for row, prefix in zip(rows, known, strict=True)])
        logits = context.feed(self.side.model, block, real)
        lengths = context.lengths.tolist()
        answers = greedy_answers(self.side.model, context, logits, self.stop_ids, self.max_new_tokens)
        self._keep(views, shown, context)
        costs = [
            {
                "frames_encoded": encoded[view.key],
                "frames_reused": len({index for index in indices if index >= 0}) - encoded[view.key],
                "kept_tokens": prefix.length,
            }
            for view, indices, prefix in zip(views, shown, known, strict=True)
        ]
        given = zip(answers, lengths, costs, strict=True)
        return [self._decision(ids, length, **cost) for ids, length, cost in given]

    def finish(self, key: str) -> None:
        self._questions.pop(key, None)
        self._pictures.forget(key)

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

    def _decision(self, ids: list[int], prompt_tokens: int, **costs: int) -> Decision:
        text = self.side.text(ids)
        reading = decide(text, self.prompt.action_format, self.fallback)
        tokens = prompt_tokens + len(ids) + 1
        return Decision(action=reading.action, understood=reading.understood, text=text, tokens=tokens, **costs)

    def _question(self, view: EpisodeView) -> _Question:
        if view.key not in self._questions:
            ids = self.side.question_ids(self.prompt.question(view.instruction))
            is_picture = ids == self.side.image_token_id
            self._questions[view.key] = _Question(self.side.embed(ids), is_picture.to(self.side.device))
        return self._questions[view.key]

    def _known_prefix(self, view: EpisodeView, indices: Sequence[int]) -> KvPrefix:
        """Keys and values up to the last of the leading frames that the last prompt showed too."""
        question = self._question(view)
        same = 0
        while same < min(len(question.shown), len(indices)) and question.shown[same] == indices[same]:
            same += 1
        if question.kept is None or not same:
            return self._shared_opening(view)
        return question.kept.first(_picture_ends(question, len(indices))[same - 1])

    def _shared_opening(self, view: EpisodeView) -> KvPrefix:
        """Keys and values of the words before the first picture: the same ones in every question."""
        if self._opening is None:
            question = self._question(view)
            row = question.embeds[: int(question.is_picture.int().argmax())][None]
            if not row.shape[1]:
                raise ValueError("the prompt begins with a picture, expected words before it; choose another template")
            positions = torch.arange(row.shape[1], device=row.device)[None]
            self._opening = compute_prefix(self.side.model.llm, row, positions)
        return self._opening

    def _keep(self, views: Sequence[EpisodeView], shown: Sequence[list[int]], context: Context) -> None:
        """Keys and values of these prompts, for the next decisions of the same episodes."""
        for view in views:
            self._question(view).kept = None
        free = self.kept_bytes - sum(q.kept.num_bytes for q in self._questions.values() if q.kept is not None)
        for row, (view, indices) in enumerate(zip(views, shown, strict=True)):
            question = self._question(view)
            question.shown = list(indices)
            columns = context.mask[row].nonzero()[: _picture_ends(question, len(indices))[-1], 0]
            layers: Any = context.cache.layers
            kept = KvPrefix(
                keys=tuple(layer.keys[row][:, columns][None] for layer in layers),
                values=tuple(layer.values[row][:, columns][None] for layer in layers),
            )
            if kept.num_bytes <= free:
                question.kept = kept
                free -= kept.num_bytes

    def _encode_new(self, views: Sequence[EpisodeView], shown: Sequence[Sequence[int]]) -> Counter[str]:
        """One vision batch for the frames that are shown now and were never encoded; how many there were by episode."""
        wanted = [
            (view, index)
            for view, indices in zip(views, shown, strict=True)
            for index in sorted(set(indices))
            if index >= 0 and index not in self._question(view).features
        ]
        pictures = [(view.key, view.frames[index]) for view, index in wanted]
        needs_black = self._black is None and any(index < 0 for indices in shown for index in indices)
        if needs_black:
            pictures.append((BLACK, np.zeros_like(views[0].frames[0])))
        features, is_new = self._pictures.of(pictures)
        for (view, index), value in zip(wanted, features, strict=False):
            self._questions[view.key].features[index] = value
        if needs_black:
            self._black = features[-1]
        return Counter(view.key for (view, _), new in zip(wanted, is_new, strict=False) if new)

    def _row(self, view: EpisodeView, indices: Sequence[int]) -> Tensor:
        question = self._question(view)
        row = question.embeds.clone()
        pictures = [self._black if index < 0 else question.features[index] for index in indices]
        row[question.is_picture] = torch.cat(pictures).to(row.dtype)  # pyright: ignore[reportArgumentType,reportCallIssue]
        return row


def _picture_ends(question: _Question, num_pictures: int) -> list[int]:
    """Slots before the end of each picture."""
    slots = question.is_picture.nonzero()[:, 0]
    return (slots[len(slots) // num_pictures - 1 :: len(slots) // num_pictures] + 1).tolist()
