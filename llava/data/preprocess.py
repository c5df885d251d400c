"""Dialogues and pieces become ids and labels. Labels follow from how the text was built, never from searching in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from llava.batch import Sample, VisualSpec
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import ASSISTANT, USER, Conversation, Messages, SeparatorStyle, TextPiece, Turn
from llava.navigation.prompt import Piece
from llava.utils.tokenizer import TokenizationCompat, Tokenizer, encode_marked, ensure_special_tokens

__all__ = [
    "Encoded",
    "Layout",
    "TokenizationCompat",
    "encode_conversation",
    "encode_pieces",
    "lay_out_pieces",
    "preprocess_multimodal",
]


class Encoded(NamedTuple):
    """One dialogue; every picture is still a single `image_token_id`. labels[i] is the target at i, not shifted."""

    input_ids: Int[Tensor, " s"]
    labels: Int[Tensor, " s"]


def encode_conversation(
    turns: Messages,
    tokenizer: Tokenizer,
    template: Conversation,
    *,
    compat: TokenizationCompat | None = None,
    image_token_id: int = IMAGE_TOKEN_INDEX,
) -> Encoded:
    """Ids and labels of a training dialogue: answers and their end tokens are trained, everything else is not.

    Surrounding white space of every turn is dropped. Leading turns of the assistant are dropped, as no template but
    `auto` has a place for them.

    Raises:
        ValueError: for a dialogue with nothing to learn.
    """
    cleaned = [Turn(turn.role, (turn.text or "").strip()) for turn in map(Turn.parse, turns)]
    if template.style is not SeparatorStyle.AUTO:
        while cleaned and cleaned[0].role == ASSISTANT:
            cleaned.pop(0)
    if not any(turn.role == ASSISTANT for turn in cleaned):
        raise ValueError(
            f"a training dialogue needs an answer after a question, got turns of {[t.role for t in cleaned]}"
        )
    if template.style is SeparatorStyle.PLAIN:
        pieces = _caption_pieces(cleaned, template)
    else:
        pieces = template.pieces(cleaned, tokenizer=tokenizer)
    ids, labels = encode_marked(pieces, tokenizer, compat=compat or TokenizationCompat(), image_token_id=image_token_id)
    return Encoded(torch.tensor(ids), torch.tensor(labels))


def _caption_pieces(turns: Sequence[Turn], template: Conversation) -> list[TextPiece]:
    """PLAIN pairs: the picture, then its caption; the words of the question are not shown."""
    if [turn.role for turn in turns] != [USER, ASSISTANT]:
        raise ValueError(f"template 'plain' takes one question and one answer, got turns of {[t.role for t in turns]}")
    pictures = DEFAULT_IMAGE_TOKEN * (turns[0].text or "").count(DEFAULT_IMAGE_TOKEN)
    return [TextPiece(pictures), TextPiece(f"{turns[1].text}{template.sep}", supervised=True)]


def preprocess_multimodal(
    conversation: Sequence[Mapping[str, Any]], *, mm_use_im_start_end: bool = False, mmtag: bool = False
) -> list[dict[str, str]]:
    """Put placeholders into the form of the LLaVA family; the records given are not changed.

    Without any placeholder one is put before the first turn. Otherwise positions are kept, a line break follows each
    and the text around loses its white space.
    """
    turns = [{"from": str(turn["from"]), "value": str(turn["value"])} for turn in conversation]
    if turns and not any(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns):
        turns[0]["value"] = f"{DEFAULT_IMAGE_TOKEN}\n{turns[0]['value']}"
    shown = f"<Image>{DEFAULT_IMAGE_TOKEN}\n</Image>" if mmtag else f"{DEFAULT_IMAGE_TOKEN}\n"
    if mm_use_im_start_end:
        shown = DEFAULT_IM_START_TOKEN + shown + DEFAULT_IM_END_TOKEN
    for turn in turns:
        turn["value"] = _place_pictures(turn["value"], shown)
    return turns


def _place_pictures(text: str, shown: str) -> str:
    placed, *rest = (part.strip() for part in text.split(DEFAULT_IMAGE_TOKEN))
    for index, part in enumerate(rest, start=1):
        before = f"{placed} " if placed else ""
        is_end = index == len(rest) and not part
        line_break = "" if shown.endswith("\n") or is_end else "\n"
        placed = before + shown + line_break + part
    return placed


@dataclass
class _Cursor:
    """Where the next token goes while pieces are laid out."""

    trunk_position: int = 0
    branch: int = 0
    branch_position: int = 0
    frame: int = -1

    def positions(self, branch: int, count: int) -> list[int]:
        if branch != self.branch:
            self.branch, self.branch_position = branch, self.trunk_position
        start = self.branch_position if branch else self.trunk_position
        if branch:
            self.branch_position = start + count
        else:
            self.trunk_position = start + count
        return list(range(start, start + count))


class Layout(NamedTuple):
    """A sequence, and the token that ends the answer to each frame (`Piece.answer_to`)."""

    sample: Sample
    answer_ends: dict[int, int]


def encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, spec: VisualSpec) -> Sample:
    """The sequence of `lay_out_pieces`."""
    return lay_out_pieces(pieces, tokenizer, spec).sample


def lay_out_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, spec: VisualSpec) -> Layout:
    """A streaming episode as one training sequence, placeholders expanded; pictures are added by the caller.

    The trunk is numbered as if no branch were there; a branch goes on from where it hangs. frame_ids counts the
    pictures in reading order. A beginning-of-text token is put first where the tokenizer has one.

    Raises:
        ValueError: where a supervised token could not be predicted from what it may see: it begins a branch, or goes on
            with the trunk, right after a token of another branch.
    """
    image_token_id = ensure_special_tokens(tokenizer)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    cursor, used = _Cursor(), {0}
    ids, labels, branches = list(bos), [IGNORE_INDEX] * len(bos), [0] * len(bos)
    frames, positions = [-1] * len(bos), cursor.positions(0, len(bos))
    answer_ends: dict[int, int] = {}
    picture, words = [image_token_id] * spec.tokens_per_image, _words(pieces, tokenizer)
    for piece in pieces:
        tokens = picture if piece.text is None else words[piece.text]
        cursor.frame += piece.text is None
        _check_branch(piece, cursor.branch, used, bool(ids))
        used.add(piece.branch)
        ids += tokens
        labels += tokens if piece.supervised else [IGNORE_INDEX] * len(tokens)
        branches += [piece.branch] * len(tokens)
        frames += [cursor.frame] * len(tokens)
        positions += cursor.positions(piece.branch, len(tokens))
        if piece.answer_to is not None:
            answer_ends[piece.answer_to] = len(ids) - 1
    labels[:1] = [IGNORE_INDEX] * len(labels[:1])
    sample = Sample(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        branch_ids=torch.tensor(branches, dtype=torch.int64),
        frame_ids=torch.tensor(frames, dtype=torch.int64),
        position_ids=torch.tensor(positions, dtype=torch.int64),
    )
    return Layout(sample, answer_ends)


def hang_questions(
    sample: Sample, questions: Sequence[tuple[str, str]], tokenizer: Tokenizer, end_of_turn: str
) -> Sample:
    """A dialogue with one answer at its end, and questions asked at the same place without seeing the answer.

    The answer becomes branch 1, every question with its reply one more; all go on from the token before the answer.
    """
    if not questions:
        return sample
    trained = (sample["labels"] != IGNORE_INDEX).nonzero()[:, 0]
    begin, length = int(trained[0]), len(sample["labels"])
    ids: list[int] = []
    labels: list[int] = []
    branches, positions = [1] * (length - begin), []
    for branch, (question, reply) in enumerate(questions, start=2):
        asked = tokenizer(question, add_special_tokens=False).input_ids
        said = tokenizer(reply + end_of_turn, add_special_tokens=False).input_ids
        ids += asked + said
        labels += [IGNORE_INDEX] * len(asked) + said
        branches += [branch] * (len(asked) + len(said))
        positions += range(begin, begin + len(asked) + len(said))
    return {
        **sample,
        "input_ids": torch.cat([sample["input_ids"], torch.tensor(ids)]),
        "labels": torch.cat([sample["labels"], torch.tensor(labels)]),
        "branch_ids": torch.cat([torch.zeros(begin, dtype=torch.int64), torch.tensor(branches)]),
        "position_ids": torch.cat([torch.arange(length), torch.tensor(positions)]),
        "frame_ids": torch.cat([sample["frame_ids"], sample["frame_ids"][-1:].expand(len(ids))]),
    }


def _words(pieces: Sequence[Piece], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Ids of every text, each tokenised on its own; one call, as an episode repeats few texts."""
    texts = sorted({piece.text for piece in pieces if piece.text is not None})
    return dict(zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True)) if texts else {}


def _check_branch(piece: Piece, previous: int, used: set[int], begun: bool) -> None:
    if piece.branch == previous:
        return
    if piece.branch and piece.branch in used:
        raise ValueError(
            f"branch {piece.branch} is taken up again after branch {previous}; its pieces must stand together"
        )
    if piece.supervised and previous != 0:
        raise ValueError(
            f"supervised text {piece.text!r} of branch {piece.branch} follows branch {previous}, which it cannot see; "
            "put it directly behind the trunk or begin the branch with an unsupervised text"
        )
    if not begun:
        raise ValueError(f"branch {piece.branch} has no trunk to hang from; begin with a text or a picture of branch 0")
