"""Results as tables of at most 100 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from llava.eval.results import HEADLINE

WIDTH = 100
RATES = {"success_1m", "success", "right_object", "oracle_success", "spl", "spl_1m", "ndtw", "sdtw", "never_stopped"}


def cell(name: str, value: float | int | None) -> str:
    """Rates in per cent, metres and steps as they are, a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f}" if name in RATES else f"{value:.2f}"


def navigation_table(rows: Mapping[str, Mapping[str, Any]], title: str = "") -> Table:
    """One column per result (summaries by name: the model first, then the floors), one line per measure.

    The first column also shows its 95 % interval.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("measure")
    for number, name in enumerate(rows):
        table.add_column(name, justify="right", overflow="fold", max_width=26 if number == 0 else 12)
    for measure, head in HEADLINE:
        values = [summary.get(f"mean_{measure}") for summary in rows.values()]
        if all(value is None for value in values):
            continue
        cells = [cell(measure, value) for value in values]
        span = next(iter(rows.values())).get("intervals", {}).get(measure)
        if span:
            cells[0] += f"  [{cell(measure, span[0])}, {cell(measure, span[1])}]"
        table.add_row(head + (" %" if measure in RATES else ""), *cells)
    table.add_row("episodes", *[str(int(summary["total_episodes"])) for summary in rows.values()])
    return table


def breakdown_table(summary: Mapping[str, Any]) -> Table:
    """Success by path length and the classes of failures of one result."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("shortest path", "n", "SR 3 m %", "SR 1 m %"):
        table.add_column(head, justify="right")
    near = {row["from"]: row for row in summary.get("success_1m_by_shortest_path", [])}
    for row in summary.get("success_by_shortest_path", []):
        upper = f"{row['to']:g}" if math.isfinite(row["to"]) else "..."
        one = cell("success", near[row["from"]]["rate"]) if row["from"] in near else "-"
        table.add_row(f"{row['from']:g}-{upper} m", str(row["n"]), cell("success", row["rate"]), one)
    return table


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Failure classes and costs, a line each."""
    total, cost = summary["total_episodes"], summary["cost"]
    lines = []
    for suffix, name in (("", "3 m"), ("_1m", "1 m")):
        classes = summary.get(f"classes{suffix}", {})
        if classes:
            lines.append(f"at {name}: " + ", ".join(f"{key} {100 * n / total:.0f} %" for key, n in classes.items()))
    lines.append(
        f"cost: {cost['model_calls_per_episode']:.1f} decisions per episode, {cost['tokens_per_decision']:.1f} tokens "
        f"and {cost['ms_per_decision']:.1f} ms per decision, {cost['ms_per_action']:.1f} ms per action"
    )
    if cost["fallback_rate"]:
        lines.append(f"answers that named no action: {100 * cost['fallback_rate']:.1f} % (declared fallback done)")
    return lines


def metric_table(rows: Sequence[tuple[str, str, float | None]]) -> Table:
    """(task, metric, value) of all tasks of a run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Metric", overflow="fold")
    table.add_column("Value", justify="right")
    for task, metric, value in rows:
        table.add_row(f"{task}/{metric}", "-" if value is None else f"{value:.4g}")
    return table


def text_of(*parts: Any, width: int = WIDTH) -> str:
    """What would be printed, as plain text."""
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()
