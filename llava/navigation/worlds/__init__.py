"""Worlds to navigate in: the embedded one (NumPy only), Habitat and MiniWorld behind one protocol."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "CameraProfile": "base",
    "Episode": "base",
    "NavigationWorld": "base",
    "Observation": "base",
    "generate_houses": "house",
    "demonstrate": "demonstrations",
    "make_episodes": "episodes",
    "EmbeddedWorld": "embedded",
    "EmbeddedWorldBatch": "embedded",
    "EmbeddedEnv": "environment",
    "describe_objects": "grounding",
    "read_episodes": "episode_files",
    "write_episodes": "episode_files",
    "write_dataset": "dataset_writer",
    "HabitatWorld": "habitat",
    "MiniWorldWorld": "miniworld",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
