"""Whole episodes as one sequence each, joined from the same NaVILA records that `vlnce` takes one by one."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from llava.batch import Sample
from llava.data.base import DataContext, Dataset, Pictures, existing
from llava.data.dataset_impl.grounding import TOKENS_PER_QUESTION, Grounding
from llava.data.dataset_impl.vlnce import check_decision, episode_of
from llava.data.preprocess import encode_pieces
from llava.data.utils import BrokenSampleError, read_records
from llava.navigation.actions import STOP, Action, ActionKind, SentenceFormat
from llava.navigation.prompt import PLACE_LENGTH, Step, StreamingFormat

SENTENCES = SentenceFormat()


@dataclass(frozen=True)
class Decision:
    """What was seen last and what the expert did then."""

    num_frames: int
    frame: str
    answer: str


@dataclass(frozen=True)
class Window:
    """Consecutive decisions of one episode. `first` counts from the episode's first decision."""

    episode: str
    instruction: str
    first: int
    decisions: tuple[Decision, ...]
    problem: str = ""


def join_episodes(records: Iterable[dict[str, Any]]) -> list[Window]:
    """Episodes in the order in which they first occur, decisions sorted by the number of frames seen.

    Copies made by oversampling (same episode, same number of frames, same answer) count once. Records that contradict
    each other or lack a field leave their `problem` in the episode, which then counts as broken.
    """
    episodes: dict[tuple[str, str], dict[int, Decision]] = {}
    problems: dict[tuple[str, str], str] = {}
    for record in records:
        video_id = str(record.get("video_id", "?"))
        key = (episode_of(record), str(record.get("q")))
        decisions = episodes.setdefault(key, {})
        try:
            check_decision(record)
        except BrokenSampleError as error:
            problems.setdefault(key, f"record {video_id}: {error}")
            continue
        new = Decision(len(record["frames"]), record["frames"][-1], record["a"])
        if decisions.setdefault(new.num_frames, new) != new:
            problems.setdefault(
                key, f"two records {video_id} contradict: {decisions[new.num_frames].answer!r}, {new.answer!r}"
            )
    return [
        Window(episode, task, 0, tuple(found[n] for n in sorted(found)), problems.get((episode, task), ""))
        for (episode, task), found in episodes.items()
    ]


def cut_windows(episode: Window, max_decisions: int | None) -> list[Window]:
    """Windows of nearly equal size, at most `max_decisions` each; each decision is in one, each has the task."""
    total = len(episode.decisions)
    if max_decisions is None or total <= max_decisions:
        return [episode]
    count = -(-total // max_decisions)
    bounds = [total * i // count for i in range(count + 1)]
    return [
        Window(episode.episode, episode.instruction, a, episode.decisions[a:b], episode.problem)
        for a, b in pairwise(bounds)
    ]


class StreamingDataset(Dataset):
    """One sample per episode, or per window of one; see `navigation.prompt.StreamingFormat` for its sequence.

    Args:
        grounding_path: `{episode: [per decision {object: [column, distance] | null}]}`; needed for grounding questions,
            which are asides that cost no pictures.
    """

    def __init__(
        self,
        name: str,
        context: DataContext,
        *,
        data_path: str | Path,
        media_dir: str | Path,
        grounding_path: str | Path | None = None,
    ) -> None:
        super().__init__(name, context, media_dir)
        options = context.options
        episodes = join_episodes(read_records(existing(data_path, key="data_path", dataset=name)))
        self.num_episodes = len(episodes)
        self.records = [window for episode in episodes for window in cut_windows(episode, options.max_decisions)]
        self.pictures = Pictures(Path(media_dir), context.spec, keep_bytes=options.keep_pictures_mb * 2**20)
        self.prompt_format = StreamingFormat(
            instruction=options.instruction,
            answers_visible=options.answers_visible,
            end_of_turn=options.end_of_turn,
            names_place=options.names_place,
        )
        self.grounding = Grounding.of(self, grounding_path)

    def build(self, index: int) -> Sample:
        window = self.records[index]
        if window.problem:
            raise BrokenSampleError(window.problem)
        chance = random.Random(f"{self.context.options.seed}/{self.name}/{index}")
        steps = [self._step(window, number, chance) for number in range(len(window.decisions))]
        if self.context.options.learn_decisions:
            pieces = self.prompt_format.training_pieces(window.instruction, steps)
        else:
            pieces = self.prompt_format.question_pieces(steps)
        fields = encode_pieces(pieces, self.context.word_tokenizer, self.context.spec)
        images = self.pictures.read([decision.frame for decision in window.decisions])
        fields["images"] = images
        fields["sample_id"] = f"{self.name}/{window.episode}+{window.first}"
        return fields

    def _step(self, window: Window, number: int, chance: random.Random) -> Step:
        decision = window.decisions[number]
        action = SENTENCES.read(decision.answer)
        if action is None:
            raise BrokenSampleError(
                f"answer {decision.answer!r} names no action; expected e.g. {SENTENCES.write(STOP)!r}"
            )
        known, at = self.grounding, window.first + number
        questions = known.ask(window.episode, at, chance) if known else ()
        place = known.goal_place(window.episode, at) if known and self.context.options.names_place else ""
        return Step(frame=number, action=action, place=place, questions=questions)

    def num_characters(self, index: int) -> int:
        return len(self.records[index].instruction)

    def num_pictures(self, index: int) -> int:
        return len(self.records[index].decisions)

    def estimate_length(self, index: int) -> int:
        per_decision = self.context.options.grounding_questions * TOKENS_PER_QUESTION
        if self.context.options.learn_decisions:
            per_decision += self.tokens_per_answer
        return super().estimate_length(index) + round(self.num_pictures(index) * per_decision)

    @cached_property
    def tokens_per_answer(self) -> float:
        moves = [Action(kind, steps) for kind in ActionKind if kind != ActionKind.STOP for steps in (1, 2, 3)]
        place = "0" * PLACE_LENGTH
        answers = [self.prompt_format.answer_text(action, place) for action in (STOP, *moves)]
        return sum(map(len, self.context.word_tokenizer(answers, add_special_tokens=False)["input_ids"])) / len(answers)

    @cached_property
    def overhead(self) -> int:
        opening = self.prompt_format.opening("")
        return len(encode_pieces(opening, self.context.word_tokenizer, self.context.spec).get("input_ids", ()))

    def sample_text(self, index: int) -> str:
        return self.records[index].instruction

    def describe(self, index: int) -> str:
        window = self.records[index]
        return f"{self.name}[{index}] (episode {window.episode} from decision {window.first})"
