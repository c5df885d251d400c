"""A demo that nobody ran: numbers of the right shape for the report."""

from __future__ import annotations

import io
import math
import random
from typing import Any

import numpy as np
from PIL import Image

from llava.navigation.metrics import wilson_interval
from playground.demo.report.data import EpisodePicture, Evaluation, RunData

NUM_EPISODES = 200


DETECTOR_REPORT = {
    "boxes": {"mAP50": 0.625, "mAP50_95": 0.375, "mAP50_any": 0.75, "mAP50_95_any": 0.5},
    "masks": {"mAP50": 0.5, "mAP50_95": 0.25, "mAP50_any": 0.6875, "mAP50_95_any": 0.4375},
    "patch_size": 8,
    "cells": [
        {"confidence": 0.1, "dilation": 0, "recall": 0.9, "false_share": 0.05},
        {"confidence": 0.1, "dilation": 1, "recall": 0.99, "false_share": 0.4},
        {"confidence": 0.25, "dilation": 0, "recall": 0.8, "false_share": 0.01},
    ],
    "training_seconds": 45.0,
    "arguments": {"val": "200"},
}
"""As `playground.scene.train_yolo` writes it."""


def summary(sr1: float, right: float, sr3: float, **more: float) -> dict[str, Any]:
    values = {
        "success_1m": sr1,
        "right_object": right,
        "success": sr3,
        "spl": 0.9 * sr3,
        "oracle_success": min(1, sr3 + 0.05),
    }
    values |= {"never_stopped": 0.02, **more}
    classes = {"success": sr1, "passed by": 0.4 * (1 - sr1), "stopped too early": 0.35 * (1 - sr1)}
    classes |= {"never arrived": 0.2 * (1 - sr1), "stuck": 0.05 * (1 - sr1)}
    bins = [(4, 6), (6, 8), (8, 10), (10, math.inf)]
    lengths = []
    for number, (low, high) in enumerate(bins):
        rate = max(0.02, sr1 - 0.08 * number)
        span = wilson_interval(rate * 50, 50)
        lengths.append({"from": low, "to": high, "n": 50, "rate": rate, "low": span[0], "high": span[1]})
    return {
        "total_episodes": NUM_EPISODES,
        **{f"mean_{name}": value for name, value in values.items()},
        "mean_distance_to_goal": 5 * (1 - sr3) + 0.4,
        "intervals": {
            name: list(wilson_interval(value * NUM_EPISODES, NUM_EPISODES)) for name, value in values.items()
        },
        "classes_1m": {name: round(NUM_EPISODES * share) for name, share in classes.items()},
        "success_1m_by_shortest_path": lengths,
        "cost": {
            "model_calls_per_episode": 12.6,
            "tokens_per_decision": 6.1,
            "ms_per_decision": 1.4,
            "ms_per_action": 0.6,
            "decisions_per_second": 710.0,
            "fallback_rate": 0.0,
        },
    }


def picture(seed: int) -> EpisodePicture:
    image = Image.fromarray(
        np.random.default_rng(seed).integers(0, 255, (6, 16, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    )
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return EpisodePicture(
        png=sink.getvalue(), title=f"Episode {seed}: success", caption="Turn left. Stop next to the red ball."
    )


def losses(start: float, end: float, seconds: float, seed: int) -> list[dict[str, float]]:
    draw = random.Random(seed)
    lines = []
    for step in range(1, 400):
        share = step / 400
        loss = end + (start - end) * math.exp(-5 * share) + draw.gauss(0, 0.05)
        lines.append({"step": step, "elapsed": seconds * share, "loss": loss, "tokens_per_second": 21_000.0})
    return lines


def fake_run(levels: tuple[str, ...] = ("one room",)) -> RunData:
    floors = {
        "random": summary(0.005, 0.05, 0.065),
        "forward": summary(0.01, 0.07, 0.255),
        "any object": summary(0.21, 0.2, 0.45),
        "oracle": summary(1.0, 1.0, 1.0),
    }
    protocol = {"task": "navigation-embedded", "num_episodes": NUM_EPISODES, "turn_degrees": 15}
    evaluations = []
    for level in levels:
        for name, rates in {"streaming": (0.74, 0.81, 0.86), "8 frames": (0.31, 0.35, 0.55)}.items():
            content = {
                "summary": summary(*rates),
                "floors": {k: {"summary": v} for k, v in floors.items()},
                "protocol": protocol,
            }
            pictures = [picture(seed) for seed in range(3)]
            evaluations.append(Evaluation(name=name, level=level, content=content, pictures=pictures))
    phases = [
        {
            "name": n,
            "title": t,
            "seconds": s,
            "state": "done",
            "this_run": "new",
            "threads": 1,
            "commands": [f"run {n}"],
        }
        for n, t, s in [
            ("data", "Houses, walks, pictures", 48.0),
            ("align", "Align", 90.0),
            ("sft", "Training, streaming", 260.0),
        ]
    ]
    return RunData(
        title="llava demo",
        profile="demo",
        evaluations=evaluations,
        curves={
            "Align": losses(6, 0.4, 90, 0),
            "streaming": losses(3, 0.3, 260, 1),
            "8 frames": losses(3, 0.6, 260, 2),
        },
        timing={"phases": phases, "cores": 2, "wall_seconds": 655, "written": "2026-01-01 12:00:00"},
        settings={"seed": "0", "pictures": "64 x 64", "parameters": "2.2 M"},
    )
