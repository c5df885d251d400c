"""Pieces of the experiments' pictures: Matplotlib without a display and without its global state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from playground.demo.report.charts import GRID, SERIES, SOFT
from playground.experiments.statistics import Paired

COLOURS = (*SERIES, "#b8860b", "#c2417c", "#3a7d8c", "#7a5c3e", "#5b6770", "#94527f")
DPI = 130

Picture = tuple[str, Callable[[Any], Any]]
"""Caption, and a function from results to a figure, or to None where there is nothing to show."""


def save_figures(pictures: Mapping[str, Picture], results: Any, folder: Path) -> list[tuple[str, Path]]:
    """(caption, file) of every picture that has something to show."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (caption, draw) in pictures.items():
        figure = draw(results)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=DPI, facecolor="white")
            drawn.append((caption, path))
    return drawn


def new_figure(columns: int, *, height: float, width: float = 5.2) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(which="both", colors=SOFT, labelsize=8)
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def shared_legend(figure: Any, axes: Sequence[Any], *, columns: int | None = None) -> None:
    """One below all panels: inside them it would hide what it explains. Long labels want fewer columns."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = columns or min(len(found), 3 * len(axes))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def interval_bar(axis: Any, found: Paired, y: float, colour: str, label: str | None) -> None:
    """Points: a bar for the interval, a dot for the mean, a stroke per seed."""
    axis.plot([100 * found.low, 100 * found.high], [y, y], color=colour, linewidth=2.6)
    axis.plot(100 * found.difference, y, "o", color=colour, markersize=5.5, label=label)
    axis.plot([100 * value for value in found.per_seed], [y] * len(found.per_seed), "|", color=colour, markersize=8)
