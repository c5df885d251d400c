"""A run folder becomes `RunData`: where each file stands is known from the profile that was run."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playground.demo.plan import ALIGN, FORMATS, Format, Layout
from playground.demo.profiles import Level, Profile
from playground.demo.reconstruction_figures import load_heat_maps
from playground.demo.report.data import EpisodePicture, Evaluation, RunData, read_json
from playground.demo.scene_figures import load_scene

PROFILE_FILE = "profile.json"


def save_profile(profile: Profile, run_dir: Path) -> None:
    """So that the page can be drawn again without knowing the command line."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / PROFILE_FILE).write_text(json.dumps(dataclasses.asdict(profile), indent=1))


def load_profile(run_dir: Path) -> Profile:
    facts = read_json(run_dir / PROFILE_FILE)
    levels = tuple(Level(**level) for level in facts.pop("levels"))
    return Profile(**{**facts, "levels": levels, "flags": tuple(facts["flags"])})


def load_run(run_dir: Path) -> RunData:
    """Everything that the phases left behind.

    Raises:
        ValueError: a result is missing.
    """
    profile = load_profile(run_dir)
    layout = Layout(run_dir=run_dir, profile=profile)
    evaluations = [load_evaluation(layout, level, form) for level in profile.levels for form in FORMATS]
    return RunData(
        title="llava demo",
        profile=profile.name,
        evaluations=evaluations,
        curves=load_curves(layout),
        timing=read_json(run_dir / "timing.json"),
        settings=settings(layout),
        heat_maps=[
            picture
            for level in profile.levels
            for form in FORMATS
            for picture in load_heat_maps(layout.model(form.name, level), f"{form.title}, {level.title}")
        ],
        scene=load_scene(run_dir),
    )


def load_evaluation(layout: Layout, level: Level, form: Format) -> Evaluation:
    folder = layout.results(form.name, level)
    content = read_json(folder / "results.json")
    pictures = load_pictures(folder / "pictures", content.get("episodes", {}), form)
    return Evaluation(name=form.title, level=level.title, content=content, pictures=pictures)


def load_pictures(folder: Path, records: Mapping[str, Mapping[str, Any]], form: Format) -> list[EpisodePicture]:
    """What the evaluation drew: `<outcome>-<episode>.png`, successes first."""
    pictures = []
    for path in sorted(folder.glob("*.png"), key=lambda path: (not path.stem.startswith("success"), path.stem)):
        outcome, _, key = path.stem.rpartition("-")
        record = records.get(key, {})
        title = f"{form.title}: {outcome.replace('-', ' ')}"
        pictures.append(EpisodePicture(png=path.read_bytes(), title=title, caption=str(record.get("instruction", ""))))
    return pictures


def load_curves(layout: Layout) -> dict[str, list[dict[str, Any]]]:
    """Lines of the progress files by stage title."""
    curves = {}
    for level in layout.profile.levels:
        for form in (ALIGN, *FORMATS):
            file = layout.model(form.name, level) / "progress.jsonl"
            if file.is_file():
                title = form.title if level == layout.profile.levels[0] else f"{form.title}, {level.title}"
                curves[title] = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return curves


def settings(layout: Layout) -> dict[str, str]:
    """Sizes and budgets for the end of the page."""
    profile, facts = layout.profile, {}
    facts["profile"] = profile.name
    installed = Path(sys.prefix) / ".installed"  # written by the Makefile
    if installed.is_file():
        facts["install"] = installed.read_text().strip() or "not measured"
    facts["seed"] = str(profile.seed)
    facts["pictures"] = f"{profile.image_size} x {profile.image_size} pixels"
    for level in profile.levels:
        walks = f"{level.noise:.0%} random moves, {level.detours:.0%} of the walks led astray"
        facts[f"{level.title}: training houses"] = f"{level.houses:,}, {walks}"
        facts[f"{level.title}: budgets"] = f"align {level.align_seconds:g} s, each format {level.train_seconds:g} s"
        facts[f"{level.title}: unseen houses"] = f"{level.episodes}, at most {level.max_steps} steps"
    return facts | trained(layout)


def trained(layout: Layout) -> dict[str, str]:
    """Parameters, steps and tokens of every model."""
    facts = {}
    for level in layout.profile.levels:
        for form in (ALIGN, *FORMATS):
            file = layout.model(form.name, level) / "training_complete.json"
            if file.is_file():
                result = read_json(file)
                facts[f"{form.title}, {level.title}"] = f"{result['step']:,} steps, {result['tokens']:,} tokens"
            parts = file.with_name("trained_parts.json")
            if parts.is_file():
                facts["parameters"] = f"{sum(row['parameters'] for row in json.loads(parts.read_text())):,}"
    return facts
