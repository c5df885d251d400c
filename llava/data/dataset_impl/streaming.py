"""Whole episodes as one sequence each, joined from the same NaVILA records that `vlnce` takes one by one."""

from __future__ import annotations

import random
from functools import cached_property
from pathlib import Path

from llava.batch import ClipSample, Sample
from llava.data.base import DataContext, Dataset, Pictures, existing
from llava.data.clips import make_clip
from llava.data.dataset_impl.episodes import Executed, Window, cut_windows, join_episodes
from llava.data.dataset_impl.grounding import TOKENS_PER_QUESTION, Grounding
from llava.data.geometry import place_of_frame
from llava.data.preprocess import encode_pieces, lay_out_pieces
from llava.data.utils import BrokenSampleError, read_records
from llava.navigation.actions import STOP, Action, ActionKind, SentenceFormat
from llava.navigation.prompt import PLACE_LENGTH, Step, StreamingFormat

SENTENCES = SentenceFormat()


class StreamingDataset(Dataset):
    """One sample per episode, or per window of one; see `navigation.prompt.StreamingFormat` for its sequence.

    Args:
        grounding_path: `{episode: [per decision {object: [column, distance] | null}]}`; needed for grounding questions,
            which are asides that cost no pictures.
        actions_path: executed low-level actions, see `episodes.read_executed`; read for clips only, and needed where
            what was executed differs from the answers.
        depth_path, features_path: folder with a file per episode, see `data.geometry`; read for clips with a second
            target only.
    """

    def __init__(
        self,
        name: str,
        context: DataContext,
        *,
        data_path: str | Path,
        media_dir: str | Path,
        grounding_path: str | Path | None = None,
        actions_path: str | Path | None = None,
        depth_path: str | Path | None = None,
        features_path: str | Path | None = None,
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
        self.executed = Executed.of(self, episodes, actions_path)
        self.geometry = self.read_geometry(depth_path, features_path)

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
        fields, answer_ends = lay_out_pieces(pieces, self.context.word_tokenizer, self.context.spec)
        names = [decision.frame for decision in window.decisions]
        fields["images"] = self.pictures.read(names)
        fields = self.with_objects(fields, names)
        fields["sample_id"] = f"{self.name}/{window.episode}+{window.first}"
        if self.executed is not None and (clip := self._clip(window, self.executed, answer_ends)) is not None:
            fields["clip"] = clip
        return fields

    def _clip(self, window: Window, executed: Executed, answer_ends: dict[int, int]) -> ClipSample | None:
        """All decisions; the answer to one leads to the next, the last one's to a picture that only the loss sees."""
        options, shown = self.context.options, list(window.decisions)
        assert options.clips is not None
        following = window.following if options.clips.answer_targets and options.learn_decisions else None
        if following is not None:
            shown.append(following)
        times = [decision.num_frames - 1 for decision in shown]
        return make_clip(
            list(range(len(shown))),
            times,
            motions=executed.along(window.episode, window.instruction, times),
            answer_ends=answer_ends,
            target_frames=None if following is None else self.pictures.read([following.frame]),
            geometry=None if self.geometry is None else self.geometry.along([place_of_frame(d.frame) for d in shown]),
        )

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
