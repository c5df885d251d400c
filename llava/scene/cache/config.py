"""Settings of the background cache, valid from birth."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llava.scene.cache.cost import MeasuredCosts


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Opt-in: a background may also be served to a picture that differs from its own by no more than noise.

    Attributes:
        noise: standard deviation of the sensor's noise in the units of the pixels that requests carry (for uint8,
            levels); `estimate_noise` measures it on a still clip. 0 makes every difference count.
        sigmas: a cell differs where its largest difference is more than this many standard deviations of the
            difference of two noisy pixels.
        windows: widths in pixels of the squares over which differences are averaged before the largest is taken; 1 is
            the pixel itself, 4 finds faint but wide changes, because noise averages out and they do not.
        max_stale_fraction: largest share of the cached background's cells that may differ.
        max_age_s: seconds after which a background is no longer served by similarity.
        refresh_every: after so many guarded answers from one background the next request computes afresh.
        num_candidates: backgrounds, nearest signature first, that the guard looks at.
        min_signature: cosine similarity below which a background is no candidate.
        signature_cells: side of the pooled luminance grid that is the signature.
        max_shift_cells: largest camera motion, in whole cells, that is followed; 0 follows none.
        index: `numpy` compares with every signature; `faiss` is for more than about 10,000 backgrounds.
    """

    noise: float | int
    sigmas: float | int = 6.0
    windows: tuple[int, ...] = (1, 4)
    max_stale_fraction: float | int = 0.1
    max_age_s: float | int = 600.0
    refresh_every: int = 32
    num_candidates: int = 3
    min_signature: float | int = 0.5
    signature_cells: int = 8
    max_shift_cells: int = 2
    index: Literal["numpy", "faiss"] = "numpy"

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"noise is {self.noise}, expected a standard deviation of 0 or more; see estimate_noise")
        if not 0 <= self.max_stale_fraction < 1:
            raise ValueError(f"max_stale_fraction is {self.max_stale_fraction}, expected 0 or more and less than 1")
        if not self.windows or min(self.windows) < 1:
            raise ValueError(f"windows are {self.windows}, expected widths of at least one pixel, such as (1, 4)")
        positive = {
            "sigmas": self.sigmas,
            "max_age_s": self.max_age_s,
            "refresh_every": self.refresh_every,
            "num_candidates": self.num_candidates,
            "signature_cells": self.signature_cells,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}, expected more than 0")
        if self.max_shift_cells < 0:
            raise ValueError(f"max_shift_cells is {self.max_shift_cells}, expected 0 (follow no motion) or more")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where values are kept and when they are served.

    Attributes:
        device_bytes: bytes of values on `device`; more than the device has is refused here, one value that is larger
            goes to the next tier.
        device: where answers lie.
        host_bytes: bytes in main memory behind the device (pinned where CUDA exists); 0 = no such tier.
        disk_folder: folder of the third tier; may be shared by processes and outlives them.
        disk_bytes: bytes of files in it, all processes together.
        write_through: also write each new value to disk at once; otherwise it is written when memory runs out, by
            `flush` and by `close`.
        verify: what a hit is checked against: `fingerprints`, 256 bits per background cell, or `pixels`, the
            background's own pixels, which are then kept with the value.
        similarity: None serves exact hits only.
        costs: measured seconds by which a request is bypassed where the cache would lose; None never bypasses.
        min_match_share: a known set of cells is served without asking the request's function only if it holds at least
            this share of the picture's cells that are not blank: padding, or a corner, is the same in many pictures.
        detect_every: every so many requests that bring a function it is asked even though a known set matches, so that
            a background is noticed that has grown since; 0 = never.
        max_patch_sets: with the background left open, at most so many known sets of cells are tried, newest first.
        flight_timeout_s: a request waits at most so long for another one that computes the same value, then computes
            itself; None waits until that one ends.
    """

    device_bytes: int
    device: str | torch.device = "cpu"
    host_bytes: int = 0
    disk_folder: str | Path | None = None
    disk_bytes: int = 0
    write_through: bool = False
    verify: Literal["fingerprints", "pixels"] = "fingerprints"
    similarity: SimilarityConfig | None = None
    costs: MeasuredCosts | None = None
    min_match_share: float | int = 0.1
    detect_every: int = 64
    max_patch_sets: int = 32
    flight_timeout_s: float | int | None = None

    def __post_init__(self) -> None:
        if self.verify not in ("fingerprints", "pixels"):
            raise ValueError(f"verify is '{self.verify}', expected 'fingerprints' or 'pixels'")
        if self.max_patch_sets < 1:
            raise ValueError(f"max_patch_sets is {self.max_patch_sets}, expected at least 1")
        if not 0 <= self.min_match_share <= 1:
            raise ValueError(f"min_match_share is {self.min_match_share}, expected a share of 0 to 1")
        if self.detect_every < 0:
            raise ValueError(f"detect_every is {self.detect_every}, expected a number of answers, or 0 for never")
        if (self.disk_folder is None) != (self.disk_bytes == 0):
            raise ValueError(
                f"disk_folder is {self.disk_folder} and disk_bytes {self.disk_bytes}; give both, or neither"
            )
        if self.write_through and self.disk_folder is None:
            raise ValueError("write_through is on without a disk tier; give disk_folder and disk_bytes")
        self._check_room()

    @property
    def keeps_pixels(self) -> bool:
        return self.similarity is not None or self.verify == "pixels"

    def _check_room(self) -> None:
        rooms = {"device_bytes": (self.device_bytes, _memory_of(torch.device(self.device)))}
        rooms["host_bytes"] = (self.host_bytes, _main_memory())
        if self.disk_folder is not None:
            rooms["disk_bytes"] = (self.disk_bytes, _disk_of(Path(self.disk_folder)))
        for name, (wanted, there) in rooms.items():
            if wanted < 0:
                raise ValueError(f"{name} is {wanted}, expected 0 or more")
            if wanted > there:
                raise ValueError(f"{name} is {wanted:,}, more than the {there:,} bytes that there are; give less")


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return _main_memory()


def _main_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk_of(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).total
