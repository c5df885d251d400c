"""A run folder that nobody trained: evaluation files of the right shape, with known differences between the ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from playground.experiments.scene_split.plan import Layout
from playground.experiments.scene_split.settings import LOOPS, Setting
from playground.experiments.scene_split.vqa import KINDS
from playground.experiments.scene_split.ways import WAYS

PICTURES = 4
SERVED = {"none": {}, "exact": {"exact_kv": 6, "miss": 4}, "guarded": {"guarded": 6, "rejected:stale": 3, "miss": 1}}


def write_evaluations(setting: Setting, run_dir: Path, gains: dict[str, float]) -> Path:
    """gains: way -> share that it adds to full's 60 % of right answers and arrivals; guarded ones of the curve fall by
    one percent per grey level."""
    layout = Layout(run_dir=run_dir)
    floor = dict.fromkeys(KINDS, 0.25) | {"all": 0.25}
    _write(layout.data / "vqa" / "blind_floor.json", floor)
    for seed in setting.seeds:
        for task in setting.tasks:
            if task in LOOPS:
                rows = [_loop_row(task, name, seed, setting, gains.get(name, 0.0)) for name in setting.ways[task]]
                _write(layout.results(task, seed), {"rows": rows})
                continue
            rows = [_row(name, seed, setting, gains.get(name, 0.0)) for name in setting.ways[task]]
            _write(layout.results("vqa", seed), {"rows": rows})
            _write(layout.results("arrangements", seed), {"rows": rows[:2]})
            _write(layout.results("curve", seed), {"rows": _curve_rows(seed, setting)})
    return run_dir


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _use(cache: str) -> dict:
    reused = 0.6 if cache != "none" else 0.0
    return {"computed_share": 1 - 0.75 * reused, "reused_share": reused, "provenance": SERVED[cache]}


def _row(name: str, seed: int, setting: Setting, gain: float, noise: float | None = None, disturbed="none") -> dict:
    way = WAYS[name]
    luck = np.random.default_rng(0).random((setting.test_scenes, PICTURES, len(KINDS)))
    luck = luck + np.random.default_rng(seed + 1).normal(0, 0.02, luck.shape)
    rights = {
        f"{scene}/{picture}/{kind}": float(luck[scene, picture, k] < 0.6 + gain)
        for scene in range(setting.test_scenes) for picture in range(PICTURES) for k, kind in enumerate(KINDS)
    }  # fmt: skip
    kinds = {kind: float(np.mean([v for key, v in rights.items() if key.endswith(kind)])) for kind in KINDS}
    return {
        "way": name, "noise": setting.noise if way.cache == "guarded" and noise is None else noise,
        "disturbance": disturbed, "split": "scenes", "rights": rights, "kinds": kinds, **_use(way.cache),
        "first_question": {**_use(way.cache), "reused_share": 0.3 if way.cache != "none" else 0.0},
    }  # fmt: skip


def reuse_at(noise: float, disturbance: str) -> float:
    """More noise allowed, more reused; a longer name disturbs more."""
    return noise / (noise + len(disturbance))


def _curve_rows(seed: int, setting: Setting) -> list[dict]:
    rows = []
    for name in setting.disturbances:
        rows.append(_row("split", seed, setting, 0.0, disturbed=name))
        more = [_row("guarded", seed, setting, -noise / 100, noise, name) for noise in setting.noises]
        rows += [{**row, "reused_share": reuse_at(row["noise"], name)} for row in more]
    return rows


def _loop_row(task: str, name: str, seed: int, setting: Setting, gain: float) -> dict:
    luck = np.random.default_rng(3).random(setting.episodes[task])
    luck = luck + np.random.default_rng(seed + 9).normal(0, 0.02, luck.shape)
    episodes = {}
    for number, value in enumerate(luck):
        success = float(value < 0.6 + gain)
        episodes[str(number)] = {
            "success": success, "success_1m": success, "spl": 0.9 * success, "distance_to_goal": 3 - 2 * success,
            "agreement": 0.5 + 0.4 * success, "understood": 1.0, "moves": 7.0,
        }  # fmt: skip
    return {"way": name, "noise": None, "episodes": episodes, **_use(WAYS[name].cache)}
