"""Flags that name a detector, shared by the commands."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

_FLAGS = {
    "yolo": ("weights", "confidence", "keep", "classes", "image_size", "batch", "device"),
    "motion": ("method", "threshold", "min_pixels", "background"),
    "precomputed": ("file",),
}


def add_detector_flags(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Flags without a value leave the detector's own default."""
    parser.add_argument("--detector", choices=names, default=names[0], help=f"default {names[0]}")
    if "yolo" in names:
        group = parser.add_argument_group("yolo")
        add = group.add_argument
        add("--weights", help=".pt file, or .yaml (random weights)")
        add("--confidence", type=float, help="smallest score (0.25)")
        add("--keep", choices=("all", "best"), help="all objects, or the most confident one")
        add("--classes", nargs="+", metavar="CLASS", help="names or ids to keep")
        add("--image-size", type=_side, metavar="SIDE", help="pixels, or native (padded to 32, not scaled)")
        add("--batch", type=int, help="pictures at a time (16)")
        add("--device", help="cpu, cuda:0, ...")
    if "motion" in names:
        group = parser.add_argument_group("motion (a clip; the camera stands still)")
        add = group.add_argument
        add("--method", choices=("median", "mog2"), help="default median")
        add("--threshold", type=int, help="smallest difference in grey levels (20)")
        add("--min-pixels", type=int, help="smaller regions are noise (8)")
        add("--background", metavar="PICTURE", help="of the empty scene; then single pictures do")
    if "precomputed" in names:
        parser.add_argument_group("precomputed").add_argument("--file", help="one .jsonl; else beside the pictures")


def detector_options(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the chosen detector.

    Raises:
        ValueError: for a flag of another detector, which would have no effect.
    """
    given = {
        flag: value
        for flags in _FLAGS.values()
        for flag in flags
        if (value := getattr(options, flag, None)) is not None
    }
    own = _FLAGS[options.detector]
    if foreign := sorted(set(given) - set(own)):
        flags = ", ".join("--" + flag.replace("_", "-") for flag in foreign)
        raise ValueError(f"{flags} has no meaning for the detector '{options.detector}'; leave it out")
    if options.detector == "yolo" and "weights" not in given:
        raise ValueError(
            "the detector 'yolo' needs --weights FILE (.pt or .yaml); scripts/train/yolo_embedded.sh makes one"
        )
    return given


def read_background(options: dict[str, Any]) -> dict[str, Any]:
    """The same settings with the picture of the empty scene read."""
    if "background" not in options:
        return options
    from PIL import Image

    with Image.open(options["background"]) as image:
        return {**options, "background": np.array(image.convert("RGB"))}


def _side(text: str) -> int | str:
    return text if text == "native" else int(text)
