"""The second target of the next-frame loss: depth, or what another model made of each frame, on the tower's grid.

One file per video, `<video>.npz` or `<video>.safetensors`, row i belongs to frame i:

    depth      [frames, height, width], metres (floats) or whole numbers of `unit_m` metres; not above 0 = unknown
    features   [frames, rows, columns, channels] of a grid that covers the whole picture; NaN = unknown
    origin     name of the model that made the features; beside `features` only
    unit_m     beside whole numbers only

`origin` and `unit_m` are arrays of an npz file and metadata (text) of a safetensors file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.batch import VisualSpec
from llava.scene.geometry import ViewMap, one_view, picture_views
from llava.video.decode import frame_number

logger = logging.getLogger(__name__)

DEPTH = "depth"
SUFFIXES = (".npz", ".safetensors")
KEPT_BYTES = 64 * 2**20
"""Depth of whole videos, already on the grid, which each process keeps and never drops (see `base.Pictures`)."""

Place = tuple[str, int]
"""(video, frame): the path of a video or folder of frames without its ending, relative to its media, and a row."""


@dataclass(frozen=True, kw_only=True)
class GeometryOptions:
    """What is read, and the grid on which it is wanted.

    Attributes:
        origin: "depth", or the name that feature files give as their `origin`.
        width: channels; 1 for depth.
        side, pool: patches of the tower per side, and the side of the squares of them that make one token.
    """

    origin: str = DEPTH
    width: int = 1
    side: int
    pool: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "side", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of the geometry is {getattr(self, name)}, expected at least 1")
        if self.origin == DEPTH and self.width != 1:
            raise ValueError(
                f"geometry_dim is {self.width} and geometry_origin 'depth', expected 1; for features of another model "
                "give its name as geometry_origin"
            )

    @property
    def num_tokens(self) -> int:
        return (-(-self.side // self.pool)) ** 2

    @property
    def array(self) -> str:
        """Name of the array in a file."""
        return "depth" if self.origin == DEPTH else "features"


class Geometry:
    """Reads the second target of the frames of one data set. What is not there is NaN, counted and reported.

    Args:
        root: folder of the files, relative to which a video has the name that it has below its media; None = the data
            set has none.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
        ValueError: its first file is of another model, or of another width.
    """

    def __init__(self, options: GeometryOptions, spec: VisualSpec, root: Path | None, dataset: str) -> None:
        self.options, self.spec, self.root, self.dataset = options, spec, root, dataset
        self.missing: set[str] = set()
        self._kept: dict[str, Float32[np.ndarray, "t n g"]] = {}
        self._room = KEPT_BYTES
        if root is None:
            logger.warning(
                "data set '%s' has no %s: its frames have no second target", dataset, path_key(options.origin)
            )
        else:
            self._read(_first_file(root, dataset, options), [0])

    @classmethod
    def of(
        cls,
        options: GeometryOptions | None,
        spec: VisualSpec,
        dataset: str,
        *,
        depth_path: str | Path | None,
        features_path: str | Path | None,
    ) -> Geometry | None:
        """What the options ask for, from the folders of a registry entry; None = nothing, and no file is read."""
        if options is None:
            return None
        root = depth_path if options.origin == DEPTH else features_path
        return cls(options, spec, None if root is None else Path(root).expanduser(), dataset)

    def along(self, places: Sequence[Place | None]) -> Float[Tensor, "t n g"]:
        """Of each frame; None is padding."""
        options = self.options
        rows = np.full((len(places), options.num_tokens, options.width), np.nan, dtype=np.float32)
        for video in sorted({place[0] for place in places if place is not None}):
            wanted = [(row, place[1]) for row, place in enumerate(places) if place is not None and place[0] == video]
            found = self._of_video(video, [frame for _, frame in wanted])
            if found is not None:
                rows[[row for row, _ in wanted]] = found
        return torch.from_numpy(rows)

    def report(self) -> str:
        """For the report of the data set; empty while nothing was missing."""
        return f", {len(self.missing)} video(s) without {self.options.origin}" if self.missing else ""

    def _of_video(self, video: str, frames: list[int]) -> Float32[np.ndarray, "k n g"] | None:
        path = None if self.root is None else find_file(self.root, video)
        if path is None:
            self._miss(video)
            return None
        if self.options.origin != DEPTH:
            return self._read(path, frames)
        kept = self._kept.get(video)
        if kept is None:
            kept = self._read(path, None)
            if kept.nbytes <= self._room:
                self._room -= kept.nbytes
                self._kept[video] = kept
        _check_frames(frames, len(kept), path)
        return kept[frames]

    def _miss(self, video: str) -> None:
        """Remembered; the first five are logged, then the 10th, 100th ..."""
        if video in self.missing or self.root is None:
            return
        self.missing.add(video)
        count = len(self.missing)
        if count <= 5 or str(count).strip("0") == "1":
            expected = self.root / f"{video}{SUFFIXES[0]}"
            logger.warning(
                "data set '%s': video number %d without %s, its frames are left out of the second target: %s",
                self.dataset, count, self.options.origin, expected,
            )  # fmt: skip

    def _read(self, path: Path, frames: list[int] | None) -> Float32[np.ndarray, "k n g"]:
        values = read_file(path, self.options, frames)  # [K, H, W, C]
        height, width = values.shape[1:3]
        spec = self.spec
        is_whole = spec.aspect_mode not in ("pad", "crop")  # frames of a video are never cut into tiles
        view = one_view(spec.image_size, height, width) if is_whole else picture_views(spec, height, width)[0]
        if self.options.origin == DEPTH:
            values = np.log(values)
        return on_grid(values, view, self.options)


def path_key(origin: str) -> str:
    """The key of a registry entry that names the folder."""
    return "depth_path" if origin == DEPTH else "features_path"


def place_of_frame(name: str) -> Place | None:
    """`7/frame_12.jpg` -> ("7", 12): as a filmstrip counts its rows. None for a name without a number."""
    path, number = PurePosixPath(name), frame_number(name)
    return None if number is None else (str(path.parent), number)


def find_file(root: Path, video: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := root / f"{video}{suffix}").is_file()), None)


def on_grid(
    values: Float[np.ndarray, "k h w c"], view: ViewMap, options: GeometryOptions
) -> Float32[np.ndarray, "k n g"]:
    """Per token the mean of what is known (finite), weighted by the area of its squares; NaN where nothing is."""
    length = view.side // options.side
    rows, columns = (_weights(axis.overlap(length), options) for axis in (view.rows, view.columns))
    return np.stack([_frame_on_grid(frame, rows, columns) for frame in values])


def _frame_on_grid(
    frame: Float[np.ndarray, "h w c"], rows: Float[np.ndarray, "r h"], columns: Float[np.ndarray, "s w"]
) -> Float32[np.ndarray, "n c"]:
    is_known = np.isfinite(frame).all(axis=2)
    channels = np.where(is_known, np.moveaxis(frame, 2, 0), 0.0).astype(np.float64)
    sums, areas = rows @ channels @ columns.T, rows @ is_known.astype(np.float64) @ columns.T
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        means = sums / areas  # [C, R, S]
    return means.reshape(len(means), -1).T.astype(np.float32)


def _weights(overlap: np.ndarray, options: GeometryOptions) -> np.ndarray:
    """Squares of patches; an incomplete one at the border is made of the patches that exist."""
    if len(overlap) != options.side:
        raise ValueError(
            f"a view of {options.side} patches per side was asked for, and {len(overlap)} of that size fit into it; "
            "image_size must hold a whole number of patches"
        )
    return np.add.reduceat(overlap, np.arange(0, options.side, options.pool), axis=0)


# ---- files ----


def read_file(
    path: Path, options: GeometryOptions, frames: Sequence[int] | None = None
) -> Float[np.ndarray, "k h w c"]:
    """Depth in metres (NaN where it is not known) or features, of some frames or of all.

    Raises:
        ValueError: naming the file, what it holds and what was expected.
    """
    array, facts = (_read_npz if path.suffix == ".npz" else _read_safetensors)(path, options.array, frames)
    if options.origin == DEPTH:
        return _metres(array, facts, path)[..., None]
    origin = facts.get("origin")
    if array.ndim != 4 or array.shape[3] != options.width or str(origin) != options.origin:
        raise ValueError(
            f"{path} holds features {list(array.shape[1:])} per frame of '{origin}', expected [rows, columns, "
            f"{options.width}] of '{options.origin}'; prepare the files anew, or set geometry_dim and geometry_origin"
        )
    return array


def _metres(array: np.ndarray, facts: dict[str, Any], path: Path) -> Float[np.ndarray, "k h w"]:
    is_whole = np.issubdtype(array.dtype, np.integer)
    if array.ndim != 3 or (is_whole and "unit_m" not in facts):
        raise ValueError(
            f"{path} holds depth {list(array.shape[1:])} per frame as {array.dtype}, expected [height, width] in "
            "metres, or whole numbers with unit_m beside them; write it again"
        )
    metres = array.astype(np.float32) * np.float32(facts.get("unit_m", 1.0))
    return np.where(metres > 0, metres, np.float32(np.nan))


def _read_npz(path: Path, name: str, frames: Sequence[int] | None) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        with np.load(path) as file:
            found = {key: file[key] for key in file.files if key in (name, "origin", "unit_m")}
            names = file.files
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an npz file: {error}; write it again") from error
    if name not in found:
        raise _lacks(path, name, names)
    array = found.pop(name)
    if frames is not None:
        _check_frames(frames, len(array), path)
        array = array[list(frames)]
    return array, {key: value.item() for key, value in found.items()}


def _read_safetensors(path: Path, name: str, frames: Sequence[int] | None) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:  # numpy knows no bfloat16
            names, facts = list(file.keys()), dict(file.metadata() or {})
            if name not in names:
                raise _lacks(path, name, names)
            if frames is None:
                return _as_numpy(file.get_tensor(name)), facts
            part = file.get_slice(name)
            _check_frames(frames, part.get_shape()[0], path)
            return np.concatenate([_as_numpy(part[i : i + 1]) for i in frames]), facts
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}; write it again") from error


def _as_numpy(values: Tensor) -> np.ndarray:
    return (values.float() if values.is_floating_point() else values).numpy()


def _lacks(path: Path, name: str, found: Sequence[str]) -> ValueError:
    return ValueError(f"{path} holds {sorted(found)}, expected '{name}'; write it again, or correct geometry_origin")


def _check_frames(frames: Sequence[int], count: int, path: Path) -> None:
    if frames and not 0 <= min(frames) <= max(frames) < count:
        raise ValueError(
            f"{path} holds frames 0-{count - 1}, asked for {max(frames)}; write it together with the frames"
        )


def _first_file(root: Path, dataset: str, options: GeometryOptions) -> Path:
    key = path_key(options.origin)
    files = (path for suffix in SUFFIXES for path in root.rglob(f"*{suffix}"))
    found = next(files, None)
    if found is None:
        how = "vila-world write --depth" if options.origin == DEPTH else f"a file per video of '{options.origin}'"
        raise FileNotFoundError(
            f"data set '{dataset}': {key} is {root}, which holds no {' or '.join(SUFFIXES)} file; write it ({how}), or "
            "leave the second target out (geometry_dim)"
        )
    return found
