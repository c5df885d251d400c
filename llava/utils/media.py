"""Keeps a documented name: the functions live in `llava.mm_utils`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = ("extract_media", "extract_video_frames", "opencv_extract_frames")


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'llava.utils.media' has no attribute '{name}'")
    return getattr(import_module("llava.mm_utils"), name)
