"""The package trl under its documented path; our entries are `llava.train.dpo` and `llava.train.grpo`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def forward(module: str, name: str) -> Any:
    """An attribute of a module of trl.

    Raises:
        ImportError: trl is not installed; carries the command.
    """
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"llava.{module}.{name} needs trl: pip install 'llava[rl]'") from error


def __getattr__(name: str) -> Any:
    return forward("trl", name)
