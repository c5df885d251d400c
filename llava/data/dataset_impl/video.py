"""Clips with a dialogue, or with captions: Video-ChatGPT, ShareGPT-Video, and the base of every other video set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from llava.batch import Sample
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.base import DataContext, Dataset, existing, pictures_from_arrays
from llava.data.clips import NO_FRAME, make_clip
from llava.data.utils import BrokenSampleError, read_records
from llava.navigation.prompt import Message
from llava.video.decode import Clip, open_clip
from llava.video.frame_sampling import BLACK_FRAME, capped_indices

CAPTION_QUESTION = "Elaborate on the visual and narrative elements of the video in detail."


def answer_text(value: Any) -> str:
    """Answers are strings; some published files hold bare numbers."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BrokenSampleError(f"an answer is {value!r}, expected a string")
    return str(value).strip()


def without_placeholders(text: str) -> str:
    return text.replace(DEFAULT_IMAGE_TOKEN, "").replace("<video>", "").strip()


def dialogue_turns(record: Mapping[str, Any]) -> list[Message]:
    """Turns of any of the three layouts: `conversations`, `q` and `a`, or `captions` (the last one sums up)."""
    if "conversations" in record:
        turns = record["conversations"]
        if not isinstance(turns, list) or not turns:
            raise BrokenSampleError(f"'conversations' is {turns!r}, expected a list of turns")
        return [{"from": turn.get("from", "?"), "value": answer_text(turn.get("value"))} for turn in turns]
    if "captions" in record:
        last = record["captions"][-1] if record["captions"] else {}
        if str(last.get("idx")) != "-1":
            raise BrokenSampleError(
                f"the last of 'captions' has idx {last.get('idx')!r}, expected the summary with idx -1"
            )
        return _exchange(CAPTION_QUESTION, last["content"])
    if "q" in record and "a" in record:
        return _exchange(record["q"], record["a"])
    raise BrokenSampleError(
        f"no 'conversations', 'captions' or 'q' and 'a' in the record; its keys are {sorted(record)}"
    )


def _exchange(question: Any, answer: Any) -> list[Message]:
    return [{"from": "human", "value": answer_text(question)}, {"from": "gpt", "value": answer_text(answer)}]


def pictures_first(turns: list[Message], num_pictures: int) -> list[Message]:
    """The turns without placeholders of their own; one per picture opens the first question."""
    plain = [{**turn, "value": without_placeholders(turn["value"])} for turn in turns]
    plain[0]["value"] = f"{DEFAULT_IMAGE_TOKEN}\n" * num_pictures + plain[0]["value"]
    return plain


class Shown(NamedTuple):
    """Chosen frames of a clip: uint8 [n, 3, size, size], their indices (BLACK_FRAME = black), when each was taken.

    geometry: [n, tokens, dim] the second target of each, where the options ask for one.
    objects: bool [n, patches], where the model splits pictures.
    """

    images: Tensor
    chosen: list[int]
    times: list[float] | None
    geometry: Tensor | None = None
    objects: Tensor | None = None


class VideoDataset(Dataset):
    """`{"video" | "video_id" | "video_path": file or frame folder, ...}` and a dialogue; see `dialogue_turns`.

    Args:
        depth_path, features_path: as for `streaming`, a file per video.
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
        super().__init__(name, context, media_dir)
        self.records = read_records(existing(data_path, key="data_path", dataset=name))
        self.geometry = self.read_geometry(depth_path, features_path)

    def build(self, index: int) -> Sample:
        record = self.records[index]
        shown = self.clip(record)
        messages = self.dialogue(record, index, len(shown.images))
        sample = with_clip(self.conversation(lambda: messages, shown.images), shown)
        if shown.objects is not None:
            sample["object_patches"] = shown.objects
        return sample

    def dialogue(self, record: Mapping[str, Any], index: int, num_pictures: int) -> list[Message]:
        """Messages with one placeholder per picture."""
        return pictures_first(dialogue_turns(record), num_pictures)

    def choose(self, length: int) -> list[int]:
        """Which of `length` frames are shown: evenly spread, all of a short clip."""
        return capped_indices(length, self.context.options.num_video_frames)

    def clip_path(self, record: Mapping[str, Any]) -> Path:
        """A file is named with its ending, an id without."""
        if self.media_dir is None:
            raise BrokenSampleError(
                "the record names a video and the data set has no media_dir; add it to the registry"
            )
        named = record.get("video_path") or record.get("video")
        if named is None and "video_id" in record:
            named = f"{record['video_id']}.mp4"
        if not isinstance(named, str):
            raise BrokenSampleError(
                f"no 'video', 'video_path' or 'video_id' in the record; its keys are {sorted(record)}"
            )
        path = self.media_dir / named
        if not path.exists():
            raise FileNotFoundError(f"video {path} does not exist; fetch it, or remove the record")
        return path

    def clip(self, record: Mapping[str, Any]) -> Shown:
        """The chosen frames; black where the rule asks for more than there are. Times only where clips are wanted."""
        path = self.clip_path(record)
        opened = open_clip(path)
        chosen = self.choose(opened.info.num_frames)
        real = [i for i in chosen if i != BLACK_FRAME]
        decoded = opened.frames(real)
        frames = iter(decoded)
        pixels = [None if i == BLACK_FRAME else next(frames) for i in chosen]
        times = geometry = None
        if self.geometry is not None:
            assert self.media_dir is not None
            video = (path.with_suffix("") if path.is_file() else path).relative_to(self.media_dir).as_posix()
            geometry = self.geometry.along([None if i == BLACK_FRAME else (video, i) for i in chosen])
        if self.context.options.clips is not None:
            taken = iter(self.times(record, opened, real))
            times = [0.0 if i == BLACK_FRAME else next(taken) for i in chosen]
        objects = None
        if self.object_masks is not None:
            objects = self.object_masks.of_clip(path, [None if i == BLACK_FRAME else i for i in chosen], decoded)
        return Shown(pictures_from_arrays(pixels, self.context.spec), chosen, times, geometry, objects)

    def times(self, record: Mapping[str, Any], opened: Clip, indices: Sequence[int]) -> list[float]:
        """When frames were taken."""
        return frame_times(opened, indices)

    def num_characters(self, index: int) -> int:
        return len(self.sample_text(index))

    def sample_text(self, index: int) -> str:
        return own_text(self.records[index])

    @cached_property
    def overhead(self) -> int:
        return self._tokens_of_exchanges(1)

    @cached_property
    def tokens_per_exchange(self) -> int:
        """What the template adds for every further question and answer."""
        return self._tokens_of_exchanges(2) - self._tokens_of_exchanges(1)

    def _tokens_of_exchanges(self, count: int) -> int:
        return len(self._encode(_exchange("", "") * count)["input_ids"])

    def estimate_length(self, index: int) -> int:
        turns = self.records[index].get("conversations")
        further = max(len(turns) // 2 - 1, 0) if isinstance(turns, list) else 0
        return super().estimate_length(index) + further * self.tokens_per_exchange

    def num_pictures(self, index: int) -> int:
        return self.context.options.num_video_frames


def frame_times(opened: Clip, indices: Sequence[int]) -> list[float]:
    """Seconds as the file tells them; by its frame rate where these do not rise; the indices where it has no rate."""
    fps = opened.info.fps
    if not fps > 0:
        return [float(index) for index in indices]
    times = opened.times(indices)
    is_rising = all(a < b for a, b in pairwise(times))
    return times if is_rising else [index / fps for index in indices]


def with_clip(sample: Sample, shown: Shown) -> Sample:
    """The sample with its clip, where times are known and there are frames enough."""
    if shown.times is not None:
        frames = [NO_FRAME if index == BLACK_FRAME else t for t, index in enumerate(shown.chosen)]
        clip = make_clip(frames, shown.times, geometry=shown.geometry)
        if clip is not None:
            sample["clip"] = clip
    return sample


def own_text(record: Mapping[str, Any]) -> str:
    """What will be tokenised, roughly: all turns, or question and answer; placeholders count as pictures."""
    if isinstance(turns := record.get("conversations"), list):
        texts = [str(turn.get("value")) for turn in turns if isinstance(turn, dict)]
    else:
        texts = [str(record.get(key, "")) for key in ("q", "a", "instruction")]
    return without_placeholders("".join(texts))
