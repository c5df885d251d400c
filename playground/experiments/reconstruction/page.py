"""One self-contained page: tables and pictures in reading order."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from playground.demo.report.data import versions
from playground.demo.report.page import STYLE, fact_table, section
from playground.experiments.reconstruction.collect import MEASURES, Comparison, Results
from playground.experiments.reconstruction.plots import draw_all
from playground.experiments.reconstruction.tables import BUDGETS, FIGURES, PROBES, TITLES, WALKS, difference, number

PAGE = "report.html"
WORDS = {
    "no worse": "shown to be at most one point worse",
    "better": "shown to be better",
    "worse": "shown to be worse by more than one point",
    "open": "the interval allows both",
}


def write_page(results: Results, run_dir: Path) -> Path:
    """Pictures into `figures/`, the page with copies of them in it; the page's path."""
    pictures = draw_all(results, run_dir / "figures")
    path = run_dir / PAGE
    partial = path.with_suffix(".tmp")
    partial.write_text(render(results, pictures), encoding="utf-8")
    partial.replace(path)
    return path


def render(results: Results, pictures: Sequence[tuple[str, Path]]) -> str:
    setting = results.setting
    lead = (
        f"Setting {escape(setting.name)}, {len(setting.seeds)} seeds, {setting.episodes} unseen houses. Does it help a "
        "model that walks to predict the features of the next frame while it learns? All arms of a seed start from one "
        "checkpoint and read the same data in the same order. Differences are paired by seed and house."
    )
    parts = [_state(results)]
    for form in setting.arms:
        for budget, words in BUDGETS.items():
            if rows := results.of(form, budget):
                parts.append(_results(f"{TITLES[form]}: {words}", rows))
        if rows := [row for row in results.comparisons if row.form == form and not row.arm.is_baseline]:
            parts.append(_figures(f"{TITLES[form]}: the loss itself", rows))
    parts += [_pictures(pictures), _arms(results), _facts(results)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Next-frame loss</title><style>{STYLE.read_text()}</style></head><body><main>"
        f'<h1>Next-frame loss</h1><p class="quiet">{lead}</p>{"".join(parts)}'
        "<footer>Written by playground/experiments/reconstruction. One file: send it, keep it.</footer>"
        "</main></body></html>\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column is text and may wrap; cells are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = ""
    for first, *cells in rows:
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr class="model"><td style="white-space:normal;min-width:150px">{first}</td>{numbers}</tr>'
    return f'<div class="scroll" style="margin-bottom:18px"><table><tr>{head}</tr>{body}</table></div>'


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
        _table(["", *(MEASURES[m] for m in WALKS[:-1]), "SR 1 m at -1"], walks),
        _table(["", *(MEASURES[m] for m in (WALKS[-1], *PROBES)), "SR 1 m per seed", "p (McNemar)"], more),
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
            middle, _, span = difference(measure, found).partition(" ")
            cells.append(f"{middle}<small>{escape(span)}</small>")
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
    return section(title, lead, _table(["", *FIGURES.values()], lines))


def _pictures(pictures: Sequence[tuple[str, Path]]) -> str:
    figures = []
    for caption, path in pictures:
        source = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure style="margin-bottom:26px"><img alt="{escape(caption)}" src="data:image/png;base64,{source}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return section("Pictures", "The same files lie in figures/.", *figures) if figures else ""


def _state(results: Results) -> str:
    lines = [f"<li>{escape(remark)}</li>" for remark in results.remarks]
    lines += [
        f"<li>failed: {escape(name)}: {escape(text.splitlines()[0])}</li>" for name, text in results.failed.items()
    ]
    if results.missing:
        lines.append(f"<li>not complete: {escape(', '.join(results.missing))}</li>")
    return (
        section("To know before reading", "What went wrong or is missing.", f"<ul>{''.join(lines)}</ul>")
        if lines
        else ""
    )


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
    return section("The arms", "Keys of --autoregressive_config.", _table(["", "group", "tells", "keys"], rows))


def _facts(results: Results) -> str:
    setting = {name: str(value) for name, value in asdict(results.setting).items()}
    return section(
        "Settings",
        "What must be the same for a number to be compared with these.",
        f'<div class="columns"><div><h3>Experiment</h3>{fact_table(setting)}</div>'
        f"<div><h3>Versions and machine</h3>{fact_table({**versions(), **results.facts})}</div></div>",
    )
