"""What every data set shares: broken samples handled in the open, lengths for the samplers, pictures as uint8."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from llava.batch import Sample, VisualSpec
from llava.conversation import Conversation
from llava.data.clips import ClipOptions
from llava.data.geometry import Geometry
from llava.data.object_masks import ObjectMaskOptions, ObjectMasks
from llava.data.preprocess import encode_conversation
from llava.data.utils import BrokenSampleError, CachingTokenizer, SmallCache, read_json
from llava.mm_utils import expand_image_tokens, to_uint8_tensor
from llava.navigation.worlds.base import CameraProfile
from llava.utils.cutting import cut_into_tiles, cut_views
from llava.utils.tokenizer import TokenizationCompat, Tokenizer, ensure_special_tokens
from llava.video.frame_store import FrameStore

logger = logging.getLogger(__name__)

SAMPLE_ERRORS = (ValueError, OSError, EOFError, SyntaxError)
"""What a broken record or medium raises (PIL: SyntaxError for a broken PNG); the rest is the program's fault."""

Modality = Literal["text", "image", "video"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Choices of one run, the same for all its data sets.

    Attributes:
        num_video_frames: pictures per history or clip.
        instruction: "normalised" as in training of the published checkpoints, or "raw" as in their evaluation.
        tokenization_compat: how texts are cut; `TokenizationCompat.navila()` for the published weights.
        answers_visible: whole episodes only: later decisions see the true earlier answers (measured worse than not).
        end_of_turn: whole episodes only: the special token that closes an answer.
        max_decisions: whole episodes only: longer ones are cut into windows that keep the instruction.
        grounding_questions: whole episodes only: mean number of asides per decision that ask where an object is.
        learn_decisions: whole episodes only: False leaves out the task and the answers, so that the questions remain.
        names_place: whole episodes only: answers begin with the place of the goal (see `StreamingFormat`).
        keep_pictures_mb: whole episodes only: decoded pictures that each process keeps for the next epoch.
        clips: samples of videos and episodes tell which frames follow each other, see `batch.ClipSample`; None = not.
        object_masks: samples tell which patches of their pictures show objects; None = not.
        frame_per_action: one picture was taken per low-level action, so that answers tell the motions between pictures;
            False for pictures taken by the clock, whose motions stay unknown.
        turn_degrees: yaw of one low-level turn of the robot that took the pictures, for motions.
        on_error: "skip" takes the next good sample, counts and logs; "raise" stops at the first broken one.
        max_retries: how many samples in a row may be skipped before the run stops.
        seed: of every random choice; a sample depends on (seed, data set, index) and on nothing else.
    """

    num_video_frames: int = 8
    instruction: Literal["raw", "normalised"] = "normalised"
    tokenization_compat: TokenizationCompat | Mapping[str, bool] | None = None
    answers_visible: bool = False
    end_of_turn: str = "<|eot_id|>"
    max_decisions: int | None = None
    grounding_questions: float = 0.0
    learn_decisions: bool = True
    names_place: bool = False
    keep_pictures_mb: int = 0
    clips: ClipOptions | None = None
    object_masks: ObjectMaskOptions | None = None
    frame_per_action: bool = True
    turn_degrees: int = 15
    on_error: Literal["raise", "skip"] = "skip"
    max_retries: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_video_frames < 1:
            raise ValueError(f"num_video_frames is {self.num_video_frames}, expected at least 1")
        if self.max_decisions is not None and self.max_decisions < 1:
            raise ValueError(f"max_decisions is {self.max_decisions}, expected at least 1, or None for whole episodes")
        if self.clips is not None and not isinstance(self.clips, ClipOptions):
            raise ValueError(f"clips is {self.clips!r}, expected data.clips.ClipOptions, or None for no clips")
        if self.object_masks is not None and not isinstance(self.object_masks, ObjectMaskOptions):
            raise ValueError(
                f"object_masks is {self.object_masks!r}, expected data.object_masks.ObjectMaskOptions, or None; in a "
                "training --object_masks names their folder"
            )
        if self.turn_degrees < 1:
            raise ValueError(f"turn_degrees is {self.turn_degrees}, expected whole degrees above 0, e.g. 15 or 30")
        if self.grounding_questions < 0:
            raise ValueError(
                f"grounding_questions is {self.grounding_questions}, expected a number of questions per decision >= 0"
            )
        if not self.learn_decisions and not self.grounding_questions:
            raise ValueError("learn_decisions is False and grounding_questions is 0: nothing is left to learn; set one")
        if self.instruction not in ("raw", "normalised"):
            raise ValueError(f"instruction is {self.instruction!r}, expected 'raw' or 'normalised'")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}, expected 'raise' or 'skip'")


@dataclass(frozen=True, kw_only=True)
class DataContext:
    """What turns records into samples: tokenizer (gets `<image>` in memory), picture geometry, template, options."""

    tokenizer: Tokenizer
    spec: VisualSpec
    template: Conversation
    options: DataOptions

    @cached_property
    def image_token_id(self) -> int:
        return ensure_special_tokens(self.tokenizer)

    @cached_property
    def word_tokenizer(self) -> Tokenizer:
        """The same tokenizer, with every text it has met kept: for sequences made of few different pieces."""
        return CachingTokenizer(self.tokenizer)


class Dataset(torch.utils.data.Dataset[Sample], ABC):
    """Records of one annotation source as samples.

    A subclass sets `records` and gives `build`, `num_characters` and `num_pictures`. A record that cannot become a
    sample makes `build` raise `BrokenSampleError` (or the error of the broken medium); what happens then is decided
    here, once, for all.
    """

    records: Sequence[Any]
    geometry: Geometry | None = None

    def __init__(self, name: str, context: DataContext, media_dir: str | Path | None = None) -> None:
        self.name = name
        self.context = context
        self.media_dir = None if media_dir is None else existing(media_dir, key="media_dir", dataset=name)
        self.camera_profile = read_camera_profile(self.media_dir)
        self.object_masks = self._object_masks()
        self.broken: dict[int, str] = {}
        self._encoded: SmallCache[dict[str, Tensor]] = SmallCache(20_000)

    def __len__(self) -> int:
        return len(self.records)

    def _object_masks(self) -> ObjectMasks | None:
        options = self.context.options.object_masks
        if options is None or self.media_dir is None:
            return None
        return ObjectMasks(self.name, options, self.context.spec, self.media_dir)

    def with_objects(self, sample: Sample, names: Sequence[str | None]) -> Sample:
        """The sample with the object patches of its pictures, where the model splits them; None = a black picture."""
        if self.object_masks is not None:
            sample["object_patches"] = self.object_masks.of_pictures(names)
        return sample

    def read_geometry(self, depth_path: str | Path | None, features_path: str | Path | None) -> Geometry | None:
        """What the options ask for, see `data.geometry`."""
        clips, spec = self.context.options.clips, self.context.spec
        wanted = None if clips is None else clips.geometry
        return Geometry.of(wanted, spec, self.name, depth_path=depth_path, features_path=features_path)

    @abstractmethod
    def build(self, index: int) -> Sample:
        """The sample of one record; raises one of SAMPLE_ERRORS when the record is broken."""

    @abstractmethod
    def num_characters(self, index: int) -> int:
        """Length of the record's own text, from the record alone."""

    @abstractmethod
    def num_pictures(self, index: int) -> int:
        """Pictures that the sample will hold, from the record alone."""

    @cached_property
    def overhead(self) -> int:
        """Tokens of every sample that are neither its own text nor pictures."""
        return 0

    @cached_property
    def characters_per_token(self) -> float:
        """Measured with the tokenizer on the first records, so that length estimates fit any vocabulary."""
        texts = [text for index in range(min(64, len(self))) if (text := self.sample_text(index))]
        if not texts:
            return 4.0
        tokens = sum(map(len, self.context.tokenizer(texts, add_special_tokens=False)["input_ids"]))
        return max(sum(map(len, texts)) / max(tokens, 1), 0.25)

    def sample_text(self, index: int) -> str:
        """The record's own text, as far as it is typical for the tokenizer."""
        record = self.records[index]
        return (
            " ".join(value for value in record.values() if isinstance(value, str)) if isinstance(record, dict) else ""
        )

    def estimate_length(self, index: int) -> int:
        """Tokens of a sample; no media are read and nothing is tokenised."""
        text = round(self.num_characters(index) / self.characters_per_token)
        return self.overhead + text + self.num_pictures(index) * self.context.spec.tokens_per_image

    @cached_property
    def lengths(self) -> list[int]:
        """Estimated tokens of every sample."""
        return [self.estimate_length(index) for index in range(len(self))]

    def modality_of(self, index: int) -> Modality:
        """Kind of media of one record."""
        return "video"

    @cached_property
    def modality(self) -> list[Modality]:
        """Kind of media of every sample."""
        return [self.modality_of(index) for index in range(len(self))]

    @property
    def modality_lengths(self) -> list[int]:
        """Lengths, negative for text-only samples: the sign by which samplers group."""
        return [-n if m == "text" else n for n, m in zip(self.lengths, self.modality, strict=True)]

    def conversation(
        self,
        messages: Callable[[], Sequence[Mapping[str, str]]],
        images: Tensor | Views | None,
        key: Hashable = None,
    ) -> Sample:
        """A sample from a dialogue with one `<image>` per picture. The encoding is kept under `key`, if given."""
        if isinstance(images, Views):
            return self._with_views(messages(), images)
        if key is None:
            fields = self._encode(messages())
        else:
            fields = self._encoded.get(key, lambda: self._encode(messages()))
        expected, found = int(fields["frame_ids"][-1]) + 1, 0 if images is None else len(images)
        if expected != found:
            raise BrokenSampleError(
                f"{expected} <image> placeholder(s) in the text and {found} picture(s); give one for each picture"
            )
        sample = Sample(**fields)  # pyright: ignore[reportArgumentType]
        if images is not None:
            sample["images"] = images
        return sample

    def _with_views(self, messages: Sequence[Mapping[str, str]], views: Views) -> Sample:
        try:
            fields = self._encode(messages, views.tokens)
        except ValueError as error:
            raise BrokenSampleError(str(error)) from error
        return Sample(**fields, images=views.images, image_sizes=views.sizes, image_views=views.counts)  # pyright: ignore

    def _encode(self, messages: Sequence[Mapping[str, str]], counts: Sequence[int] | None = None) -> dict[str, Tensor]:
        context = self.context
        encoded = encode_conversation(
            messages,
            context.tokenizer,
            context.template,
            compat=TokenizationCompat.from_config(context.options.tokenization_compat),
            image_token_id=context.image_token_id,
        )
        return expand(encoded.input_ids, encoded.labels, context, counts)

    def describe(self, index: int) -> str:
        """How messages name the record."""
        record = self.records[index]
        named = isinstance(record, Mapping)
        key = next((record[k] for k in ("id", "video_id", "video") if k in record), None) if named else None
        return f"{self.name}[{index}]" if key is None else f"{self.name}[{index}] ({key})"

    def __getitem__(self, index: int) -> Sample:
        """The sample of `index`, or of the next index that is not broken (at most `max_retries` further on)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of data set '{self.name}' with {len(self)} samples")
        options, failures = self.context.options, []
        for step in range(options.max_retries + 1):
            current = (index + step) % len(self)
            try:
                sample = self.build(current)
                sample.setdefault("sample_id", f"{self.name}/{current}")
                return sample
            except SAMPLE_ERRORS as error:
                failures.append(self._count(current, error))
                if options.on_error == "raise":
                    raise BrokenSampleError(failures[0]) from error
        raise BrokenSampleError(
            f"{len(failures)} samples in a row of data set '{self.name}' are broken; check its media {self.media_dir}:"
            + "".join(f"\n  {failure}" for failure in failures)
        )

    def _count(self, index: int, error: BaseException) -> str:
        """Remember a broken sample; the first five are logged one by one, then the 10th, 100th ..."""
        message = f"{self.describe(index)}: {error}"
        if index not in self.broken:
            self.broken[index] = message
            count = len(self.broken)
            if count <= 5 or str(count).strip("0") == "1":
                logger.warning("broken sample number %d of '%s', the next one is taken: %s", count, self.name, message)
        return message

    def report(self) -> str:
        """What went wrong so far in this process: broken samples, videos without a second target, object masks."""
        without = "" if self.geometry is None else self.geometry.report()
        without += "" if self.object_masks is None else f"; {self.object_masks.statistics}"
        return f"{self.name}: {len(self)} samples, {len(self.broken)} broken so far{without}" + "".join(
            f"\n  {text}" for text in list(self.broken.values())[:10]
        )


def read_camera_profile(media_dir: Path | None) -> CameraProfile | None:
    """`camera.json` in the media folder or beside it: the camera that took the pictures."""
    for folder in () if media_dir is None else (media_dir, media_dir.parent):
        if (folder / "camera.json").is_file():
            return CameraProfile.from_dict(read_json(folder / "camera.json"))
    return None


def existing(path: str | Path | None, *, key: str, dataset: str) -> Path:
    """The path, or an error that says which entry to correct."""
    if path is None:
        raise ValueError(f"data set '{dataset}' needs '{key}'; add it to its registry entry")
    path = Path(path).expanduser()
    if not path.exists():
        near = next((parent for parent in path.parents if parent.exists()), Path("/"))
        raise FileNotFoundError(
            f"data set '{dataset}': {key} is {path}, which does not exist (the nearest folder that does is {near}); "
            "set data_root, correct the registry entry, or fetch the data"
        )
    return path


def expand(
    input_ids: Tensor, labels: Tensor, context: DataContext, counts: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Every `<image>` becomes as many as its picture takes; frame_ids number the pictures, text belongs to the last.

    counts: tokens of each picture where they differ; None = all as the model's spec says.
    """
    image_id = context.image_token_id
    if counts is None:
        counts = [context.spec.tokens_per_image] * int((input_ids == image_id).sum())
    input_ids, labels = expand_image_tokens(input_ids, labels, counts, image_id)
    picture_of_slot = torch.tensor([-1, *(k for k, count in enumerate(counts) for _ in range(count))])
    frame_ids = picture_of_slot[(input_ids == image_id).cumsum(0)]
    return {"input_ids": input_ids, "labels": labels, "frame_ids": frame_ids}


def pictures_from_arrays(pixels: Sequence[Any], spec: VisualSpec) -> UInt8[Tensor, "n 3 size size"]:
    """Pictures (HWC uint8 arrays or PIL) at the tower's size; None is a black one."""
    size = spec.image_size
    out = np.zeros((len(pixels), 3, size, size), dtype=np.uint8)
    for picture, source in zip(out, pixels, strict=True):
        if isinstance(source, np.ndarray) and source.shape == (size, size, 3):
            picture[:] = source.transpose(2, 0, 1)
        elif source is not None:
            picture[:] = to_uint8_tensor(source, spec).numpy()
    return torch.from_numpy(out)


@dataclass(frozen=True, kw_only=True)
class Views:
    """Pictures cut by the model's `view_rule`: n views of k pictures.

    Attributes:
        images: uint8 [n, 3, side, side]; sizes: [k, 2] height and width before; counts: [k] views of each.
        tokens: language-model positions of each picture.
    """

    images: Tensor
    sizes: Tensor
    counts: Tensor
    tokens: Sequence[int]


class Pictures:
    """Files and frames of one folder as uint8 pictures of the tower's size.

    Up to `keep_bytes` of what was read is kept and nothing of it is dropped again: when every sample is read once per
    epoch, that share of the reads is saved, while dropping the oldest would save next to none.
    """

    def __init__(self, root: Path, spec: VisualSpec, keep_bytes: int = 0) -> None:
        self.store = FrameStore(root)
        self.spec = spec
        self.room = keep_bytes
        self._kept: dict[tuple[str | None, ...], Tensor] = {}

    def read_views(self, paths: Sequence[str]) -> Views:
        """Pictures of a model that reads any size; not kept."""
        rule = self.spec.view_rule
        cut = [cut_views(self.store.read(path), rule) for path in paths]
        layouts = [rule.layout(*size) for _, size in cut]
        return Views(
            images=torch.cat([views for views, _ in cut]),
            sizes=torch.tensor([size for _, size in cut]),
            counts=torch.tensor([len(views) for views, _ in cut]),
            tokens=[layout.num_tokens for layout in layouts],
        )

    def read_tiles(self, path: str) -> UInt8[Tensor, "n 3 size size"]:
        """One picture as tiles of the tower's size; not kept."""
        return cut_into_tiles(self.store.read(path), self.spec)

    def read(self, paths: Sequence[str | None]) -> UInt8[Tensor, "n 3 size size"]:
        """One picture per path, relative to the folder; None is a black one (before the first frame of a history).

        The tensor may be shared with other callers: do not write to it.
        """
        key = tuple(paths)
        if key in self._kept:
            return self._kept[key]
        pictures = pictures_from_arrays([None if path is None else self.store.read(path) for path in paths], self.spec)
        if pictures.nbytes <= self.room:
            self.room -= pictures.nbytes
            self._kept[key] = pictures
        return pictures
