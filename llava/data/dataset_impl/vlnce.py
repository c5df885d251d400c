"""NaVILA records (R2R, RxR, Human): one decision of an episode from a sample of all frames so far."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from llava.batch import Sample
from llava.data.base import DataContext, Dataset, Pictures, existing
from llava.data.utils import BrokenSampleError, read_records
from llava.navigation.prompt import NavilaFormat
from llava.video.frame_sampling import BLACK_FRAME, vlnce_indices


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
    """`{"video_id": "<episode>-<step>", "q": instruction, "a": answer, "frames": [all frames so far]}`."""

    def __init__(self, name: str, context: DataContext, *, data_path: str | Path, media_dir: str | Path) -> None:
        super().__init__(name, context, media_dir)
        self.records = read_records(existing(data_path, key="data_path", dataset=name))
        self.pictures = Pictures(Path(media_dir), context.spec)
        options = context.options
        self.prompt_format = NavilaFormat(instruction=options.instruction, num_frames=options.num_video_frames)

    def build(self, index: int) -> Sample:
        record = self.records[index]
        check_decision(record)
        frames, task, answer = record["frames"], record["q"], record["a"]
        chosen = vlnce_indices(len(frames), self.prompt_format.num_frames)
        images = self.pictures.read([None if i == BLACK_FRAME else frames[i] for i in chosen])
        return self.conversation(lambda: self.prompt_format.training_messages(task, answer), images, key=(task, answer))

    def num_characters(self, index: int) -> int:
        record = self.records[index]
        return len(str(record.get("q"))) + len(str(record.get("a")))

    def num_pictures(self, index: int) -> int:
        return self.prompt_format.num_frames

    @cached_property
    def overhead(self) -> int:
        prompt = self._encode(self.prompt_format.training_messages("", ""))
        return len(prompt["input_ids"]) - self.prompt_format.num_frames * self.context.spec.tokens_per_image
