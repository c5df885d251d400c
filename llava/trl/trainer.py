"""`trl.trainer` under its documented path."""

from __future__ import annotations

from typing import Any

from llava.trl import forward


def __getattr__(name: str) -> Any:
    return forward("trl.trainer", name)
