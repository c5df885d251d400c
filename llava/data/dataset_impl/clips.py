"""Video without text: only pictures, nothing supervised, for a stage that learns from the next frame alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from llava.batch import Sample
from llava.data.base import DataContext, Pictures
from llava.data.dataset_impl.video import Shown, VideoDataset, with_clip
from llava.data.geometry import place_of_frame
from llava.data.preprocess import encode_pieces
from llava.data.utils import BrokenSampleError
from llava.navigation.prompt import Piece
from llava.video.decode import Clip


class ClipsDataset(VideoDataset):
    """`{"video" | "video_id" | "video_path": ...}` or `{"frames": [paths in the order of time]}`, and maybe "times".

    times: when each frame of the whole record was taken, one rising number per frame. Without them the video file tells
    (seconds), or frames count from 0.
    """

    def __init__(
        self,
        name: str,
        context: DataContext,
        *,
        data_path: str | Path,
        media_dir: str | Path,
        depth_path: str | Path | None = None,
        features_path: str | Path | None = None,
    ) -> None:
        super().__init__(
            name,
            context,
            data_path=data_path,
            media_dir=media_dir,
            depth_path=depth_path,
            features_path=features_path,
        )
        if context.options.clips is None:
            raise ValueError(
                f"data set '{name}' is of type 'clips', in which a language model has nothing to learn, and the option "
                "clips is None; turn the next-frame loss on, or leave the data set out"
            )
        self.pictures = Pictures(Path(media_dir), context.spec)

    def build(self, index: int) -> Sample:
        shown = self.clip(self.records[index])
        pieces = [Piece(frame=number) for number in range(len(shown.chosen))]
        sample = encode_pieces(pieces, self.context.word_tokenizer, self.context.spec)
        sample["images"] = shown.images
        if "clip" not in with_clip(sample, shown):
            raise BrokenSampleError(f"{len(shown.chosen)} frame(s), expected at least 2: one of them predicts the next")
        return sample

    def clip(self, record: Mapping[str, Any]) -> Shown:
        if "frames" not in record:
            return super().clip(record)
        listed = record["frames"]
        if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
            raise BrokenSampleError(f"'frames' is {listed!r}, expected a list of paths in the order of time")
        chosen, times = self.choose(len(listed)), recorded_times(record, len(listed))
        images = self.pictures.read([listed[i] for i in chosen])
        geometry = None
        if self.geometry is not None:
            geometry = self.geometry.along([place_of_frame(listed[i]) for i in chosen])
        return Shown(images, chosen, [float(i) if times is None else times[i] for i in chosen], geometry)

    def times(self, record: Mapping[str, Any], opened: Clip, indices: Sequence[int]) -> list[float]:
        times = recorded_times(record, opened.info.num_frames)
        return super().times(record, opened, indices) if times is None else [times[i] for i in indices]

    def num_characters(self, index: int) -> int:
        return 0

    def sample_text(self, index: int) -> str:
        return ""

    def num_pictures(self, index: int) -> int:
        listed = self.records[index].get("frames")
        most = self.context.options.num_video_frames
        return min(len(listed), most) if isinstance(listed, list) else most

    @cached_property
    def overhead(self) -> int:
        return int(self.context.tokenizer.bos_token_id is not None)


def recorded_times(record: Mapping[str, Any], num_frames: int) -> list[float] | None:
    """The record's own times, one per frame; None where it has none."""
    times = record.get("times")
    if times is None:
        return None
    is_list = isinstance(times, list) and all(isinstance(time, (int, float)) for time in times)
    if not is_list or len(times) != num_frames or not all(a < b for a, b in pairwise(times)):
        raise BrokenSampleError(f"'times' is {times!r}, expected {num_frames} rising numbers, one per frame")
    return [float(time) for time in times]
