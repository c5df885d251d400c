"""The typed contract between the data side and the model side: neither imports the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VisualSpec:
    """All that the data side must know about the vision part of a model.

    Attributes:
        image_size: side in pixels of the square picture that the tower reads.
        tokens_per_image: language-model positions that one picture takes after the projector.
        image_mean, image_std: per-channel normalisation, applied on the device by the model to uint8 pictures.
        aspect_mode: how a picture becomes square: "resize" (aspect ratio not kept), "pad" (centred on the mean colour),
            "crop" (shortest edge, then centre crop), "dynamic" (cut into tiles; among others, resized), "dynamic_s2"
            (the same at every scale) or "anyres".
        anyres: `utils.anyres.AnyresRule` of a model that reads pictures of any size; a picture then comes as the whole
            and its tiles, with its own size in `image_sizes`, and takes as many tokens as its layout says.
        dynamic_s2: `utils.dynamic_s2.DynamicS2Rule`; a picture that is alone comes as its tiles at every scale, with
            its size in `image_sizes`; among others it is one view of `tokens_per_image` tokens.
        min_tiles, max_tiles: of a "dynamic" picture; the whole picture follows its tiles when there are several.
    """

    image_size: int
    tokens_per_image: int
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    aspect_mode: Literal["resize", "pad", "crop", "dynamic", "dynamic_s2", "anyres"] = "resize"
    anyres: Any = None
    dynamic_s2: Any = None
    min_tiles: int = 1
    max_tiles: int = 12

    def __post_init__(self) -> None:
        for name in ("image_size", "tokens_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(
                f"min_tiles is {self.min_tiles} and max_tiles {self.max_tiles}, expected 1 <= min_tiles <= max_tiles"
            )

    @property
    def view_rule(self) -> Any:
        """How pictures of any size become views and tokens; None for a model whose pictures are squares."""
        return self.anyres or self.dynamic_s2


class ClipSample(TypedDict, total=False):
    """T frames of the video or episode of one sample, in the order of time, for losses that look ahead.

    A frame is one of the sample's n pictures (0 .. n-1), picture k of `target_frames` (n + k), which no language model
    sees, or -1: padding. target_frames is there only with M > 0, geometry only where a data set gives it.
    """

    frames: Tensor  # int64 [T]
    target_frames: Tensor  # uint8 [M, 3, H, W]
    times: Tensor  # float32 [T], low-level step of the episode, or seconds
    motions: Tensor  # float32 [T, 3] until the next frame: metres ahead, degrees to the left, low-level steps; or NaN
    answer_end_positions: Tensor  # int64 [T], token of the sample that ends the answer given at the frame, -1 = none
    geometry: Tensor  # float32 [T, tokens, dim], NaN = missing


class ClipBatch(TypedDict, total=False):
    """The V clips of a batch, in the order of its samples, padded to the longest with -1, NaN and 0.

    A frame is one of the N `images` of the batch, picture k of `target_frames` (N + k), or -1: padding.
    """

    frames: Tensor  # int64 [V, T]
    target_frames: Tensor  # uint8 [M, 3, H, W]; only with M > 0
    samples: Tensor  # int64 [V], into `sample_ids`
    rows: Tensor  # int64 [V], row of the batch
    frame_end_positions: Tensor  # int64 [V, T], column of the frame's last visual token, -1 = not in the sequence
    answer_end_positions: Tensor  # int64 [V, T], column, -1 = none
    times: Tensor  # float32 [V, T]
    motions: Tensor  # float32 [V, T, 3]
    geometry: Tensor  # float32 [V, T, tokens, dim], NaN = missing


class Sample(TypedDict, total=False):
    """One training sequence of S tokens; every picture already takes its `tokens_per_image` placeholders.

    Only input_ids and labels are required. images: uint8 [n, 3, H, W] in reading order. Where pictures are cut, n
    counts views, image_sizes has a row per picture, and image_views says how many views each has. object_patches has a
    row per picture of images, where the model splits them.
    position_ids, branch_ids, frame_ids default to 0..S-1, 0, and -1 everywhere.
    """

    input_ids: Tensor  # int64 [S]
    labels: Tensor  # int64 [S], IGNORE_INDEX where not trained; the first is never trained
    images: Tensor  # uint8 [n, 3, H, W]
    image_sizes: Tensor  # int64 [pictures, 2], height and width before cutting; only with anyres and dynamic_s2
    image_views: Tensor  # int64 [pictures]; only beside image_sizes
    object_patches: Tensor  # bool [n, patches], True = object; only where DataOptions.object_masks asks for it
    position_ids: Tensor  # int64 [S]
    branch_ids: Tensor  # int64 [S], 0 = trunk, k > 0 = an aside that only itself can see
    frame_ids: Tensor  # int64 [S], picture to which the token belongs, -1 before the first
    video_frames: Tensor  # uint8 [T, 3, H, W], only where next-frame reconstruction asks for it
    sample_id: str
    clip: ClipSample  # only where DataOptions.clips asks for it and two frames are known


class MultimodalBatch(TypedDict, total=False):
    """What the collator hands to `forward`: right-padded rows, or packed rows of several samples.

    segment_ids counts the samples inside a row from 0; -1 marks padding.
    """

    input_ids: Tensor  # int64 [B, S]
    labels: Tensor  # int64 [B, S]
    attention_mask: Tensor  # bool [B, S], True = a real token
    position_ids: Tensor  # int64 [B, S]
    segment_ids: Tensor  # int64 [B, S]
    branch_ids: Tensor  # int64 [B, S]
    frame_ids: Tensor  # int64 [B, S]
    images: Tensor  # uint8 [N, 3, H, W]
    image_sizes: Tensor  # int64 [pictures, 2]; only with anyres and dynamic_s2, 0 x 0 = not cut
    object_patches: Tensor  # bool [N, patches], True = object
    video_frames: Tensor  # uint8 [B, T, 3, H, W]
    sample_ids: list[str]
    clips: ClipBatch  # only where a sample has a clip
