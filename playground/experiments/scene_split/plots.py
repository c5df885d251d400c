"""The pictures of the page, one PNG each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playground.demo.report.charts import FLOOR, GRID, INK, SOFT
from playground.experiments.figures import (
    COLOURS,
    Picture,
    interval_bar,
    new_figure,
    save_figures,
    shared_legend,
)
from playground.experiments.scene_split.collect import MEASURES, Results
from playground.experiments.scene_split.disturb import DISTURBANCES
from playground.experiments.scene_split.tables import TITLES
from playground.experiments.scene_split.vqa import KINDS
from playground.experiments.statistics import ACCEPTED_LOSS


def draw_all(results: Results, folder: Path) -> list[tuple[str, Path]]:
    """(caption, file) of every picture that has something to show."""
    return save_figures(PICTURES, results, folder)


def differences(results: Results) -> Any:
    """Every way's difference to full, in every evaluation."""
    panels = {}
    for kind, measures in MEASURES.items():
        rows = [row for row in results.of(kind) if not row.is_reference and measures[0] in row.measures]
        if rows:
            panels[kind] = rows
    if not panels:
        return None
    figure, axes = new_figure(1, height=1.2 + 0.42 * sum(len(rows) + 1 for rows in panels.values()), width=9.6)
    (axis,) = axes
    axis.axvspan(-100 * ACCEPTED_LOSS, 0, color=GRID, zorder=0)
    axis.axvline(0, color=INK, linewidth=1)
    ticks, labels, place = [], [], 0
    for number, (kind, rows) in enumerate(panels.items()):
        for row in rows:
            label = TITLES[kind] if row is rows[0] else None
            interval_bar(axis, row.measures[MEASURES[kind][0]], -place, COLOURS[number], label)
            ticks.append(-place)
            labels.append(row.way.title)
            place += 1
        place += 0.6
    axis.set_yticks(ticks, labels, fontsize=8.5, color=INK)
    axis.set_xlabel("points, way - full", fontsize=8.5, color=SOFT)
    shared_legend(figure, axes, columns=2)
    return figure


def curve(results: Results) -> Any:
    """Reuse against accuracy, a line per disturbance, a point per threshold."""
    if not results.curve:
        return None
    figure, axes = new_figure(2, height=4.6, width=5.4)
    left, right = axes
    left.axhspan(-100 * ACCEPTED_LOSS, 0, color=GRID, zorder=0)
    left.axhline(0, color=INK, linewidth=1)
    names = list(dict.fromkeys(point.disturbance for point in results.curve))
    for number, name in enumerate(names):
        points = sorted((p for p in results.curve if p.disturbance == name), key=lambda point: point.noise)
        colour, title = COLOURS[number % len(COLOURS)], DISTURBANCES[name].title
        reused = [100 * point.reused for point in points]
        loss = [100 * point.found.difference for point in points]
        spread = [[100 * (p.found.difference - p.found.low) for p in points],
                  [100 * (p.found.high - p.found.difference) for p in points]]  # fmt: skip
        left.errorbar(reused, loss, yerr=spread, color=colour, marker="o", markersize=4, linewidth=1, elinewidth=0.7)
        right.plot([point.noise for point in points], reused, color=colour, marker="o", markersize=4, label=title)
    left.set_xlabel("% of backgrounds reused", fontsize=8.5, color=SOFT)
    left.set_ylabel("points, guarded cache - no cache", fontsize=8.5, color=SOFT)
    right.set_xlabel("grey levels of noise that the guard allows", fontsize=8.5, color=SOFT)
    right.set_ylabel("% of backgrounds reused", fontsize=8.5, color=SOFT)
    right.set_xscale("symlog", linthresh=1)
    noises = sorted({point.noise for point in results.curve})
    right.set_xticks(noises, [f"{noise:g}" for noise in noises])
    right.minorticks_off()
    shared_legend(figure, axes)
    return figure


def by_kind(results: Results) -> Any:
    """Accuracy by kind of question, and what a guess from the words alone reaches."""
    rows = results.of("vqa")
    if not rows:
        return None
    figure, axes = new_figure(1, height=3.8, width=9.6)
    (axis,), width = axes, 0.8 / len(rows)
    for number, row in enumerate(rows):
        places = [place + width * (number - (len(rows) - 1) / 2) for place in range(len(KINDS))]
        values = [100 * row.kinds[kind] for kind in KINDS]
        axis.bar(places, values, width * 0.92, color=COLOURS[number % len(COLOURS)], label=row.way.title)
    for place, kind in enumerate(KINDS if results.floor else ()):
        floor = 100 * results.floor[kind]
        axis.plot([place - 0.42, place + 0.42], [floor, floor], color=FLOOR, linewidth=1.6, linestyle="--",
                  label=None if place else "without eyes")  # fmt: skip
    axis.set_xticks(range(len(KINDS)), KINDS, fontsize=8.5, color=INK)
    axis.set_ylabel("% right", fontsize=8.5, color=SOFT)
    shared_legend(figure, axes)
    return figure


def cost(results: Results) -> Any:
    """What a way computes against what it answers right."""
    panels = {kind: results.of(kind) for kind in ("vqa", "robot", "walk") if results.of(kind)}
    if not panels:
        return None
    figure, axes = new_figure(len(panels), height=3.9, width=4.2)
    ways = list(dict.fromkeys(row.way.name for rows in panels.values() for row in rows))
    for axis, (kind, rows) in zip(axes, panels.items(), strict=True):
        for row in rows:
            found = row.measures.get(MEASURES[kind][0])
            if found is not None:
                colour = COLOURS[ways.index(row.way.name) % len(COLOURS)]
                axis.plot(100 * row.computed, 100 * found.arm, "o", color=colour, markersize=7, label=row.way.title)
        axis.set_title(TITLES[kind].replace(", camera", "\ncamera"), fontsize=9, loc="left")
        axis.set_xlabel("% of picture tokens computed", fontsize=8.5, color=SOFT)
        axis.set_ylabel("% right" if kind == "vqa" else "% arrive", fontsize=8.5, color=SOFT)
        axis.set_xlim(0, 105)
    shared_legend(figure, axes, columns=3)
    return figure


PICTURES: dict[str, Picture] = {
    "differences": (
        "Difference to full. Bars: 95 % intervals over seeds and cameras or houses. Small strokes: single seeds. Grey "
        "band: at most one point worse.",
        differences,
    ),
    "curve": (
        "The guarded cache. Left: what reuse costs, beside the same pictures without a cache; a point per threshold. "
        "Right: how much is reused at which threshold.",
        curve,
    ),
    "by_kind": ("Questions by kind. Dashed: the best guess from the words alone.", by_kind),
    "cost": (
        "What is computed against what is right, means over seeds. Of every picture five questions are asked, so "
        "that a cache meets the same picture again; the tables have the first questions apart.",
        cost,
    ),
}
