"""The growing sequence: one per episode, its keys and values kept from decision to decision."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.data.preprocess import encode_pieces
from llava.eval.decoding import Context, greedy_answers, left_padded
from llava.eval.frame_features import FrameFeatures
from llava.eval.model_side import ModelSide
from llava.eval.policies import Decision, EpisodeView
from llava.navigation.actions import DEFAULT_FALLBACK, Action, decide
from llava.navigation.prompt import PLACE_LENGTH, StreamingFormat


@dataclass
class _Group:
    """Episodes that began together and grow in step: row i of the context belongs to keys[i]."""

    keys: list[str]
    context: Context
    opening: list[Tensor]
    left_by_action: list[Tensor | None]
    kept: list[list[tuple[Tensor | None, Tensor]]]


class StreamingPolicy:
    """One growing sequence per episode, its keys and values kept: a decision costs one picture and a short answer.

    A picture that would not fit into `max_context` tokens starts the sequence again from the instruction and the newest
    half of the pictures (window policy "restart at half").

    Args:
        max_context: longest sequence; None = as long as the language model's positions reach.
    """

    name = "streaming"
    needs_every_frame = False

    def __init__(
        self,
        side: ModelSide,
        prompt: StreamingFormat,
        *,
        max_new_tokens: int | None = None,
        max_context: int | None = None,
        fallback: Action = DEFAULT_FALLBACK,
    ) -> None:
        if side.model.scene_split is not None:
            raise ValueError(
                "the model reads background and objects apart, and the growing sequence counts positions token by "
                "token, while the tokens of a split picture stand at places of its own and a picture may share the "
                "background of the first; train the model with the prompt format 'navila', or without scene_split"
            )
        self.side, self.prompt, self.fallback = side, prompt, fallback
        self.max_context = max_context or side.longest_sequence()
        self.stop_ids = side.stop_ids() | set(side.word_ids(prompt.end_of_turn))
        self.max_new_tokens = max_new_tokens or self._longest_answer()
        self._groups: list[_Group] = []
        self._over: set[str] = set()
        self._pictures = FrameFeatures(side)

    # ------------------------------------------------------------------------------------------------ the three verbs

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        self._drop_finished()
        pictures, is_new = self._pictures.of([(view.key, view.frames[-1]) for view in views])
        features = {view.key: picture for view, picture in zip(views, pictures, strict=True)}
        encoded = {view.key: new for view, new in zip(views, is_new, strict=True)}
        self._split_off_absent(set(features))
        known = {key for group in self._groups for key in group.keys}
        fresh = [view for view in views if view.key not in known]
        if fresh:
            self._groups.append(self._begin(fresh))
        decisions: dict[str, Decision] = {}
        for group in self._groups:
            if group.keys[0] in features:
                decisions |= self._advance(group, [features[key] for key in group.keys], encoded)
        return [decisions[view.key] for view in views]

    def finish(self, key: str) -> None:
        self._over.add(key)
        self._pictures.forget(key)

    def describe(self) -> dict[str, Any]:
        decoding = f"greedy, at most {self.max_new_tokens} tokens"
        return {
            "prompt": self.prompt.to_config(),
            "decoding": decoding,
            "window": f"restart at half of {self.max_context}",
        }

    # ---------------------------------------------------------------------------------------------------------- words

    def _longest_answer(self) -> int:
        """Just 1 where every answer is a token of its own: nobody needs to ask for the end token then."""
        vocabulary = getattr(self.prompt.action_format, "vocabulary", None)
        if vocabulary is None:
            return 32
        place = PLACE_LENGTH if self.prompt.names_place else 0
        longest = max(len(self.side.word_ids(answer)) for answer in vocabulary())
        return place + (1 if longest == 1 else longest + 1)

    def _opening(self, instruction: str) -> Tensor:
        pieces = self.prompt.opening(instruction)
        return self.side.embed(encode_pieces(pieces, self.side.tokenizer, self.side.spec)["input_ids"])  # pyright: ignore

    def _left_by(self, action: Action) -> Tensor | None:
        """What a taken action leaves in the sequence; None where answers are invisible to what follows."""
        ids = [token for piece in self.prompt.acted(action) for token in self.side.word_ids(piece.text or "")]
        return self.side.embed(torch.tensor(ids)) if ids else None

    # --------------------------------------------------------------------------------------------------------- groups

    def _begin(self, views: Sequence[EpisodeView]) -> _Group:
        return _Group(
            keys=[view.key for view in views],
            context=Context.empty(len(views), self.side.device),
            opening=[self._opening(view.instruction) for view in views],
            left_by_action=[None] * len(views),
            kept=[[] for _ in views],
        )

    def _drop_finished(self) -> None:
        for group in self._groups:
            alive = [i for i, key in enumerate(group.keys) if key not in self._over]
            if len(alive) < len(group.keys):
                _keep(group, alive)
        self._groups = [group for group in self._groups if group.keys]
        self._over.clear()

    def _split_off_absent(self, present: set[str]) -> None:
        """Episodes that do not decide this time wait in a group of their own."""
        for group in list(self._groups):
            here = [i for i, key in enumerate(group.keys) if key in present]
            if 0 < len(here) < len(group.keys):
                waiting = copy.deepcopy(group)
                _keep(waiting, [i for i in range(len(group.keys)) if i not in here])
                _keep(group, here)
                self._groups.append(waiting)

    def _advance(self, group: _Group, features: Sequence[Tensor], encoded: Mapping[str, bool]) -> dict[str, Decision]:
        new = [self._new_columns(group, row, picture) for row, picture in enumerate(features)]
        if group.context.columns + max(map(len, new)) + self.max_new_tokens > self.max_context:
            new = self._restart(group)
        block, real = left_padded(new)
        known = group.context.lengths.tolist()
        logits = group.context.feed(self.side.model, block, real)
        answers = greedy_answers(self.side.model, group.context, logits, self.stop_ids, self.max_new_tokens)
        decisions = {}
        for row, (key, ids) in enumerate(zip(group.keys, answers, strict=True)):
            text = self.side.text(ids)
            reading = decide(text, self.prompt.action_format, self.fallback)
            tokens = int(real[row].sum()) + len(ids) + 1
            decisions[key] = Decision(
                action=reading.action,
                understood=reading.understood,
                text=text,
                tokens=tokens,
                frames_encoded=int(encoded[key]),
                frames_reused=int(not encoded[key]),
                kept_tokens=known[row],
            )
            group.left_by_action[row] = self._left_by(reading.action)
        return decisions

    def _new_columns(self, group: _Group, row: int, picture: Tensor) -> Tensor:
        """What a decision appends to a row: what the last action left (at first the instruction), then the picture."""
        before = group.left_by_action[row] if group.context.columns else group.opening[row]
        group.kept[row].append((group.left_by_action[row], picture))
        return picture if before is None else torch.cat([before, picture.to(before.dtype)])

    def _restart(self, group: _Group) -> list[Tensor]:
        """Rows made anew from the instruction and the newest half of what a full context holds."""
        fixed = max(map(len, group.opening)) + self.max_new_tokens
        longest = max(len(p) + (0 if a is None else len(a)) for row in group.kept for a, p in row)
        count = max(1, (self.max_context - fixed) // longest // 2)
        if fixed + longest > self.max_context:
            raise ValueError(
                f"an instruction, a picture and an answer take {fixed + longest} tokens, the context holds "
                f"{self.max_context}; use a model with more positions or a shorter instruction"
            )
        rows = []
        for i, opening in enumerate(group.opening):
            group.kept[i] = group.kept[i][-count:]
            parts = [part for number, pair in enumerate(group.kept[i]) for part in (pair if number else pair[1:])]
            rows.append(torch.cat([opening, *(part for part in parts if part is not None)]))
        group.context = Context.empty(len(rows), self.side.device)
        return rows


def _keep(group: _Group, rows: list[int]) -> None:
    group.context.keep_rows(torch.tensor(rows, dtype=torch.long, device=group.context.mask.device))
    for name in ("keys", "opening", "left_by_action", "kept"):
        setattr(group, name, [getattr(group, name)[row] for row in rows])
