"""The pictures of the page, one PNG each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from playground.demo.report.charts import FLOOR, GRID, INK, SERIES, SOFT, smooth
from playground.experiments.figures import COLOURS, interval_bar, new_figure, save_figures, shared_legend
from playground.experiments.reconstruction.collect import MEASURES, MOTIONS, Comparison, Record, Results
from playground.experiments.reconstruction.tables import BUDGETS, TITLES
from playground.experiments.statistics import ACCEPTED_LOSS

LINES = ("-", "--", ":", "-.")
MARKERS = dict(zip(LINES, "osD^", strict=False))
HATCHES = dict(zip(LINES, ("", "////", "....", "xxxx"), strict=False))
"""Where colours begin again."""


def draw_all(results: Results, folder: Path) -> list[tuple[str, Path]]:
    """(caption, file) of every picture that has something to show."""
    return save_figures(PICTURES, results, folder)


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """Arm -> how it is drawn, the same in every picture; baselines are grey."""
    names = list(dict.fromkeys(row.arm.name for row in results.comparisons if not row.arm.is_baseline))
    grey = list(dict.fromkeys(row.arm.name for row in results.comparisons if row.arm.is_baseline))
    styles = {name: {"color": FLOOR, "linestyle": LINES[i % len(LINES)]} for i, name in enumerate(grey)}
    for i, name in enumerate(names):
        styles[name] = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
    return styles


def _rest(rows: Sequence[Comparison]) -> list[Comparison]:
    return [row for row in rows if not row.arm.is_baseline]


# ---- differences ----


def differences(results: Results) -> Any:
    """Every arm's difference in both success rates; the band is what a default may cost."""
    rows = {
        form: [row for budget in BUDGETS for row in _rest(results.of(form, budget))] for form in results.setting.arms
    }
    panels = {form: [row for row in found if "success_1m" in row.measures] for form, found in rows.items()}
    panels = {form: found for form, found in panels.items() if found}
    if not panels:
        return None
    figure, axes = new_figure(len(panels), height=1.6 + 0.42 * max(map(len, panels.values())), width=6.4)
    for axis, (form, found) in zip(axes, panels.items(), strict=True):
        axis.axvspan(-100 * ACCEPTED_LOSS, 0, color=GRID, zorder=0)
        axis.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(reversed(found)):
            for measure, shift, colour in (("success_1m", 0.14, SERIES[0]), ("success", -0.14, SERIES[1])):
                interval_bar(
                    axis, row.measures[measure], place + shift, colour, MEASURES[measure] if not place else None
                )
        axis.set_yticks(range(len(found)), [row.title for row in reversed(found)], fontsize=8.5, color=INK)
        axis.set_ylim(-0.6, len(found) - 0.4)
        axis.set_title(TITLES[form], fontsize=10, loc="left")
        axis.set_xlabel("points of success, arm - baseline", fontsize=8.5, color=SOFT)
    shared_legend(figure, axes)
    return figure


# ---- curves over training ----


def mean_curve(records: Sequence[Record], key: str) -> list[tuple[int, float]]:
    """Mean over the seeds at every step that all of them logged."""
    tables = [dict(curve) for record in records if (curve := record.curve(key))]
    if not tables:
        return []
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [(step, mean(table[step] for table in tables)) for step in shared]


def _curves(key: str, label: str, *, log: bool = False, baseline: bool = False) -> Callable[[Results], Any]:
    def draw(results: Results) -> Any:
        panels = []
        for form in results.setting.arms:
            rows = results.of(form, "steps") if baseline else _rest(results.of(form, "steps"))
            lines = [(row, mean_curve(list(row.records.values()), key)) for row in rows]
            panels.append((form, [(row, points) for row, points in lines if len(points) > 1]))
        panels = [panel for panel in panels if panel[1]]
        if not panels:
            return None
        styles = _styles(results)
        figure, axes = new_figure(len(panels), height=4.0, width=6.2)
        for axis, (form, lines) in zip(axes, panels, strict=True):
            for row, points in lines:
                steps, values = zip(*points, strict=True)
                style = styles[row.arm.name]
                axis.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.25)
                axis.plot(steps, smooth(values, max(3, len(values) // 12)), linewidth=1.7, label=row.title, **style)
            if log and all(value > 0 for _, points in lines for _, value in points):
                axis.set_yscale("log")
            axis.set_title(TITLES[form], fontsize=10, loc="left")
            axis.set_xlabel("step", fontsize=8.5, color=SOFT)
            axis.set_ylabel(label, fontsize=8.5, color=SOFT)
        shared_legend(figure, axes)
        return figure

    return draw


# ---- bars ----


def by_motion(results: Results) -> Any:
    """Skill at the end of training by what the robot did until the target."""
    return _bars(
        results,
        lambda row: {m: v for m in MOTIONS if (v := row.mean_of(f"autoregressive_skill_{m}")) is not None},
        "skill (1 - error / error of copying)",
    )


def _bars(results: Results, read: Callable[[Comparison], dict[str, float]], label: str) -> Any:
    panels = []
    for form in results.setting.arms:
        rows = [(row, values) for row in _rest(results.of(form, "steps")) if (values := read(row))]
        if rows:
            panels.append((form, rows))
    if not panels:
        return None
    styles = _styles(results)
    figure, axes = new_figure(len(panels), height=3.8, width=6.2)
    for axis, (form, rows) in zip(axes, panels, strict=True):
        names = list(dict.fromkeys(name for _, values in rows for name in values))
        width = 0.8 / len(rows)
        for number, (row, values) in enumerate(rows):
            places = [names.index(name) + width * (number - (len(rows) - 1) / 2) for name in values]
            style, heights = styles[row.arm.name], list(values.values())
            hatch = HATCHES[style["linestyle"]]
            axis.bar(
                places, heights, width * 0.92, color=style["color"], hatch=hatch, edgecolor="white", linewidth=0,
                label=row.title,
            )  # fmt: skip
        axis.axhline(0, color=INK, linewidth=1)
        axis.set_xticks(range(len(names)), names, fontsize=8.5, color=INK)
        axis.set_ylabel(label, fontsize=8.5, color=SOFT)
        axis.set_title(TITLES[form], fontsize=10, loc="left")
    shared_legend(figure, axes)
    return figure


def by_length(results: Results) -> Any:
    """Gain of SR 1 m per bin of the shortest way."""
    panels = [
        (form, [row for row in _rest(results.of(form, "steps")) if row.by_length]) for form in results.setting.arms
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    styles = _styles(results)
    figure, axes = new_figure(len(panels), height=4.0, width=6.2)
    for axis, (form, rows) in zip(axes, panels, strict=True):
        bins = sorted({line["from"]: line for row in rows for line in row.by_length}.items())
        names = [_bin_name(line) for _, line in bins]
        places = {start: place for place, (start, _) in enumerate(bins)}
        for number, row in enumerate(rows):
            style, shift = styles[row.arm.name], 0.6 * (number - (len(rows) - 1) / 2) / len(rows)
            for line in row.by_length:
                x = places[line["from"]] + shift
                axis.plot([x, x], [100 * line["low"], 100 * line["high"]], color=style["color"], linewidth=2)
            points = [(places[line["from"]] + shift, 100 * line["difference"]) for line in row.by_length]
            marker = MARKERS[style["linestyle"]]
            axis.plot(*zip(*points, strict=True), marker, color=style["color"], markersize=5, label=row.title)
        axis.axhline(0, color=INK, linewidth=1)
        axis.set_xticks(range(len(names)), names, fontsize=8.5, color=INK)
        axis.set_ylabel("points of SR 1 m, arm - baseline", fontsize=8.5, color=SOFT)
        axis.set_xlabel("shortest way", fontsize=8.5, color=SOFT)
        axis.set_title(TITLES[form], fontsize=10, loc="left")
    shared_legend(figure, axes)
    return figure


def _bin_name(line: Any) -> str:
    size = f" (n={line['num_episodes']})"
    return (f"over {line['from']:g} m" if line["to"] is None else f"{line['from']:g}–{line['to']:g} m") + size


def by_share(results: Results) -> Any:
    """Gain of the arms that were trained on several shares of the data."""
    panels = []
    for form in results.setting.arms:
        lines: dict[str, list[tuple[float, Comparison]]] = defaultdict(list)
        for row in _rest(results.of(form, "steps")):
            if "success_1m" in row.measures:
                lines[str(sorted((row.arm.keys or {}).items()))].append((row.arm.share, row))
        chosen = [sorted(points, key=lambda point: point[0]) for points in lines.values() if len(points) > 1]
        if chosen:
            panels.append((form, chosen))
    if not panels:
        return None
    figure, axes = new_figure(len(panels), height=3.2)
    for axis, (form, chosen) in zip(axes, panels, strict=True):
        for number, points in enumerate(chosen):
            found = [row.measures["success_1m"] for _, row in points]
            x, y = [100 * share for share, _ in points], [100 * one.difference for one in found]
            spread = [[100 * (f.difference - f.low) for f in found], [100 * (f.high - f.difference) for f in found]]
            label = points[-1][1].title
            axis.errorbar(x, y, yerr=spread, color=COLOURS[number], marker="o", capsize=3, label=label)
        axis.axhline(0, color=INK, linewidth=1)
        axis.set_xlabel("% of the training houses", fontsize=8.5, color=SOFT)
        axis.set_ylabel("points of SR 1 m", fontsize=8.5, color=SOFT)
        axis.set_title(TITLES[form], fontsize=10, loc="left")
        axis.legend(frameon=False, fontsize=8)
    return figure


def probes(results: Results) -> Any:
    """Accuracy of the next action per layer, mean over seeds."""
    panels = []
    for form in results.setting.arms:
        rows = [row for row in results.of(form, "steps") if any(r.heldout for r in row.records.values())]
        if rows:
            panels.append((form, rows))
    if not panels:
        return None
    styles = _styles(results)
    figure, axes = new_figure(2 * len(panels), height=3.8, width=4.4)
    for number, (form, rows) in enumerate(panels):
        for axis, key, label in zip(
            axes[2 * number : 2 * number + 2],
            ("accuracy", "r2"),
            ("next action, accuracy", "distance, R²"),
            strict=True,
        ):
            for row in rows:
                tables = [r.heldout["probes"]["layers"] for r in row.records.values() if r.heldout]
                values = [mean(layer[key] for layer in layers) for layers in zip(*tables, strict=True)]
                axis.plot(range(len(values)), values, marker="o", markersize=4, label=row.title, **styles[row.arm.name])
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlabel("layer (0 = embeddings)", fontsize=8.5, color=SOFT)
            axis.set_ylabel(label, fontsize=8.5, color=SOFT)
            axis.set_title(TITLES[form], fontsize=10, loc="left")
    shared_legend(figure, axes)
    return figure


PICTURES: dict[str, tuple[str, Callable[[Results], Any]]] = {
    "differences": (
        "Difference to the baseline. Bars: 95 % intervals over seeds and houses. Small strokes: single seeds. Grey "
        "band: at most one point worse.",
        differences,
    ),
    "by_length": ("Gain by length of the way, equal steps.", by_length),
    "by_share": ("Gain by share of the training data, equal steps.", by_share),
    "main_loss": (
        "Cross-entropy in training, mean over seeds.",
        _curves("main_loss", "main loss, nats a token", baseline=True),
    ),
    "skill": (
        "Skill: 1 - squared error / that of copying the frame predicted from. 0 = no better than copying.",
        _curves("autoregressive_skill", "skill"),
    ),
    "by_motion": ("Skill at the end by what the robot did until the target.", by_motion),
    "ratio": (
        "Weighted next-frame loss / cross-entropy.",
        _curves("autoregressive_ratio", "ratio of losses", log=True),
    ),
    "gradient_language_model": (
        "Weighted gradient of the next-frame loss / that of the cross-entropy, language model.",
        _curves("gradient_ratio_language_model", "share of the gradient norm", log=True),
    ),
    "gradient_vision_tower": (
        "The same in the vision tower.",
        _curves("gradient_ratio_vision_tower", "share of the gradient norm", log=True),
    ),
    "probes": ("What a linear probe reads off frozen states at the decision.", probes),
}
