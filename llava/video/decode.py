"""A clip (file, bytes or folder of pictures) becomes frames and their true times: one door, several decoders."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from llava.utils.registry import Registry

Frame = UInt8[np.ndarray, "_ _ 3"]
"""RGB picture."""
Source = str | Path | bytes | io.BytesIO

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
STRIP_NAMES = ("filmstrip.png", "filmstrip.jpg")
"""All frames of an episode from top to bottom in one picture; the json beside it tells num_frames, height, width."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """fps is 0 for a folder of pictures and a filmstrip, whose times are not known."""

    num_frames: int
    fps: float
    height: int
    width: int


@runtime_checkable
class Clip(Protocol):
    """An opened clip. Indices count from 0 and may come in any order, repeated ones included."""

    info: VideoInfo

    def frames(self, indices: Sequence[int]) -> list[Frame]: ...

    def times(self, indices: Sequence[int]) -> list[float]:
        """Presentation times in seconds; not index / fps where the frame rate varies."""
        ...


def video_info(source: Source) -> VideoInfo:
    return open_clip(source).info


def read_frames(source: Source, indices: Sequence[int]) -> list[Frame]:
    """The frames at `indices`, in the order asked for.

    Raises:
        ValueError: for a source that cannot be decoded, a frame folder with gaps, or an index that does not exist.
    """
    return open_clip(source).frames(indices)


def open_clip(source: Source, decoder: str = "auto") -> Clip:
    """Open a clip; "auto" is decord where installed, else opencv. Folders and filmstrips need neither.

    Raises:
        FileNotFoundError: for a path that does not exist, and a picture without the json that makes it a filmstrip.
        ImportError: for a decoder that is not installed.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            return FilmstripClip(strip) if (strip := filmstrip_of(path)) else FolderClip(path)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.exists():
            return FilmstripClip(path)
        if not path.exists():
            raise FileNotFoundError(f"video {path} does not exist (working folder {Path.cwd()})")
    if decoder == "auto":
        decoder = "decord" if find_spec("decord") else "opencv"
    return DECODERS[decoder](source)


def list_frames(folder: str | Path) -> list[Path]:
    """Pictures of a folder in natural order (frame_2 before frame_10).

    Raises:
        ValueError: where the numbers in the names leave gaps, or the folder has no picture.
    """
    folder = Path(folder)
    paths = [path for path in folder.iterdir() if is_picture(path) and path.name not in STRIP_NAMES]
    if not paths:
        raise ValueError(f"frame folder {folder} has no picture ({', '.join(IMAGE_SUFFIXES)})")
    paths.sort(key=lambda path: natural_key(path.name))
    numbers = [frame_number(path.name) for path in paths]
    if None not in numbers:
        check_contiguous([number for number in numbers if number is not None], folder)
    return paths


def filmstrip_of(folder: Path) -> Path | None:
    """The filmstrip of a folder that holds no single frames."""
    strip = next((folder / name for name in STRIP_NAMES if (folder / name).is_file()), None)
    others = (path for path in folder.iterdir() if is_picture(path) and path.name not in STRIP_NAMES)
    return strip if strip is None or next(others, None) is None else None


def read_strip(strip: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of a filmstrip, not to be written to.

    Raises:
        FileNotFoundError, ValueError: it has no json beside it, or one that tells another size.
    """
    facts, pixels = strip_facts(strip), read_picture(strip)
    num_frames, height, width = facts["num_frames"], facts["height"], facts["width"]
    if pixels.shape[:2] != (num_frames * height, width):
        raise ValueError(
            f"{strip} is {pixels.shape[1]}x{pixels.shape[0]} pixels, its json tells {num_frames} frames of "
            f"{width}x{height} = {width}x{num_frames * height}; write the episode again"
        )
    frames = pixels.reshape(num_frames, height, width, 3)
    frames.setflags(write=False)
    return frames


def strip_facts(strip: Path) -> dict[str, int]:
    """num_frames, height, width."""
    path = strip.with_suffix(".json")
    try:
        facts = json.loads(path.read_text())
        return {key: int(facts[key]) for key in ("num_frames", "height", "width")}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{strip} has no {path.name} beside it, which tells num_frames, height, width; a single picture is no "
            "video, read it as one (llava.Image)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold num_frames, height and width as numbers: {error!r}") from error


def is_picture(path: Path) -> bool:
    """By its ending; masks of objects that lie beside pictures are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and ".objects." not in path.name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which digits count as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def frame_number(name: str) -> int | None:
    """The last number of a file name without its ending; None where there is none."""
    found = re.findall(r"\d+", Path(name).stem)
    return int(found[-1]) if found else None


def check_contiguous(numbers: Sequence[int], where: Path) -> None:
    """Refuse frame numbers with holes or doubles."""
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    if missing:
        raise ValueError(
            f"frame folder {where} has gaps: frames {ranges(numbers)} exist, {ranges(missing)} are missing; "
            "write the folder again or remove its records"
        )
    if len(set(numbers)) < len(numbers):
        doubled = sorted({number for number in numbers if list(numbers).count(number) > 1})
        raise ValueError(f"frame folder {where} has more than one picture for frames {ranges(doubled)}")


def ranges(numbers: Sequence[int], at_most: int = 8) -> str:
    """Numbers for a message: `0-5, 8`; the rest is counted."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:at_most])
    return shown + (f" and {len(runs) - at_most} more" if len(runs) > at_most else "")


def read_picture(path: str | Path) -> Frame:
    """One picture file as RGB; an error names the file."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        size = Path(path).stat().st_size if Path(path).exists() else None
        raise ValueError(
            f"picture {path} does not exist"
            if size is None
            else f"picture {path} ({size} bytes) cannot be decoded; it is cut off or no picture, write it again"
        )
    return pixels


class FolderClip:
    """A folder of numbered pictures; they are read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.paths = list_frames(folder)
        height, width = read_picture(self.paths[0]).shape[:2]
        self.info = VideoInfo(num_frames=len(self.paths), fps=0.0, height=height, width=width)

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        _check_indices(indices, self.info.num_frames, self.name)
        return [read_picture(self.paths[index]) for index in indices]

    def times(self, indices: Sequence[int]) -> list[float]:
        raise ValueError(f"frame folder {self.name} has no times; use the video it was cut from")


class FilmstripClip:
    """A picture that stacks frames from top to bottom, as `vila-world write` stores an episode."""

    def __init__(self, strip: Path) -> None:
        self.name = str(strip)
        self._frames = read_strip(strip)
        num_frames, height, width, _ = self._frames.shape
        self.info = VideoInfo(num_frames=num_frames, fps=0.0, height=height, width=width)

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        _check_indices(indices, self.info.num_frames, self.name)
        return [self._frames[index] for index in indices]

    def times(self, indices: Sequence[int]) -> list[float]:
        raise ValueError(f"filmstrip {self.name} has no times; frames follow each other at a distance of 1")


DECODERS: Registry[Callable[[Source], Clip]] = Registry("video decoder")


class DecordClip:
    """Seeks to key frames, so that few frames of a long clip are cheap."""

    def __init__(self, source: Source) -> None:
        try:
            import decord
        except ImportError as error:
            raise ImportError("decoder 'decord' is not installed: pip install decord") from error
        self.name = _name(source)
        try:
            self._reader = decord.VideoReader(_as_file(source), num_threads=1)
            height, width = self._reader[0].shape[:2]
        except (RuntimeError, IndexError) as error:
            raise _undecodable(self.name, "decord", error) from error
        fps = float(self._reader.get_avg_fps())
        self.info = VideoInfo(num_frames=len(self._reader), fps=fps, height=height, width=width)

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        _check_indices(indices, self.info.num_frames, self.name)
        if not indices:
            return []
        wanted = sorted(set(indices))
        try:
            pixels = self._reader.get_batch(wanted).asnumpy()
        except RuntimeError as error:
            raise _undecodable(self.name, "decord", error) from error
        return [pixels[wanted.index(index)] for index in indices]

    def times(self, indices: Sequence[int]) -> list[float]:
        _check_indices(indices, self.info.num_frames, self.name)
        return [float(self._reader.get_frame_timestamp(index)[0]) for index in indices]


class OpenCvClip:
    """Reads from the start and keeps what was asked for; needs no extra package."""

    def __init__(self, source: Source) -> None:
        self.name = _name(source)
        self._source = source
        with _CvCapture(source) as capture:
            is_read, first = capture.read()
            if not is_read:
                raise _undecodable(self.name, "opencv", None)
            # the container's count is not always right, so the frames are counted
            num_frames = 1
            while capture.grab():
                num_frames += 1
            fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.info = VideoInfo(num_frames=num_frames, fps=fps, height=first.shape[0], width=first.shape[1])

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        return [frame for frame, _ in self._read(indices)]

    def times(self, indices: Sequence[int]) -> list[float]:
        return [time for _, time in self._read(indices)]

    def _read(self, indices: Sequence[int]) -> list[tuple[Frame, float]]:
        _check_indices(indices, self.info.num_frames, self.name)
        found: dict[int, tuple[Frame, float]] = {}
        with _CvCapture(self._source) as capture:
            for index in range(max(indices, default=-1) + 1):
                capture.grab()
                if index in indices:
                    is_read, frame = capture.retrieve()
                    if not is_read:
                        raise _undecodable(self.name, "opencv", None)
                    seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    found[index] = (cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), seconds)
        return [found[index] for index in indices]


DECODERS.register("decord")(DecordClip)
DECODERS.register("opencv")(OpenCvClip)


class _CvCapture:
    """An opened capture that is closed again; bytes pass through a temporary file, which OpenCV needs."""

    def __init__(self, source: Source) -> None:
        self._file = None
        path = source
        if isinstance(source, (bytes, io.BytesIO)):
            self._file = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115 - closed in __exit__
            self._file.write(source if isinstance(source, bytes) else source.getvalue())
            self._file.flush()
            path = self._file.name
        self._capture = cv2.VideoCapture(str(path))

    def __enter__(self) -> cv2.VideoCapture:
        return self._capture

    def __exit__(self, *exception: object) -> None:
        self._capture.release()
        if self._file is not None:
            self._file.close()


def _as_file(source: Source) -> str | io.BytesIO:
    if isinstance(source, io.BytesIO):
        return io.BytesIO(source.getvalue())
    return io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).expanduser())


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return f"<{len(source if isinstance(source, bytes) else source.getvalue())} bytes>"


def _undecodable(name: str, decoder: str, error: Exception | None) -> ValueError:
    because = f": {str(error).strip().splitlines()[-1]}" if error and str(error).strip() else ""
    return ValueError(f"video {name} cannot be decoded by {decoder}{because}; play it elsewhere or fetch it again")


def _check_indices(indices: Sequence[int], num_frames: int, name: str) -> None:
    wrong = [index for index in indices if not 0 <= index < num_frames]
    if wrong:
        raise ValueError(f"video {name} has frames 0-{num_frames - 1}, asked for {ranges(wrong)}")
