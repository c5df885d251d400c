"""Results as tables for the terminal: differences to the reference in points, with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from playground.experiments.common import empty_table
from playground.experiments.scene_split.collect import MEASURES, RATES, Goal, Point, Results, Row
from playground.experiments.scene_split.disturb import DISTURBANCES
from playground.experiments.scene_split.vqa import KINDS
from playground.experiments.statistics import Paired, verdict

HEADS = {
    "right": "right %",
    "success": "arrives %",
    "success_1m": "SR 1 m %",
    "spl": "SPL",
    "agreement": "as expert %",
    "distance_to_goal": "NE m",
}
TITLES = {
    "vqa": "Questions, unseen scenes",
    "arrangements": "Questions, scenes of the training with other arrangements",
    "robot": "Closed loop, camera stands still (robot in a room)",
    "walk": "Closed loop, camera walks (navigation in unseen houses)",
}


def head_of(kind: str, measure: str) -> str:
    """In the walk, success without a radius is that of 3 m."""
    return "SR 3 m %" if (kind, measure) == ("walk", "success") else HEADS[measure]


def number(measure: str, value: float) -> str:
    """Rates in points, metres as they are."""
    return f"{100 * value:.1f}" if measure in RATES else f"{value:.2f}"


def difference(measure: str, found: Paired) -> str:
    """`+1.2 [-0.8, +3.1]`"""
    digits, factor = (1, 100) if measure in RATES else (2, 1)
    middle, low, high = (f"{factor * value:+.{digits}f}" for value in (found.difference, found.low, found.high))
    return f"{middle} [{low}, {high}]"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def tables(results: Results) -> Iterator[Table]:
    """All that has rows, in reading order."""
    for kind in MEASURES:
        if rows := results.of(kind):
            yield difference_table(kind, rows)
            yield use_table(kind, rows)
    if rows := results.of("vqa"):
        yield kind_table(rows, results)
    if results.curve:
        yield curve_table(results.curve)
    if results.goals:
        yield goal_table(results.goals)


def difference_table(kind: str, rows: Sequence[Row]) -> Table:
    """References as they are, every other way as its difference."""
    measures = MEASURES[kind]
    heads = ["way", *(head_of(kind, m) for m in measures), "per seed", "at -1 point"]
    table = empty_table(f"{TITLES[kind]}: difference to full", heads)
    for row in rows:
        cells = [cell_of(row, measure).replace(" ", "\n", 1) for measure in measures]
        table.add_row(row.way.title, *cells, *sureness(row, measures[0]), style="bold" if row.is_reference else "")
    return table


def cell_of(row: Row, measure: str) -> str:
    found = row.measures.get(measure)
    if found is None:
        return "-"
    return number(measure, found.arm) if row.is_reference else difference(measure, found)


def sureness(row: Row, measure: str) -> tuple[str, str]:
    """The difference of every seed, and the verdict."""
    found = row.measures.get(measure)
    if found is None or row.is_reference:
        return "-", "-"
    return "  ".join(f"{100 * value:+.1f}" for value in found.per_seed), verdict(found)


def use_table(kind: str, rows: Sequence[Row]) -> Table:
    """What was computed and what came from the cache."""
    heads = [
        "way",
        "picture tokens computed",
        "background reused",
        "at a picture's first question",
        "answers of the cache",
    ]
    table = empty_table(f"{TITLES[kind]}: what was computed", heads)
    for row in rows:
        reused = (percent(row.reused), percent(row.reused_first)) if row.provenance else ("-", "-")
        table.add_row(row.way.title, percent(row.computed), *reused, provenance(row))
    return table


def provenance(row: Row) -> str:
    total = sum(row.provenance.values())
    ordered = sorted(row.provenance.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{word} {100 * count / total:.0f} %" for word, count in ordered) or "-"


def kind_table(rows: Sequence[Row], results: Results) -> Table:
    table = empty_table(f"{TITLES['vqa']}: % right by kind of question", ["way", *KINDS])
    for row in rows:
        table.add_row(row.way.title, *(f"{100 * row.kinds[kind]:.1f}" for kind in KINDS))
    if results.floor:
        table.add_row("without eyes", *(f"{100 * results.floor[kind]:.1f}" for kind in KINDS), style="dim")
    return table


def curve_table(curve: Sequence[Point]) -> Table:
    heads = ["disturbance", "allowed noise", "reused", "refused", "% right", "difference to no cache", "at -1 point"]
    table = empty_table("Guarded cache: one question per picture, same pictures without a cache beside it", heads)
    for point in curve:
        table.add_row(
            DISTURBANCES[point.disturbance].title, f"{point.noise:g}", percent(point.reused), percent(point.refused),
            number("right", point.found.arm), difference("right", point.found), point.verdict,
        )  # fmt: skip
    return table


def goal_table(goals: Sequence[Goal]) -> Table:
    table = empty_table("Goals that were set before", ["goal", "state", "seen"])
    for goal in goals:
        table.add_row(goal.words, goal.state, goal.seen)
    return table
