"""Backgrounds that are not the same but differ by no more than noise: candidates, freshness, the guard's verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int32, Shaped
from numpy import ndarray
from torch import Tensor

from llava.scene.cache.camera import camera_motion, luminance
from llava.scene.cache.config import SimilarityConfig
from llava.scene.cache.entries import Entry, Origin
from llava.scene.cache.grid import CellGrid
from llava.scene.cache.guard import differs
from llava.scene.cache.request import BackgroundRequest
from llava.scene.cache.signature import (
    Signature,
    SignatureIndex,
    common_similarity,
    coverage,
    import_faiss,
    make_index,
    signature,
)

OVERFETCH = 4
"""Times as many backgrounds are taken from the index as are wanted where they are ranked once more."""


@dataclass(frozen=True, eq=False)
class Match:
    """A cached background that may stand for the one in a picture.

    Attributes:
        object_ids: cells of the new picture to be computed as objects: those that the background lacks, those that
            differ, and those that the request calls objects.
        stale_ids: cells of the cached background that differ, or that the camera left behind.
        shift: (rows, columns) by which the scene moved; cached cell (r, c) shows now at (r + rows, c + columns).
    """

    object_ids: Int32[ndarray, "m"]
    stale_ids: Int32[ndarray, "s"]
    shift: tuple[int, int]


class SimilaritySearch:
    """Signatures of the known backgrounds, and how often each was served without being computed again."""

    def __init__(self, config: SimilarityConfig, clock: Callable[[], float]) -> None:
        if config.index == "faiss":
            import_faiss()
        self.config = config
        self._clock = clock
        self._indexes: dict[tuple[bytes, bytes], SignatureIndex] = {}
        self._origins: dict[str, Origin] = {}
        self._uses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._origins)

    def add(self, origin: Origin) -> None:
        if origin.signature is None:
            return
        place = origin.scope, origin.grid
        if place not in self._indexes:
            self._indexes[place] = make_index(self.config.index)
        self._indexes[place].add(origin.key, origin.signature)
        self._origins[origin.key] = origin
        self._uses.pop(origin.key, None)

    def discard(self, key: str) -> None:
        origin = self._origins.pop(key, None)
        self._uses.pop(key, None)
        if origin is not None:
            self._indexes[origin.scope, origin.grid].discard(key)

    def forget(self, is_gone: Callable[[Origin], bool]) -> None:
        for origin in list(self._origins.values()):
            if is_gone(origin):
                self.discard(origin.key)

    def candidates(
        self,
        scope: bytes,
        request: BackgroundRequest,
        ids: Int32[ndarray, "n"] | None,
        tried_first: Iterable[str],
    ) -> list[Origin]:
        """Nearest first, after those that the caller's id was last used for.

        Args:
            ids: the picture's background; None where it is not known yet, then the whole picture is compared.
        """
        index = self._indexes.get((scope, request.grid_bytes))
        if index is None:
            return []
        side, wanted = self.config.signature_cells, self.config.num_candidates
        vector = signature(request, ids, side)
        near = index.nearest(vector, wanted if ids is None else OVERFETCH * wanted)
        if ids is not None:
            near = self._by_common_background(vector, coverage(ids, request.grid, side), near, request.grid)
        keys = [*tried_first, *(key for key, similarity in near if similarity >= self.config.min_signature)]
        known = (self._origins.get(key) for key in dict.fromkeys(keys))
        fitting = [origin for origin in known if origin and (origin.scope, origin.grid) == (scope, request.grid_bytes)]
        return fitting[:wanted]

    def _by_common_background(
        self, vector: Signature, covered: Signature, near: Iterable[tuple[str, float]], grid: CellGrid
    ) -> list[tuple[str, float]]:
        """Candidates anew, by what both show of the background: objects differ, and cover different parts of it."""
        ranked = []
        for key, _ in near:
            origin = self._origins[key]
            assert origin.signature is not None, "only origins with a signature are in an index"
            shown = coverage(origin.ids, grid, self.config.signature_cells)
            ranked.append((key, common_similarity(vector, covered, origin.signature, shown)))
        return sorted(ranked, key=lambda found: -found[1])

    def why_not_fresh(self, origin: Origin) -> str | None:
        """The reason why a background has to be computed again before it is served by similarity."""
        if self._clock() - origin.created > self.config.max_age_s:
            return "age"
        if self._uses[origin.key] >= self.config.refresh_every:
            return "refresh"
        return None

    def note_use(self, key: str) -> None:
        self._uses[key] += 1

    def judge(self, request: BackgroundRequest, entry: Entry, ids: Int32[ndarray, "n"] | None) -> Match | str:
        """A match, or the provenance of a refusal.

        Args:
            ids: the picture's background; None where it is not known yet.
        """
        assert entry.pixels is not None, "entries keep their pixels where similarity is on"
        grid, before, after = request.grid, entry.pixels, request.frames
        match = self._compare(request, entry.origin.ids, before, (0, 0), ids)
        if match is not None:
            return match
        if ids is None and callable(request.background):  # asked again after the detector, with objects left out
            return "rejected:stale"
        shown = [grid.pixel_mask(each) for each in (entry.origin.ids, entry.origin.ids if ids is None else ids)]
        motion = camera_motion(luminance(grid.seen(before)), luminance(grid.seen(after)), (shown[0], shown[1]))
        if motion is None or motion.is_still:
            return "rejected:stale"
        shift = motion.whole_cells(grid.cell_pixels)
        if shift is None or max(map(abs, shift)) > self.config.max_shift_cells:
            return "bypass:camera_motion"
        return self._compare(request, entry.origin.ids, before, shift, ids) or "bypass:camera_motion"

    def _compare(
        self,
        request: BackgroundRequest,
        cached: Int32[ndarray, "n"],
        before: Shaped[Tensor, "t c h w"],
        shift: tuple[int, int],
        asked: Int32[ndarray, "m"] | None,
    ) -> Match | None:
        """None where more of the background is stale than allowed.

        What a new object covers is stale too: the tokens that stay were computed with sight of it.
        """
        allowed = self.config.max_stale_fraction * len(cached)
        positions, inside = shifted_ids(cached, request.grid, shift)
        changed = self._moved_by_codec(request, shift)
        if (~inside | changed[positions]).sum() > allowed:  # the codec alone refuses: no need to look at pixels
            return None
        changed = changed | self._changed_pixels(request, before, shift)
        stale = ~inside | changed[positions]
        if stale.sum() > allowed:
            return None
        kept = np.zeros(request.grid.num_cells, dtype=bool)
        kept[positions[~stale]] = True
        if asked is not None:
            called_background = np.zeros_like(kept)
            called_background[asked] = True
            kept &= called_background
        return Match(np.flatnonzero(~kept).astype(np.int32), cached[stale], shift)

    def _changed_pixels(
        self, request: BackgroundRequest, before: Shaped[Tensor, "t c h w"], shift: tuple[int, int]
    ) -> Bool[ndarray, "p"]:
        grid, settings = request.grid, self.config
        pixels_moved = (shift[0] * grid.cell_pixels, shift[1] * grid.cell_pixels)
        changed = differs(
            torch.roll(before, pixels_moved, (2, 3)) if any(shift) else before,
            request.frames.to(before.device),
            grid,
            noise=settings.noise,
            sigmas=settings.sigmas,
            windows=settings.windows,
        )
        return changed.cpu().numpy()

    def _moved_by_codec(self, request: BackgroundRequest, shift: tuple[int, int]) -> Bool[ndarray, "p"]:
        """Vectors are relative to the last frame, so they say nothing about a background that is followed."""
        if request.moved is None or any(shift):
            return np.zeros(request.grid.num_cells, dtype=bool)
        return request.moved.cpu().numpy().reshape(-1)


def shifted_ids(
    ids: Int32[ndarray, "n"], grid: CellGrid, shift: tuple[int, int]
) -> tuple[Int32[ndarray, "n"], Bool[ndarray, "n"]]:
    """Where cells show after the scene moved by whole cells, and whether that is inside the picture (else 0)."""
    frame, rest = np.divmod(ids, grid.rows * grid.cols)
    row, col = np.divmod(rest, grid.cols)
    row, col = row + shift[0], col + shift[1]
    inside = (row >= 0) & (row < grid.rows) & (col >= 0) & (col < grid.cols)
    moved = (frame * grid.rows + row) * grid.cols + col
    return np.where(inside, moved, 0).astype(np.int32), inside
