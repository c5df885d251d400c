"""How a navigation task is put to a language model: training, evaluation and serving ask this table and nothing else.

A row answers three questions: records -> training conversation; (instruction, frames, actions so far) -> what the model
is shown; answer -> action. `navila` asks anew at every decision, `streaming` lets one sequence grow with the episode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.navigation.actions import Action, ActionFormat, ArrowFormat, SentenceFormat
from llava.utils.registry import Registry, suggest
from llava.video.frame_sampling import vlnce_indices

Message = dict[str, str]
"""One turn of a LLaVA record: {"from": "human" | "gpt", "value": text}."""
InstructionStyle = Literal["normalised", "raw"]
PLACE_LENGTH = 2
"""Digits of a place: column of the picture and metres; `00` = not in view."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a sequence: a text or one picture.

    Attributes:
        text: words as they are tokenised, end-of-turn token included; None for a picture.
        frame: index of the picture in its episode; None for a text.
        supervised: True where the model learns to say the text.
        branch: 0 is the trunk that later pieces see; k > 0 an aside that only pieces of the same branch see.
        answer_to: frame of the decision that the text answers; None for every other text.
    """

    text: str | None = None
    frame: int | None = None
    supervised: bool = False
    branch: int = 0
    answer_to: int | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.frame is None):
            raise ValueError(f"a piece is either a text or a frame, got text={self.text!r} and frame={self.frame}")
        if self.frame is not None and (self.supervised or self.branch or self.answer_to is not None):
            raise ValueError(f"frame {self.frame} must stand unsupervised in the trunk (branch 0), got {self}")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decision of an episode: the picture seen, the right action, and questions about that picture.

    `place` says where the goal is in it, for formats whose answers name it.
    """

    frame: int
    action: Action
    place: str = ""
    questions: Sequence[tuple[str, str]] = ()


def normalise_instruction(instruction: str) -> str:
    """One line, each sentence with a capital first letter and otherwise lower case, no space before a full stop.

    >>> normalise_instruction("Walk down\\nthe hall . Turn LEFT .")
    'Walk down the hall. Turn left.'
    """
    line = instruction.replace("\r\n", " ").replace("\n", " ").capitalize()
    line = re.sub(r"\. (\w)", lambda found: ". " + found[1].upper(), line)
    return re.sub(r"\s+\.", ".", line)


def _shown(instruction: str, style: InstructionStyle) -> str:
    return normalise_instruction(instruction) if style == "normalised" else instruction


def route_description_messages(num_frames: int, answer: str | None = None) -> list[Message]:
    """The inverse task of EnvDrop records: from a video of a walk to its instruction."""
    question = (
        "Assume you are a robot designed for navigation. You are provided with captured images "
        f"sequences {_pictures(num_frames)}. "
        "Based on this image sequence, please describe the navigation trajectory of the robot."
    )
    return _messages(question, answer)


def _pictures(count: int) -> str:
    return f"{DEFAULT_IMAGE_TOKEN}\n" * count


def _messages(question: str, answer: str | None) -> list[Message]:
    asked = [{"from": "human", "value": question}]
    return asked if answer is None else [*asked, {"from": "gpt", "value": answer}]


class _StoredFormat:
    """What both rows share: their options are what a checkpoint stores under `navigation_prompt`."""

    name: ClassVar[str]
    action_format: ActionFormat

    def to_config(self) -> dict[str, Any]:
        return {"format": self.name, **{key: value for key, value in vars(self).items() if key != "action_format"}}

    def read_action(self, answer: str) -> Action | None:
        """None where the answer names no action: count it and do the declared fallback (`actions.decide`)."""
        return self.action_format.read(answer)


@dataclass(frozen=True, kw_only=True)
class NavilaFormat(_StoredFormat):
    """The published prompt: `num_frames` pictures chosen from the history, the last one current, then the task."""

    name: ClassVar[str] = "navila"
    instruction: InstructionStyle = "normalised"
    num_frames: int = 8
    action_format: ActionFormat = field(default_factory=SentenceFormat)

    def frame_indices(self, num_seen: int) -> list[int]:
        """Which of the frames seen so far are shown; BLACK_FRAME (-1) fills up a short history at the front."""
        return vlnce_indices(num_seen, self.num_frames)

    def question(self, instruction: str) -> str:
        """The text with its placeholders, to the byte."""
        return (
            "Imagine you are a robot programmed for navigation tasks. You have been given a video of historical "
            f"observations {_pictures(self.num_frames - 1)}, and current observation {_pictures(1)}. "
            f'Your assigned task is: "{_shown(instruction, self.instruction)}" '
            "Analyze this series of images to decide your next action, which could be turning left or right by a "
            "specific degree, moving forward a certain distance, or stop if the task is completed."
        )

    def training_messages(self, instruction: str, answer: str | Action) -> list[Message]:
        answer = self.action_format.write(answer) if isinstance(answer, Action) else answer
        return _messages(self.question(instruction), answer)

    def inference_messages(self, instruction: str) -> list[Message]:
        return _messages(self.question(instruction), None)


@dataclass(frozen=True, kw_only=True)
class StreamingFormat(_StoredFormat):
    """One growing sequence per episode: the instruction, then picture, answer, picture, answer ...

    Attributes:
        answers_visible: False puts every answer on a branch of its own: later decisions cannot copy earlier ones.
        end_of_turn: special token that closes an answer.
        names_place: an answer first says where the goal is, two digits as in the grounding questions, then what to do.
    """

    name: ClassVar[str] = "streaming"
    instruction: InstructionStyle = "normalised"
    answers_visible: bool = False
    end_of_turn: str = "<|eot_id|>"
    names_place: bool = False
    action_format: ActionFormat = field(default_factory=ArrowFormat)

    def opening(self, instruction: str) -> list[Piece]:
        return [Piece(text=f"Your task is: {_shown(instruction, self.instruction)}\n")]

    def answer_text(self, action: Action, place: str = "") -> str:
        if self.names_place and len(place) != PLACE_LENGTH:
            raise ValueError(f"place of the goal is {place!r}, expected {PLACE_LENGTH} digits; 00 = not in view")
        return (place if self.names_place else "") + self.action_format.write(action) + self.end_of_turn

    def training_pieces(self, instruction: str, steps: Sequence[Step]) -> list[Piece]:
        """The whole episode with every answer supervised; questions are asides that nothing else sees."""
        pieces, branch = self.opening(instruction), 0
        for step in steps:
            answer_branch = 0 if self.answers_visible else (branch := branch + 1)
            said = self.answer_text(step.action, step.place)
            answer = Piece(text=said, supervised=True, branch=answer_branch, answer_to=step.frame)
            asides = self._asides(step, after=branch)
            branch += len(step.questions)
            # the answer directly follows its picture, whose last token must predict it
            pieces += [Piece(frame=step.frame), answer, *asides]
        return pieces

    def question_pieces(self, steps: Sequence[Step]) -> list[Piece]:
        """Only the pictures and the questions about them: what a model learns to see before it learns to walk."""
        pieces: list[Piece] = []
        branch = 0
        for step in steps:
            pieces += [Piece(frame=step.frame), *self._asides(step, after=branch)]
            branch += len(step.questions)
        return pieces

    def _asides(self, step: Step, *, after: int) -> list[Piece]:
        asides: list[Piece] = []
        for branch, (question, reply) in enumerate(step.questions, start=after + 1):
            asides.append(Piece(text=question, branch=branch))
            asides.append(Piece(text=reply + self.end_of_turn, supervised=True, branch=branch))
        return asides

    def observed(self, frame: int) -> list[Piece]:
        """What one more picture appends; the model answers right after it."""
        return [Piece(frame=frame)]

    def acted(self, action: Action) -> list[Piece]:
        """What a taken action leaves in the sequence: nothing while answers are invisible."""
        return [Piece(text=self.action_format.write(action) + self.end_of_turn)] if self.answers_visible else []

    def inference_pieces(self, instruction: str, frames: Sequence[int], actions: Sequence[Action]) -> list[Piece]:
        """All that the model has seen when it is to answer the last of `frames`; one action between any two of them."""
        if len(actions) != len(frames) - 1:
            raise ValueError(f"{len(frames)} frames need {len(frames) - 1} actions between them, got {len(actions)}")
        pieces = [*self.opening(instruction), *self.observed(frames[0])]
        for action, frame in zip(actions, frames[1:], strict=True):
            pieces += [*self.acted(action), *self.observed(frame)]
        return pieces


PromptFormat = NavilaFormat | StreamingFormat
PROMPT_FORMATS: Registry[type[PromptFormat]] = Registry("navigation prompt format")
PROMPT_FORMATS.register("navila")(NavilaFormat)
PROMPT_FORMATS.register("streaming")(StreamingFormat)


def build_prompt_format(config: Mapping[str, Any]) -> PromptFormat:
    """From the checkpoint's `navigation_prompt`, e.g. {"format": "navila", "instruction": "raw", "num_frames": 8}."""
    options = dict(config)
    row = PROMPT_FORMATS[options.pop("format", "navila")]
    known = [f.name for f in fields(row) if f.name != "action_format"]
    for option in options:
        if option not in known:
            raise ValueError(f"prompt format '{row.name}' has no option '{option}'{suggest(option, known)}")
    if options.get("instruction", "raw") not in ("raw", "normalised"):
        raise ValueError(f"instruction is {options['instruction']!r}, expected 'raw' or 'normalised'")
    return row(**options)
