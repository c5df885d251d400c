"""A run folder that nobody trained: files of the right shape, with a known difference between the arms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from llava.navigation.metrics import wilson_interval
from playground.experiments.reconstruction.arms import Run
from playground.experiments.reconstruction.metered import COST_FILE
from playground.experiments.reconstruction.plan import Layout
from playground.experiments.reconstruction.settings import Setting

STEPS = 400


def write_run_folder(setting: Setting, run_dir: Path, gains: dict[str, float]) -> Path:
    """gains: arm -> points of success (as a share) that it adds to the baseline's 50 %."""
    layout = Layout(run_dir=run_dir)
    for run in setting.runs():
        _write_training(layout, run)
        _write_walks(layout, run, setting.episodes, gains.get(run.arm.name, 0.0))
        _write_heldout(layout, run, setting.heldout)
    return run_dir


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_training(layout: Layout, run: Run) -> None:
    folder, draw, own = layout.model(run), np.random.default_rng(run.seed), len(run.arm.name) / 100
    _write(folder / "training_complete.json", {"step": STEPS, "tokens": 1000 * STEPS, "elapsed": 60.0})
    lines = []
    for step in range(10, STEPS + 1, 10):
        line = {
            "step": step,
            "elapsed": step / 10,
            "main_loss": math.exp(-step / 150) + 0.3 + own + draw.normal(0, 0.02),
        }
        if run.arm.keys is not None:
            skill = (0.3 - own) * (1 - math.exp(-step / 100)) + draw.normal(0, 0.01)
            line |= {"autoregressive_skill": skill, "autoregressive_loss": 1 - skill}
            line |= {f"autoregressive_skill_{m}": skill + 0.05 * i for i, m in enumerate(("forward", "turn", "still"))}
            line |= {"autoregressive_ratio": 0.1 / line["main_loss"], "gradient_ratio_language_model": 0.02 + own}
            line |= {"gradient_ratio_vision_tower": 0.01, "gradient_cosine_language_model": 0.001}
        lines.append(line)
    (folder / "progress.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    per_step = 0.15 if run.arm.keys is None else 0.2
    samples = [{"attempt": "1", "step": s, "cpu": 9 + per_step * s, "wall": per_step * s} for s in (10, STEPS)]
    (folder / COST_FILE).write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))


def _write_walks(layout: Layout, run: Run, episodes: int, gain: float) -> None:
    luck = np.random.default_rng(0).random(episodes)  # of the house: the same for every arm and seed
    noise = np.random.default_rng(run.seed + 1).normal(0, 0.05, episodes)
    rows = {}
    for number in range(episodes):
        success = float(luck[number] + noise[number] < 0.5 + gain)
        rows[str(number)] = {
            "success_1m": success, "success": success, "right_object": success, "spl": 0.9 * success,
            "distance_to_goal": 3.0 - 2 * success, "shortest_path": 3.0 + number % 7,
        }  # fmt: skip
    rate = sum(row["success"] for row in rows.values())
    summary = {"total_episodes": episodes, "intervals": {"success": list(wilson_interval(rate, episodes))}}
    _write(layout.walk_results(run), {"complete": True, "protocol": {}, "summary": summary, "episodes": rows})


def _write_heldout(layout: Layout, run: Run, episodes: int) -> None:
    draw, own = np.random.default_rng(run.seed), len(run.arm.name) / 200
    entropy = {str(e): 0.4 + 0.1 * float(draw.random()) for e in range(episodes)}
    tested = [str(e) for e in range(episodes // 2, episodes)]
    layers = []
    for layer in range(4):
        right = 0.5 + 0.1 * layer + own
        per_episode = {
            "next_action": dict.fromkeys(tested, right),
            "distance_error_m": dict.fromkeys(tested, 1.0),
        }
        layers.append({**per_episode, "accuracy": right, "r2": 0.2 * layer, "mean_error_m": 1.0})
    probes = {"layers": layers, "floors": {"accuracy_of_the_commonest_action": 0.5}}
    _write(layout.measured(run), {"cross_entropy": entropy, "probes": probes})
