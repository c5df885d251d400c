"""One self-contained page: tables and pictures in reading order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from playground.demo.report.page import section
from playground.experiments.pages import html_table, picture_section, save_page, small_span, state_section
from playground.experiments.reconstruction.collect import MEASURES, Comparison, Results
from playground.experiments.reconstruction.plots import draw_all
from playground.experiments.reconstruction.tables import BUDGETS, FIGURES, PROBES, TITLES, WALKS, difference, number

WORDS = {
    "no worse": "shown to be at most one point worse",
    "better": "shown to be better",
    "worse": "shown to be worse by more than one point",
    "open": "the interval allows both",
}


def write_page(results: Results, run_dir: Path) -> Path:
    """Pictures into `figures/`, the page with copies of them in it; the page's path."""
    setting, pictures = results.setting, draw_all(results, run_dir / "figures")
    lead = (
        f"Setting {escape(setting.name)}, {len(setting.seeds)} seeds, {setting.episodes} unseen houses. Does it help a "
        "model that walks to predict the features of the next frame while it learns? All arms of a seed start from one "
        "checkpoint and read the same data in the same order. Differences are paired by seed and house."
    )
    parts = [state_section(results)]
    for form in setting.arms:
        for budget, words in BUDGETS.items():
            if rows := results.of(form, budget):
                parts.append(_results(f"{TITLES[form]}: {words}", rows))
        if rows := [row for row in results.comparisons if row.form == form and not row.arm.is_baseline]:
            parts.append(_figures(f"{TITLES[form]}: the loss itself", rows))
    parts += [picture_section(pictures), _arms(results)]
    return save_page(run_dir, results, title="Next-frame loss", lead=lead, parts=parts, experiment="reconstruction")


def _results(title: str, rows: Sequence[Comparison]) -> str:
    walks = [[escape(row.title), *_cells(row, WALKS[:-1]), _word(row)] for row in rows]
    more = [[escape(row.title), *_cells(row, (WALKS[-1], *PROBES)), *_sureness(row)] for row in rows]
    lead = (
        "First line: the baseline. Below: differences to it, success rates and SPL in points, small numbers 95 % "
        "intervals over seeds and houses. CE and probes on the expert's way through unseen houses."
    )
    return section(
        title,
        lead,
        html_table(["", *(MEASURES[m] for m in WALKS[:-1]), "SR 1 m at -1"], walks),
        html_table(["", *(MEASURES[m] for m in (WALKS[-1], *PROBES)), "SR 1 m per seed", "p (McNemar)"], more),
    )


def _cells(row: Comparison, measures: Sequence[str]) -> list[str]:
    cells = []
    for measure in measures:
        found = row.measures.get(measure)
        if found is None:
            cells.append("–")
        elif row.arm.is_baseline:
            cells.append(number(measure, found.arm))
        else:
            cells.append(small_span(difference(measure, found)))
    return cells


def _word(row: Comparison) -> str:
    return f'<span title="{escape(WORDS[row.verdict])}">{row.verdict}</span>' if row.verdict else ""


def _sureness(row: Comparison) -> list[str]:
    """Differences per seed, and the p-value."""
    found = row.measures.get("success_1m")
    if found is None or row.arm.is_baseline:
        return ["", ""]
    each = " ".join(f"{100 * value:+.1f}" for value in found.per_seed)
    return [each, "–" if found.p_value is None else f"{found.p_value:.2g}"]


def _figures(title: str, rows: Sequence[Comparison]) -> str:
    lines = []
    for row in rows:
        values = [row.mean_of(key) for key in FIGURES]
        lines.append([escape(row.title), *("–" if value is None else f"{value:.3f}" for value in values)])
    lead = (
        "Means over the last quarter of training and over seeds. Skill 0 = no better than copying the frame; forward, "
        "turn, both, still: by what the robot did until the target. Ratios are weighted loss and weighted gradient "
        "beside those of the cross-entropy; under 0.01 the loss changes next to nothing."
    )
    return section(title, lead, html_table(["", *FIGURES.values()], lines))


def _arms(results: Results) -> str:
    arms = {row.arm.name: row.arm for row in results.comparisons}
    rows = [
        [
            escape(arm.title),
            arm.group,
            escape(arm.tells),
            "–" if arm.keys is None else escape(json.dumps(dict(arm.keys))),
        ]
        for arm in arms.values()
    ]
    return section("The arms", "Keys of --autoregressive_config.", html_table(["", "group", "tells", "keys"], rows))
