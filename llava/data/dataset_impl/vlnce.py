"""NaVILA records (R2R, RxR, Human): one decision of an episode from a sample of all frames so far."""

from __future__ import annotations

import random
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.batch import ClipSample, Sample
from llava.constants import IGNORE_INDEX
from llava.data.base import DataContext, Dataset, Pictures, existing
from llava.data.clips import NO_FRAME, make_clip
from llava.data.dataset_impl.episodes import Decision, Executed, check_decision, episode_of, join_episodes
from llava.data.dataset_impl.grounding import TOKENS_PER_QUESTION, Grounding
from llava.data.geometry import place_of_frame
from llava.data.preprocess import hang_questions
from llava.data.utils import read_records
from llava.navigation.prompt import NavilaFormat
from llava.video.frame_sampling import BLACK_FRAME, vlnce_indices


class VLNCEDataset(Dataset):
    """`{"video_id": "<episode>-<step>", "q": instruction, "a": answer, "frames": [all frames so far]}`.

    Args:
        grounding_path: as for `streaming`; its questions hang on the current picture, beside the answer.
        actions_path, depth_path, features_path: as for `streaming`.
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
        self.records = read_records(existing(data_path, key="data_path", dataset=name))
        self.pictures = Pictures(Path(media_dir), context.spec)
        options = context.options
        self.prompt_format = NavilaFormat(instruction=options.instruction, num_frames=options.num_video_frames)
        self.grounding = Grounding.of(self, grounding_path)
        episodes = join_episodes(self.records) if options.clips else ()
        self.executed = Executed.of(self, episodes, actions_path)
        self.geometry = self.read_geometry(depth_path, features_path)

    def build(self, index: int) -> Sample:
        record = self.records[index]
        check_decision(record)
        frames, task, answer = record["frames"], record["q"], record["a"]
        chosen = vlnce_indices(len(frames), self.prompt_format.num_frames)
        names = [None if i == BLACK_FRAME else frames[i] for i in chosen]
        images = self.pictures.read(names)
        messages = self.prompt_format.training_messages
        sample = self.conversation(lambda: messages(task, answer), images, key=(task, answer))
        sample = self.with_objects(sample, names)
        if self.executed is not None:
            answer_end = int((sample["labels"] != IGNORE_INDEX).nonzero()[-1])  # pyright: ignore
            if (clip := self._clip(record, chosen, answer_end, self.executed)) is not None:
                sample["clip"] = clip
        if self.grounding is None:
            return sample
        chance = random.Random(f"{self.context.options.seed}/{self.name}/{index}")
        episode, decision = self._decision_of(record)
        questions = self.grounding.ask(episode, decision, chance)
        return hang_questions(sample, questions, self.context.word_tokenizer, self.context.options.end_of_turn)

    def _clip(
        self, record: dict[str, Any], chosen: list[int], answer_end: int, executed: Executed
    ) -> ClipSample | None:
        """The chosen frames, and behind them the one to which the answer led, where that is known."""
        following = self._outcome(record, executed)
        frames = [NO_FRAME if i == BLACK_FRAME else t for t, i in enumerate(chosen)]
        steps, names = list(chosen), [None if i == BLACK_FRAME else record["frames"][i] for i in chosen]
        target: Tensor | None = None
        if following is not None:
            frames.append(len(chosen))
            steps.append(following.num_frames - 1)
            names.append(following.frame)
            target = self.pictures.read([following.frame])
        return make_clip(
            frames,
            [0 if step == BLACK_FRAME else step for step in steps],
            motions=executed.along(episode_of(record), record["q"], steps),
            answer_ends={len(chosen) - 1: answer_end},
            target_frames=target,
            geometry=None if self.geometry is None else self.geometry.along([n and place_of_frame(n) for n in names]),
        )

    def _outcome(self, record: dict[str, Any], executed: Executed) -> Decision | None:
        """The next decision of the episode; None after a stop, and where the motion until then is not known."""
        options = self.context.options.clips
        if options is None or not options.answer_targets or executed.is_stop(record["a"]):
            return None
        where, num_frames = (episode_of(record), record["q"]), len(record["frames"])
        following = executed.following(*where, num_frames)
        if following is None:
            return None
        motion = executed.along(*where, [num_frames - 1, following.num_frames - 1])[0]
        return None if bool(torch.isnan(motion).any()) else following

    def _decision_of(self, record: dict[str, Any]) -> tuple[str, int]:
        """Episode and number of the decision in it: records of one episode differ by the number of frames seen."""
        episode = episode_of(record)
        return episode, bisect_left(self._frames_seen[episode], len(record["frames"]))

    @cached_property
    def _frames_seen(self) -> dict[str, list[int]]:
        seen: dict[str, set[int]] = {}
        for record in self.records:
            seen.setdefault(episode_of(record), set()).add(len(record.get("frames") or ()))
        return {episode: sorted(counts) for episode, counts in seen.items()}

    def estimate_length(self, index: int) -> int:
        return super().estimate_length(index) + round(self.context.options.grounding_questions * TOKENS_PER_QUESTION)

    def num_characters(self, index: int) -> int:
        record = self.records[index]
        return len(str(record.get("q"))) + len(str(record.get("a")))

    def num_pictures(self, index: int) -> int:
        return self.prompt_format.num_frames

    @cached_property
    def overhead(self) -> int:
        prompt = self._encode(self.prompt_format.training_messages("", ""))
        return len(prompt["input_ids"]) - self.prompt_format.num_frames * self.context.spec.tokens_per_image
