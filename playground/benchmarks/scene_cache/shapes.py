"""What is compared: models by name, the cells of the result's table, the goals."""

from __future__ import annotations

from dataclasses import dataclass, replace

from playground.benchmarks.scene_cache.pictures import CHANGES
from playground.benchmarks.workload import Size

GOALS = {0.25: 1.3, 0.5: 1.8, 0.75: 2.8}
"""Share of the background -> how many times faster than our own full path a new object before it should be."""
MISS_GOAL = 1.03
SYSTEM_TOKENS, QUESTION_TOKENS = 35, 64
NOISE = 2.5
"""Standard deviation of JPEG noise at quality 85 on these pictures, in levels."""
CONTRASTS = (4, 8, 16, 32, 64)
COLUMNS = ("cold", *CHANGES)
CASES = {
    "picture": {
        "split": ["cold"],
        "tokens": ["same picture", "new object"],
        "tokens + KV": ["cold", *CHANGES],
        "guarded": ["new object", "JPEG noise", "lighting", "shift 2 px"],
    },
    "clip": {
        "split": ["cold"],
        "tokens + KV": ["cold", "same picture", "new object"],
        "guarded": ["JPEG noise"],
    },
}
"""Which columns are measured; those of whole pictures are the same for every share and measured once."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Models of one picture and of a clip; clips come in smaller pictures on the CPU."""

    picture: Size
    clip: Size
    num_frames: int = 8

    def of(self, case: str) -> tuple[Size, int]:
        """The model of a case, and the frames of its prompt."""
        return (self.clip, self.num_frames) if case == "clip" else (self.picture, 1)


_CPU = Size(width=512, layers=8, heads=8, key_value_heads=8, vocabulary=8000, image_size=336, tower_width=512,
            tower_layers=8)  # fmt: skip
_LLAVA = Size(width=4096, layers=32, heads=32, key_value_heads=32, vocabulary=32064, image_size=336, tower_width=1024,
              tower_layers=24)  # fmt: skip
_TINY = Size(width=64, layers=2, heads=2, key_value_heads=2, vocabulary=200, image_size=112, tower_width=64,
             tower_layers=2)  # fmt: skip
SHAPES = {
    "cpu": Shape(picture=_CPU, clip=replace(_CPU, image_size=168)),
    "llava-7b": Shape(picture=_LLAVA, clip=_LLAVA),
    "tiny": Shape(picture=_TINY, clip=replace(_TINY, image_size=56), num_frames=3),
}
