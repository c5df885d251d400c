"""Features of the frames of running episodes, by content: what was seen before is not encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from llava.eval.model_side import ModelSide


class FrameFeatures:
    """Kept per episode, until it is over: an episode costs the same alone and beside others."""

    def __init__(self, side: ModelSide) -> None:
        self.side = side
        self._episodes: dict[str, dict[bytes, Tensor]] = {}

    def of(self, wanted: Sequence[tuple[str, np.ndarray]]) -> tuple[list[Tensor], list[bool]]:
        """Features [k, d] of (episode, frame) pairs, and which of them had to be encoded, all in one vision batch."""
        names = [(key, _digest(frame)) for key, frame in wanted]
        new = {
            name: frame
            for name, (_, frame) in zip(names, wanted, strict=True)
            if name[1] not in self._episodes.setdefault(name[0], {})
        }
        if new:
            for (key, digest), features in zip(new, self.side.picture_features(list(new.values())), strict=True):
                self._episodes[key][digest] = features
        first_seen = {name: names.index(name) for name in new}
        return (
            [self._episodes[key][digest] for key, digest in names],
            [first_seen.get(name) == place for place, name in enumerate(names)],
        )

    def forget(self, key: str) -> None:
        self._episodes.pop(key, None)


def _digest(frame: np.ndarray) -> bytes:
    content = hashlib.sha256(repr((frame.shape, str(frame.dtype))).encode())
    content.update(np.ascontiguousarray(frame).data)
    return content.digest()
