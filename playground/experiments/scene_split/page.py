"""One self-contained page: goals, tables and pictures in reading order."""

from __future__ import annotations

from html import escape
from pathlib import Path

from playground.demo.report.page import section
from playground.experiments.pages import html_table, picture_section, save_page, small_span, state_section
from playground.experiments.scene_split.collect import MEASURES, Results, Row
from playground.experiments.scene_split.disturb import DISTURBANCES
from playground.experiments.scene_split.plots import draw_all
from playground.experiments.scene_split.tables import (
    TITLES,
    cell_of,
    difference,
    head_of,
    number,
    percent,
    provenance,
    sureness,
)
from playground.experiments.scene_split.vqa import KINDS

LEADS = {
    "vqa": "Cameras that no training picture came from, eight pictures each in the order of time, five questions about "
    "every picture. Intervals redraw seeds and cameras.",
    "arrangements": "The rooms of the training, with objects at other places.",
    "robot": "A camera in the corner of an unseen room looks down on a robot and tells it one move per picture.",
    "walk": "The task navigation-embedded with the prompt of eight frames: only frames of the history are seen again.",
}


def write_page(results: Results, run_dir: Path) -> Path:
    """Pictures into `figures/`, the page with copies of them in it; the page's path."""
    setting, pictures = results.setting, draw_all(results, run_dir / "figures")
    lead = (
        f"Setting {escape(setting.name)}, {len(setting.seeds)} seeds. What does it cost in answers to encode "
        "background and objects of a picture apart, and to reuse backgrounds? Both arms of a seed start from one model "
        "and train as many steps on the same data. Differences are paired."
    )
    parts = [_goals(results), state_section(results)]
    parts += [_evaluation(kind, rows) for kind in MEASURES if (rows := results.of(kind))]
    parts += [_kinds(results), _curve(results), picture_section(pictures), _ways(results)]
    title = "Background/object split"
    return save_page(run_dir, results, title=title, lead=lead, parts=parts, experiment="scene_split")


def _goals(results: Results) -> str:
    rows = [[escape(goal.words), f"<b>{goal.state}</b>", escape(goal.seen)] for goal in results.goals]
    lead = (
        "holds: the interval lies above -1 point; missed: below; open: it allows both; nothing learned: full is hardly "
        "better than a guess."
    )
    return section("Goals that were set before", lead, html_table(["", "state", "seen"], rows)) if rows else ""


def _evaluation(kind: str, rows: list[Row]) -> str:
    measures = MEASURES[kind]
    found = [
        [escape(row.way.title), *(small_span(cell_of(row, m)) for m in measures), *sureness(row, measures[0])]
        for row in rows
    ]
    used = [
        [escape(row.way.title), percent(row.computed), percent(row.reused) if row.provenance else "–",
         percent(row.reused_first) if row.provenance else "–", escape(provenance(row))]
        for row in rows
    ]  # fmt: skip
    return section(
        TITLES[kind],
        LEADS[kind] + " First line: full. Below: differences to it in points, small numbers 95 % intervals.",
        html_table(["", *(head_of(kind, m) for m in measures), "per seed", "at -1 point"], found),
        html_table(["", "picture tokens computed", "background reused", "at first question", "the cache said"], used),
    )


def _kinds(results: Results) -> str:
    rows = [[escape(row.way.title), *(f"{100 * row.kinds[kind]:.1f}" for kind in KINDS)] for row in results.of("vqa")]
    if results.floor and rows:
        rows.append(["without eyes", *(f"{100 * results.floor[kind]:.1f}" for kind in KINDS)])
    lead = "% right. Without eyes: the commonest answer of the training to these words."
    return section("Questions by kind", lead, html_table(["", *KINDS], rows)) if rows else ""


def _curve(results: Results) -> str:
    rows = [
        [escape(DISTURBANCES[point.disturbance].title), f"{point.noise:g}", percent(point.reused),
         percent(point.refused), number("right", point.found.arm), small_span(difference("right", point.found)),
         point.verdict]
        for point in results.curve
    ]  # fmt: skip
    lead = (
        "One question per picture. Beside each guarded cache the same disturbed pictures without a cache. Allowed "
        "noise: the camera's noise in grey levels that the guard is told; six standard deviations count as noise."
    )
    heads = ["disturbance", "allowed noise", "reused", "refused", "% right", "difference", "at -1 point"]
    return section("The guarded cache", lead, html_table(heads, rows)) if rows else ""


def _ways(results: Results) -> str:
    ways = {row.way.name: row.way for row in results.rows}
    rows = [[escape(way.title), way.training, way.cache, escape(way.tells)] for way in ways.values()]
    return section("The ways", "Whose model answers, and how.", html_table(["", "trained", "cache", "tells"], rows))
