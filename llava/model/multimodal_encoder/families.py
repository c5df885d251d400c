"""What settings alone say of a vision tower: sides, scales, tokens before the patches, pixel statistics. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llava.utils.dynamic_s2 import read_scales

Channels = tuple[float, float, float]

CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
HALF: Channels = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class VisionFamily:
    """What the towers of one family have in common.

    Attributes:
        image_mean, image_std: of the pixels (in 0..1) with which the family was trained.
        aspect_mode: how a picture becomes square.
        num_class_tokens: tokens before the patches that no setting counts.
        counted_prefix: settings that count further tokens before the patches -> their defaults.
    """

    image_mean: Channels = HALF
    image_std: Channels = HALF
    aspect_mode: Literal["resize", "crop"] = "resize"
    num_class_tokens: int = 0
    counted_prefix: Mapping[str, int] = field(default_factory=dict)

    def num_prefix_tokens(self, settings: Mapping[str, Any]) -> int:
        counted = (settings.get(key, default) for key, default in self.counted_prefix.items())
        return self.num_class_tokens + sum(counted)


_CLIP = VisionFamily(image_mean=CLIP_MEAN, image_std=CLIP_STD, aspect_mode="crop", num_class_tokens=1)
_IMAGENET = VisionFamily(image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD, num_class_tokens=1)

FAMILIES: dict[str, VisionFamily] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": _IMAGENET,
    "dinov2_with_registers": replace(_IMAGENET, counted_prefix={"num_register_tokens": 4}),
    "internvl_vision": _IMAGENET,
    "intern_vit_6b": _IMAGENET,
    # RADIO normalises pixels itself, with statistics of its own config: it wants them in 0..1
    "radio": VisionFamily(
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
        counted_prefix={"num_cls_tokens": 3, "num_registers": 7},
    ),
}
"""`model_type` of a vision config -> its family; a type that is not here is like SigLIP."""


def family_of(model_type: str | None) -> VisionFamily:
    return FAMILIES.get(model_type or "", VisionFamily())


def square_side(size: Any, name: str = "image_size") -> int:
    """One side of a square that is given by its side or by a pair of equal sides."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{name} of the vision tower is {size}, expected a square: one number or two equal ones")
    return int(sides[0])


def resolution_of(config: Any, image_size: Any) -> int:
    """Side of the pictures that one pass of the tower reads: `vision_resolution` where it is set, else the tower's."""
    asked = getattr(config, "vision_resolution", None)
    return asked if asked is not None and asked > 0 else square_side(image_size)


def scales_of(config: Any, image_size: int) -> tuple[int, ...]:
    """Sides of the pictures of several scales, rising from the tower's own; () for a model of one scale.

    Raises:
        ValueError: for scales that do not cut into tiles of the tower's own size.
    """
    asked = next((key for key in ("s2", "dynamic_s2") if getattr(config, key, None)), None)
    if asked is None:
        return ()
    stored = config.s2_scales
    if not stored:
        raise ValueError(f"config.{asked} is set, but s2_scales is {stored!r}, expected sides such as '336,672,1008'")
    scales = read_scales(stored)
    if scales[0] != image_size or any(scale % image_size for scale in scales):
        raise ValueError(
            f"s2_scales is {stored!r}, expected {image_size} (the side that the tower reads) and multiples of it, "
            f"such as '{image_size},{2 * image_size}'; or set vision_resolution to the smallest scale"
        )
    if config.s2_max_split_size not in (None, image_size):
        raise ValueError(
            f"s2_max_split_size is {config.s2_max_split_size}, expected {image_size}, the side that the tower reads; "
            "leave it out"
        )
    return scales
