"""Background and objects apart: settings, weights, slots, separators, prefixes. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.scene_split.cells import cell_mask, check_snapped
    from llava.model.scene_split.config import SceneSplitConfig
    from llava.model.scene_split.fingerprint import WeightFingerprint
    from llava.model.scene_split.layout import (
        Block,
        LayoutRule,
        RowLayout,
        SceneLayout,
        layout_clip,
        layout_picture,
        layout_row,
    )
    from llava.model.scene_split.measure import measure_costs
    from llava.model.scene_split.module import SceneSplitModule
    from llava.model.scene_split.prefix import (
        KvPrefix,
        Suffix,
        compute_prefix,
        generate_after,
        join_prefixes,
        pad_suffixes,
        run_suffix,
        stack_prefixes,
    )
    from llava.model.scene_split.report import SceneAnswer, SceneReport
    from llava.model.scene_split.separators import SEPARATOR_TOKENS, Separators, add_separators

__all__ = [
    "SEPARATOR_TOKENS",
    "Block",
    "KvPrefix",
    "LayoutRule",
    "RowLayout",
    "SceneAnswer",
    "SceneLayout",
    "SceneReport",
    "SceneSplitConfig",
    "SceneSplitModule",
    "Separators",
    "Suffix",
    "WeightFingerprint",
    "add_separators",
    "cell_mask",
    "check_snapped",
    "compute_prefix",
    "generate_after",
    "join_prefixes",
    "layout_clip",
    "layout_picture",
    "layout_row",
    "measure_costs",
    "pad_suffixes",
    "run_suffix",
    "stack_prefixes",
]

_NAMES = {
    "cells": ("cell_mask", "check_snapped"),
    "config": ("SceneSplitConfig",),
    "fingerprint": ("WeightFingerprint",),
    "measure": ("measure_costs",),
    "layout": ("Block", "LayoutRule", "RowLayout", "SceneLayout", "layout_clip", "layout_picture", "layout_row"),
    "module": ("SceneSplitModule",),
    "prefix": (
        *("KvPrefix", "Suffix", "compute_prefix", "generate_after", "join_prefixes", "pad_suffixes", "run_suffix"),
        "stack_prefixes",
    ),
    "report": ("SceneAnswer", "SceneReport"),
    "separators": ("SEPARATOR_TOKENS", "Separators", "add_separators"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
