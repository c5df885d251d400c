"""Samples of different lengths become one batch: padded rows, or rows packed with several samples each.

Every mask comes from lengths, never from pad ids, so a pad id that is also a real token hides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from llava.batch import MultimodalBatch, Sample
from llava.constants import IGNORE_INDEX
from llava.data.clips import check_clips, cut_clip, join_clips
from llava.utils.anyres import UNCUT

logger = logging.getLogger(__name__)

Fields = dict[str, Any]
"""The fields of one `Sample`."""

PADDING = {
    "labels": IGNORE_INDEX,
    "attention_mask": 0,
    "position_ids": 0,
    "segment_ids": -1,
    "branch_ids": 0,
    "frame_ids": -1,
}
"""What a padded position holds; `input_ids` hold the pad id."""


@dataclass(kw_only=True)
class CollateStatistics:
    """What one collator has seen. Each data-loader worker counts its own."""

    samples: int = 0
    tokens: int = 0
    slots: int = 0
    truncated_samples: int = 0
    truncated_tokens: int = 0
    dropped_pictures: int = 0

    @property
    def fill(self) -> float:
        """Share of the batch positions that hold a real token."""
        return self.tokens / max(self.slots, 1)


@dataclass(kw_only=True)
class DataCollator:
    """Callable for `DataLoader(collate_fn=...)`.

    Attributes:
        pad_token_id: id at padded positions; its value has no influence on any mask.
        max_length: greatest number of tokens of one sample and, with rows="first_fit", of one packed row.
        mode: "pad" gives one sample per row, "pack" several.
        pad_side: "left" is for generation.
        rows: how "pack" fills rows: "first_fit" opens a new row when a sample fits in none, "one" lays all samples end
            to end.
        image_token_id: the `<image>` id; needed for clips, and to cut samples that are too long and hold pictures.
        overlong: a sample longer than max_length is cut from the right ("truncate": counted and logged) or refused
            ("raise").
        pad_to_multiple_of: rows are padded to a multiple of this.
    """

    pad_token_id: int
    max_length: int
    mode: Literal["pad", "pack"] = "pad"
    pad_side: Literal["right", "left"] = "right"
    rows: Literal["first_fit", "one"] = "first_fit"
    image_token_id: int | None = None
    overlong: Literal["truncate", "raise"] = "truncate"
    pad_to_multiple_of: int = 1
    statistics: CollateStatistics = field(default_factory=CollateStatistics)

    def __post_init__(self) -> None:
        choices = {
            "mode": ("pad", "pack"),
            "pad_side": ("right", "left"),
            "rows": ("first_fit", "one"),
            "overlong": ("truncate", "raise"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}")
        if self.max_length < 1 or self.pad_to_multiple_of < 1:
            raise ValueError(
                f"max_length {self.max_length} and pad_to_multiple_of {self.pad_to_multiple_of} must be at least 1"
            )

    def __call__(self, samples: Sequence[Sample]) -> MultimodalBatch:
        if not samples:
            raise ValueError("a batch of 0 samples was asked for; the sampler must yield at least one index per batch")
        check_clips(samples, self.image_token_id)
        fitted = [self._within_context(dict(sample)) for sample in samples]
        rows = self._layout([len(sample["input_ids"]) for sample in fitted])
        rows_of_samples = [[fitted[index] for index in row] for row in rows]
        ordered = [sample for row in rows_of_samples for sample in row]
        batch = self._text(rows_of_samples)
        if pictures := [sample["images"] for sample in ordered if len(sample.get("images", ()))]:
            batch["images"] = _join_pictures(pictures)
        if any("image_sizes" in sample for sample in ordered):
            batch["image_sizes"] = torch.cat([_sizes_of(sample) for sample in ordered])
        if any("object_patches" in sample for sample in ordered):
            batch["object_patches"] = _join_masks(ordered)
        if any("video_frames" in sample for sample in ordered):
            batch["video_frames"] = _stack_clips(ordered)
        batch["sample_ids"] = [sample.get("sample_id", "") for sample in ordered]
        places = self._places(rows_of_samples, batch["input_ids"].shape[1])  # pyright: ignore
        if (clips := join_clips(ordered, places, self.image_token_id)) is not None:
            batch["clips"] = clips
        return batch

    def _layout(self, lengths: list[int]) -> list[list[int]]:
        """Indices of the samples in each row."""
        if self.mode == "pad":
            return [[index] for index in range(len(lengths))]
        if self.rows == "one":
            return [list(range(len(lengths)))]
        return first_fit(lengths, self.max_length)

    def _text(self, rows: list[list[Fields]]) -> MultimodalBatch:
        """All per-token tensors, [rows, length of the longest row]."""
        columns = [_concatenate(row) for row in rows]
        width = max(len(column["input_ids"]) for column in columns)
        width += -width % self.pad_to_multiple_of
        batch: dict[str, Tensor] = {}
        for name in columns[0]:
            empty = self.pad_token_id if name == "input_ids" else PADDING[name]
            batch[name] = torch.full((len(rows), width), empty, dtype=columns[0][name].dtype)
            for out, column in zip(batch[name], columns, strict=True):
                size = len(column[name])
                start = width - size if self.pad_side == "left" else 0
                out[start : start + size] = column[name]
        self.statistics.samples += sum(map(len, rows))
        self.statistics.tokens += sum(len(column["input_ids"]) for column in columns)
        self.statistics.slots += len(rows) * width
        return MultimodalBatch(**batch)  # pyright: ignore[reportArgumentType]

    def _places(self, rows: list[list[Fields]], width: int) -> list[tuple[int, int]]:
        """(row, column of the first token) of every sample."""
        places = []
        for number, row in enumerate(rows):
            lengths = [len(sample["input_ids"]) for sample in row]
            column = width - sum(lengths) if self.pad_side == "left" else 0
            for length in lengths:
                places.append((number, column))
                column += length
        return places

    def _within_context(self, sample: Fields) -> Fields:
        """The sample, cut from the right when it is longer than max_length; a picture is kept whole or not at all."""
        length = len(sample["input_ids"])
        if length <= self.max_length:
            return sample
        name = sample.get("sample_id", "(no id)")
        advice = "raise --model_max_length, use fewer frames, or cut long episodes with max_decisions"
        if self.overlong == "raise":
            raise ValueError(f"sample {name} has {length} tokens, the context holds {self.max_length}; {advice}")
        cut, kept_pictures = self._cut_position(sample, name)
        whole = ("images", "image_sizes", "image_views", "object_patches", "video_frames", "sample_id", "clip")
        shorter = {key: value if key in whole else value[:cut] for key, value in sample.items()}
        dropped = _drop_pictures(shorter, kept_pictures)
        if "clip" in sample:
            num_pictures = len(sample["images"])
            left = cut_clip(shorter.pop("clip"), num_pictures=num_pictures, kept_pictures=kept_pictures, length=cut)
            shorter |= {} if left is None else {"clip": left}
        self._count_cut(
            length - cut, dropped, f"sample {name}: {length} tokens cut to {cut}, {dropped} picture(s) dropped", advice
        )
        return shorter

    def _cut_position(self, sample: Fields, name: str) -> tuple[int, int]:
        """(tokens kept, pictures kept)."""
        num_pictures = len(sample.get("images", ()))
        if num_pictures == 0:
            return self.max_length, 0
        if self.image_token_id is None:
            raise ValueError(
                f"sample {name} has {len(sample['input_ids'])} tokens and must be cut to {self.max_length}; "
                "give DataCollator(image_token_id=...) so that no picture is cut in half"
            )
        if "image_sizes" in sample:
            return self._cut_between_cut_pictures(sample)
        slots = (sample["input_ids"] == self.image_token_id).nonzero().flatten()  # [pictures * tokens per picture]
        if len(slots) == 0 or len(slots) % num_pictures:
            raise ValueError(
                f"sample {name} has {num_pictures} pictures and {len(slots)} <image> tokens, which is no multiple; "
                "expand the placeholders with mm_utils.expand_image_tokens before collating"
            )
        tokens_per_image = len(slots) // num_pictures
        kept_slots = int((slots < self.max_length).sum())
        kept_pictures, begun = divmod(kept_slots, tokens_per_image)
        cut = int(slots[kept_pictures * tokens_per_image]) if begun else self.max_length
        return cut, kept_pictures

    def _cut_between_cut_pictures(self, sample: Fields) -> tuple[int, int]:
        """As `_cut_position` where pictures take different numbers of tokens: frame_ids say which slot is whose."""
        is_slot = sample["input_ids"] == self.image_token_id
        late = is_slot & (torch.arange(len(is_slot)) >= self.max_length)
        if not late.any():
            return self.max_length, len(sample["image_sizes"])
        first_late = int(sample["frame_ids"][late][0])
        begin = int((is_slot & (sample["frame_ids"] == first_late)).nonzero()[0, 0])
        return min(begin, self.max_length), first_late

    def _count_cut(self, tokens: int, pictures: int, what: str, advice: str) -> None:
        """Log the 1st, 10th, 100th ... cut: a few lines however long the run is."""
        self.statistics.truncated_samples += 1
        self.statistics.truncated_tokens += tokens
        self.statistics.dropped_pictures += pictures
        count = self.statistics.truncated_samples
        if str(count).strip("0") == "1":
            logger.warning("%s (cut number %d); %s", what, count, advice)


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of sample indices: each sample goes to the first row with room, in the order given.

    A sample longer than `capacity` gets a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        row = next((r for r, free in enumerate(room) if length <= free), None)
        if row is None:
            rows.append([index])
            room.append(capacity - length)
        else:
            rows[row].append(index)
            room[row] -= length
    return rows


def _concatenate(row: list[Fields]) -> dict[str, Tensor]:
    """The samples of one row end to end; the first label of each is masked, so none is trained across a border."""
    lengths = [len(sample["input_ids"]) for sample in row]
    labels = torch.cat([sample["labels"] for sample in row])
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    labels[starts] = IGNORE_INDEX

    def joined(name: str, default: Callable[[int], Tensor]) -> Tensor:
        return torch.cat([s[name] if name in s else default(n) for s, n in zip(row, lengths, strict=True)])

    return {
        "input_ids": torch.cat([sample["input_ids"] for sample in row]),
        "labels": labels,
        "attention_mask": torch.ones(sum(lengths), dtype=torch.bool),
        "position_ids": joined("position_ids", torch.arange),
        "segment_ids": torch.arange(len(row)).repeat_interleave(torch.tensor(lengths)),
        "branch_ids": joined("branch_ids", lambda n: torch.zeros(n, dtype=torch.long)),
        "frame_ids": joined("frame_ids", lambda n: torch.full((n,), -1)),
    }


def _drop_pictures(sample: Fields, kept: int) -> int:
    """Keep the first pictures of a sample, with all their views; returns how many were dropped."""
    if "image_sizes" in sample:
        dropped = len(sample["image_sizes"]) - kept
        views = int(sample["image_views"][:kept].sum())
        sample.update(image_sizes=sample["image_sizes"][:kept], image_views=sample["image_views"][:kept])
        sample["images"] = sample["images"][:views]
        return dropped
    dropped = len(sample.get("images", ())) - kept
    for name in ("images", "object_patches"):
        if name in sample:
            sample[name] = sample[name][:kept]
    return dropped


def _sizes_of(sample: Fields) -> Tensor:
    """[pictures, 2]; those of a sample that is not cut (frames of a video) count as one view each."""
    if "image_sizes" in sample:
        return sample["image_sizes"]
    return torch.tensor(UNCUT).expand(len(sample.get("images", ())), 2)


def _join_pictures(pictures: list[Tensor]) -> Tensor:
    """[N, 3, H, W] in reading order of the batch."""
    shapes = {tuple(p.shape[1:]) for p in pictures}
    if len(shapes) > 1:
        raise ValueError(
            f"pictures of different sizes in one batch: {sorted(shapes)}; build all data sets with the same VisualSpec"
        )
    return torch.cat(pictures)


def _join_masks(samples: list[Fields]) -> Tensor:
    """[N, patches], a row per picture of the batch."""
    masks = [sample["object_patches"] for sample in samples if "object_patches" in sample]
    for sample in samples:
        count, found = len(sample.get("images", ())), len(sample.get("object_patches", ()))
        if count != found:
            raise ValueError(
                f"sample {sample.get('sample_id', '(no id)')} has {count} pictures and {found} rows of object_patches, "
                "expected a row per picture; give every data set of the mixture object masks, or none"
            )
    widths = {mask.shape[1] for mask in masks}
    if len(widths) > 1:
        raise ValueError(f"object_patches of {sorted(widths)} patches in one batch, expected those of one tower")
    return torch.cat(masks)


def _stack_clips(samples: list[Fields]) -> Tensor:
    """[B, T, 3, H, W]; every sample must carry a clip of the same T."""
    missing = [sample.get("sample_id", "") for sample in samples if "video_frames" not in sample]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(samples)} samples carry no video_frames, the first is {missing[0]!r}; "
            "give every data set of the mixture clips, or none"
        )
    shapes = {tuple(sample["video_frames"].shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(
            f"video_frames of different shapes in one batch: {sorted(shapes)}; sample as many frames everywhere"
        )
    return torch.stack([sample["video_frames"] for sample in samples])
