"""Curves of a run as PNG pictures, one per panel."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.train.callbacks.loss_curve import smooth

COLOURS = ("#0f62ac", "#d1600a", "#2b8a5f", "#8452a8", "#a94a5b", "#6b7785")
"""Told apart with every common colour deficiency."""
LARGEST_CURVE = 1500
"""Points drawn of a curve; of longer ones every so many-th."""
SIZE = (5.6, 3.1)

Curve = tuple[list[float], list[float]]
"""Steps and values."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        starts: names of values that begin so belong here, if they do not belong to a panel before.
        is_share: 0 to 1, told in percent.
    """

    title: str
    starts: tuple[str, ...]
    is_log: bool = False
    is_share: bool = False
    is_smoothed: bool = False


PANELS = (
    Panel(title="Loss", starts=("loss", "main_loss", "autoregressive_loss", "eval_loss", "*_loss"), is_smoothed=True),
    Panel(title="Rewards", starts=("reward", "rewards/"), is_smoothed=True),
    Panel(title="Learning rate", starts=("learning_rate",)),
    Panel(title="Gradient norm, before clipping", starts=("grad_norm",), is_log=True, is_smoothed=True),
    Panel(title="Tokens per second", starts=("tokens_per_second",), is_smoothed=True),
    Panel(title="Model FLOP utilisation", starts=("mfu",), is_share=True, is_smoothed=True),
    Panel(title="Share of time waiting for data", starts=("data_wait",), is_share=True, is_smoothed=True),
    Panel(title="Memory, GiB", starts=("peak_",)),
    Panel(title="Skill of the next-frame prediction", starts=("autoregressive_skill",), is_smoothed=True),
    Panel(
        title="Next-frame loss against the main loss",
        starts=("autoregressive_ratio", "autoregressive_weight", "gradient_ratio", "gradient_cosine"),
    ),
)


def series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Name -> curve, of every number in the lines of a log; what is not finite is left out."""
    found: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(float(value))
    return found


def names_of(panel: Panel, names: Sequence[str]) -> list[str]:
    """The values of a panel in the order of its `starts`; a loss of a single term is drawn once."""
    chosen: list[str] = []
    for start in panel.starts:
        fits = [n for n in names if (n.endswith(start[1:]) if start[0] == "*" else n.startswith(start))]
        chosen += [name for name in sorted(fits, key=lambda n: (len(n), n)) if name not in chosen]
    return ["loss"] if chosen == ["loss", "main_loss"] else chosen


def draw(panel: Panel, curves: Mapping[str, Curve]) -> bytes:
    """A PNG picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", color="#1f2933")
    for index, (name, label) in enumerate(_labels(list(curves)).items()):
        _draw_curve(axes, thinned(curves[name]), label, COLOURS[index % len(COLOURS)], panel.is_smoothed)
    values = [value for _, curve in curves.values() for value in curve]
    if panel.is_log and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    elif min(values) >= 0:
        axes.set_ylim(0, 1.08 * max(values) or 1.0)
    if panel.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step", fontsize=8.5, color="#6b7785")
    axes.tick_params(labelsize=8.5, colors="#6b7785")
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=2 if len(curves) > 3 else 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()


def _draw_curve(axes: Any, curve: Curve, label: str, colour: str, is_smoothed: bool) -> None:
    steps, values = curve
    dots = "o" if len(steps) < 12 else None
    if not is_smoothed or len(steps) < 12:
        axes.plot(steps, values, color=colour, linewidth=1.6, label=label, marker=dots, markersize=3.5)
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, smooth(values, 0.04), color=colour, linewidth=1.8, label=label)


def thinned(curve: Curve) -> Curve:
    steps, values = curve
    every = math.ceil(len(steps) / LARGEST_CURVE)
    return steps[::every], values[::every]


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Names without the beginning that all of them share, which the title says."""
    first = min(names, key=len)
    if len(names) > 1 and all(name.startswith(first) for name in names):
        return {name: name[len(first) :].strip("_/").replace("_", " ") or "all" for name in names}
    return {name: name.replace("_", " ") for name in names}
