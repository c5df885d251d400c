"""COCO's run-length code of masks: column by column, runs of background and object in turn, background first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """`{"size": [height, width], "counts": text}`, as COCO's tools write and read it."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(flat)]])
    runs = np.diff(edges).tolist()
    if len(flat) and flat[0]:
        runs = [0, *runs]
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": _compress(runs)}


def decode_rle(code: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of a code whose counts are text, bytes or a list of runs.

    Raises:
        ValueError: when the runs do not add up to the size.
    """
    size, counts = code.get("size"), code.get("counts")
    if not (isinstance(size, (list, tuple)) and len(size) == 2) or counts is None:
        raise ValueError(f"a mask is {str(dict(code))[:80]}, expected {{'size': [height, width], 'counts': runs}}")
    height, width = int(size[0]), int(size[1])
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts.decode("ascii") if isinstance(counts, bytes) else counts)
    runs = np.asarray(counts, dtype=np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"the runs of a mask cover {int(runs.sum())} pixels, its size {height} x {width} has {height * width}; "
            "the file is cut off or of another picture: write it again"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _compress(runs: list[int]) -> str:
    """Five bits per character from the lowest on, bit 5 = more follow; from the third run on the difference to the
    run two before."""
    text = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + (0 if is_last else 32)))
            if is_last:
                break
    return "".join(text)


def _decompress(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} in a mask's counts, expected COCO's code; the file is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a mask's counts end in the middle of a number; the file is cut off: write it again")
    return runs
