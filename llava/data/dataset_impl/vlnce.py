"""NaVILA records (R2R, RxR, Human): one decision of an episode from a sample of all frames so far."""

from __future__ import annotations

import random
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

from llava.batch import Sample
from llava.data.base import DataContext, Dataset, Pictures, existing
from llava.data.dataset_impl.grounding import TOKENS_PER_QUESTION, Grounding
from llava.data.preprocess import hang_questions
from llava.data.utils import BrokenSampleError, read_records
from llava.navigation.prompt import NavilaFormat
from llava.video.frame_sampling import BLACK_FRAME, vlnce_indices


def episode_of(record: dict[str, Any]) -> str:
    """Episode part of `video_id`, "<episode>-<step>"."""
    video_id = str(record.get("video_id", "?"))
    return video_id.rpartition("-")[0] or video_id


def check_decision(record: dict[str, Any]) -> None:
    """Raise where a decision lacks its instruction, its answer or its frames."""
    for key in ("q", "a"):
        if not isinstance(record.get(key), str):
            raise BrokenSampleError(f"'{key}' is {record.get(key)!r}, expected a string; keys are {sorted(record)}")
    if not record.get("frames"):
        raise BrokenSampleError(
            "'frames' is missing or empty; expected the paths of all frames so far, current one last"
        )


class VLNCEDataset(Dataset):
    """`{"video_id": "<episode>-<step>", "q": instruction, "a": answer, "frames": [all frames so far]}`.

    Args:
        grounding_path: as for `streaming`; its questions hang on the current picture, beside the answer.
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
        self.records = read_records(existing(data_path, key="data_path", dataset=name))
        self.pictures = Pictures(Path(media_dir), context.spec)
        options = context.options
        self.prompt_format = NavilaFormat(instruction=options.instruction, num_frames=options.num_video_frames)
        self.grounding = Grounding.of(self, grounding_path)

    def build(self, index: int) -> Sample:
        record = self.records[index]
        check_decision(record)
        frames, task, answer = record["frames"], record["q"], record["a"]
        chosen = vlnce_indices(len(frames), self.prompt_format.num_frames)
        images = self.pictures.read([None if i == BLACK_FRAME else frames[i] for i in chosen])
        messages = self.prompt_format.training_messages
        sample = self.conversation(lambda: messages(task, answer), images, key=(task, answer))
        if self.grounding is None:
            return sample
        chance = random.Random(f"{self.context.options.seed}/{self.name}/{index}")
        episode, decision = self._decision_of(record)
        questions = self.grounding.ask(episode, decision, chance)
        return hang_questions(sample, questions, self.context.word_tokenizer, self.context.options.end_of_turn)

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
