"""What a trained YOLO model finds in pictures of other houses: mAP, and the cells that the background split needs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llava.batch import VisualSpec
from llava.scene.detector import build_detector
from llava.scene.detectors.yolo import load_model
from llava.scene.patch_mask import PatchRule
from playground.scene.cell_rates import count_cells
from playground.scene.yolo_data import PictureSet, walk_pictures

CONFIDENCES = (0.05, 0.1, 0.25)
CONFIDENCE = 0.1
"""For the split. A few minutes of training make a model that is seldom wrong and seldom sure."""
DILATIONS = (0, 1)


def cells_at(report: Mapping[str, Any], confidence: float = CONFIDENCE, dilation: int = 0) -> Mapping[str, Any]:
    """The row of a report that was measured so."""
    return next(row for row in report["cells"] if (row["confidence"], row["dilation"]) == (confidence, dilation))


def measure(out: Path, data: Path, pictures: PictureSet, options: argparse.Namespace) -> dict[str, Any]:
    """Boxes, masks and cells of `out/best.pt`.

    `mAP50_any` takes all shapes for one class: the split asks where an object is, never which.
    """
    weights = out / "best.pt"
    by_class, any_class = (_validate(weights, data, options, single_cls=single) for single in (options.one_class, True))
    names = [by_class.names[int(number)] for number in by_class.box.ap_class_index]
    report: dict[str, Any] = {"model": options.model, "boxes": _numbers(by_class.box, any_class.box)}
    report["boxes"]["mAP50_by_class"] = dict(zip(names, map(float, by_class.box.ap50), strict=True))
    if hasattr(by_class, "seg"):
        report["masks"] = _numbers(by_class.seg, any_class.seg)
    return report | {"patch_size": options.patch_size, "cells": measure_cells(weights, pictures, options)}


def measure_cells(weights: Path, pictures: PictureSet, options: argparse.Namespace) -> list[dict[str, Any]]:
    """For cells of one patch: by smallest confidence, and with and without a ring of cells around every object."""
    detector = build_detector("yolo", weights=weights, device=options.device, confidence=min(CONFIDENCES))
    seen = [(rgb, ids > 0) for rgb, _, ids in walk_pictures(pictures)]
    found = detector.detect([rgb for rgb, _ in seen])
    spec = VisualSpec(image_size=options.pixels, tokens_per_image=1)
    rows = []
    for confidence in CONFIDENCES:
        sure = [answer.select(np.flatnonzero(answer.scores >= confidence)) for answer in found]
        answers = [(answer, truth) for answer, (_, truth) in zip(sure, seen, strict=True)]
        for dilation in DILATIONS:
            counts = count_cells(answers, spec, PatchRule(patch_size=options.patch_size, dilation=dilation))
            rows.append({"confidence": confidence, "dilation": dilation, **counts.to_dict()})
    return rows


def _validate(weights: Path, data: Path, options: argparse.Namespace, *, single_cls: bool) -> Any:
    return load_model(weights).val(
        data=str(data),
        imgsz=options.imgsz,
        batch=options.batch,
        device=options.device,
        single_cls=single_cls,
        rect=False,  # else every picture gets a grey frame, which no training picture has, and shapes are mistaken
        workers=0,
        plots=False,
        project=str(weights.parent.resolve()),
        name="val",
        exist_ok=True,
        verbose=False,
    )


def _numbers(by_class: Any, any_class: Any) -> dict[str, Any]:
    return {
        "mAP50": float(by_class.map50),
        "mAP50_95": float(by_class.map),
        "mAP50_any": float(any_class.map50),
        "mAP50_95_any": float(any_class.map),
    }
