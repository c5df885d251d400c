"""What happens to pictures of a camera that nobody moved: noise, compression, light, a shake."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from llava.utils.registry import Registry

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """apply: picture, mask of the objects and random numbers -> both as the camera gives them."""

    name: str
    title: str
    apply: Callable[[Picture, Mask, np.random.Generator], tuple[Picture, Mask]]


DISTURBANCES: Registry[Disturbance] = Registry("disturbance")


def _add(name: str, title: str, apply: Callable[[Picture, Mask, np.random.Generator], tuple[Picture, Mask]]) -> None:
    DISTURBANCES.register(name)(Disturbance(name=name, title=title, apply=apply))


def _levels(values: np.ndarray) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _noise(deviation: float) -> Callable[[Picture, Mask, np.random.Generator], tuple[Picture, Mask]]:
    return lambda picture, mask, draw: (_levels(picture + draw.normal(0, deviation, picture.shape)), mask)


def _jpeg(quality: int) -> Callable[[Picture, Mask, np.random.Generator], tuple[Picture, Mask]]:
    def apply(picture: Picture, mask: Mask, draw: np.random.Generator) -> tuple[Picture, Mask]:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
        with Image.open(buffer) as image:
            return np.asarray(image.convert("RGB")), mask

    return apply


def _light(most: float) -> Callable[[Picture, Mask, np.random.Generator], tuple[Picture, Mask]]:
    """Every picture has a brightness of its own, as under clouds or with an exposure that hunts."""
    return lambda picture, mask, draw: (_levels(picture * draw.uniform(1 - most, 1 + most)), mask)


def _shake(pixels: int) -> Callable[[Picture, Mask, np.random.Generator], tuple[Picture, Mask]]:
    """Moved by up to so many whole pixels; what comes in at the edge repeats the edge."""

    def apply(picture: Picture, mask: Mask, draw: np.random.Generator) -> tuple[Picture, Mask]:
        down, right = (int(value) for value in draw.integers(-pixels, pixels + 1, 2))
        rows = np.clip(np.arange(picture.shape[0]) - down, 0, picture.shape[0] - 1)
        columns = np.clip(np.arange(picture.shape[1]) - right, 0, picture.shape[1] - 1)
        return picture[rows[:, None], columns], mask[rows[:, None], columns]

    return apply


_add("none", "as drawn", lambda picture, mask, draw: (picture, mask))
_add("noise_2", "camera noise, 2 levels", _noise(2))
_add("noise_6", "camera noise, 6 levels", _noise(6))
_add("jpeg_85", "JPEG, quality 85", _jpeg(85))
_add("jpeg_50", "JPEG, quality 50", _jpeg(50))
_add("light_3", "light, 3 % up or down", _light(0.03))
_add("light_20", "light, 20 % up or down", _light(0.20))
_add("shake_1", "shake, 1 pixel", _shake(1))
_add("shake_4", "shake, 4 pixels", _shake(4))
