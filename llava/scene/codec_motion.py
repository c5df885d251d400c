"""Which pixels a video codec moved since the last frame: it is in the stream, so that finding out costs nothing.

    for frame, moved in frames_with_motion("door.mp4"):
        patches = None if moved is None else frame_patches(moved, spec, rule)[None]
        model.generate(ids, to_uint8_tensor(frame, spec)[None], moved_patches=patches, background_cache=cache)

The vectors are a filter, never a proof: a block that stayed may show something else (the residual says so, and nobody
exports it), and they are relative to the last frame, not to the background that a cache knows. The cache compares
pixels as well; what the codec moved it need not compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from llava.scene.detector import Picture

Moved = Bool[ndarray, "h w"]
"""True = the codec moved the pixel, or found nothing in earlier frames that it could be predicted from."""


def frames_with_motion(path: str | Path, *, min_pixels: float | int = 0.5) -> Iterator[tuple[Picture, Moved | None]]:
    """The frames of a video in order of time, each with what moved; None where the codec tells nothing (key frames).

    Args:
        min_pixels: motion below this is none; codecs work with quarters of a pixel.

    Raises:
        ImportError: with the pip command, where PyAV is missing.
        FileNotFoundError: for a path that does not exist.
    """
    av, path = _import_av(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist (working folder {Path.cwd()})")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            picture = frame.to_ndarray(format="rgb24")
            vectors = None if frame.key_frame else frame.side_data.get("MOTION_VECTORS")
            if vectors is None:
                yield picture, None
            else:
                yield picture, moved_pixels(vectors.to_ndarray(), *picture.shape[:2], min_pixels=min_pixels)


def moved_pixels(
    vectors: Shaped[ndarray, "n"], height: int, width: int, *, min_pixels: float | int = 0.5
) -> Bool[ndarray, "height width"]:
    """From the vectors of one frame, as FFmpeg exports them: blocks by their centre, motion in parts of a pixel.

    Args:
        vectors: structured, with the fields w, h, dst_x, dst_y, motion_x, motion_y, motion_scale.

    Raises:
        ValueError: for a picture without pixels, and for vectors that lack a field.
    """
    needed = ("w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
    if lacking := [name for name in needed if name not in (vectors.dtype.names or ())]:
        raise ValueError(f"the motion vectors lack {lacking}, expected the fields {needed}, as PyAV's to_ndarray gives")
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {height} x {width}, expected at least one pixel")
    scale = np.maximum(vectors["motion_scale"].astype(np.float64), 1)
    motion = np.hypot(vectors["motion_x"] / scale, vectors["motion_y"] / scale)
    predicted = _covered(vectors, height, width)
    return _covered(vectors[motion >= min_pixels], height, width) | ~predicted


def _covered(vectors: Shaped[ndarray, "n"], height: int, width: int) -> Bool[ndarray, "height width"]:
    """Pixels in any of the blocks; each adds one between its corners, summed up along both axes at the end."""
    left, top = (vectors[centre].astype(int) - vectors[side] // 2 for centre, side in (("dst_x", "w"), ("dst_y", "h")))
    right, bottom = left + vectors["w"], top + vectors["h"]
    columns = np.clip([left, right], 0, width)
    rows = np.clip([top, bottom], 0, height)
    corners = np.zeros((height + 1, width + 1), dtype=int)
    for y, y_sign in zip(rows, (1, -1), strict=True):
        for x, x_sign in zip(columns, (1, -1), strict=True):
            np.add.at(corners, (y, x), y_sign * x_sign)
    return corners.cumsum(0).cumsum(1)[:height, :width] > 0


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("motion vectors are read with PyAV, which is not installed; pip install av") from error
    return av
