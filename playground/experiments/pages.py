"""Pieces of the experiments' pages: one self-contained HTML file each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from playground.demo.report.data import versions
from playground.demo.report.page import STYLE, fact_table, section
from playground.experiments.common import Outcome

PAGE = "report.html"


def save_page(run_dir: Path, results: Outcome, *, title: str, lead: str, parts: Sequence[str], experiment: str) -> Path:
    """Title, parts, settings and machine as `PAGE` of the run folder; the page's path.

    Args:
        lead, parts: HTML already.
        experiment: its folder, for the foot of the page.
    """
    path, facts = run_dir / PAGE, facts_section(asdict(results.setting), results.facts)
    content = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="quiet">{lead}</p>{"".join(parts)}{facts}'
        f"<footer>Written by playground/experiments/{escape(experiment)}. One file: send it, keep it.</footer>"
        "</main></body></html>\n"
    )
    partial = path.with_suffix(".tmp")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
    return path


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column is text and may wrap; cells are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = ""
    for first, *cells in rows:
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr class="model"><td style="white-space:normal;min-width:150px">{first}</td>{numbers}</tr>'
    return f'<div class="scroll" style="margin-bottom:18px"><table><tr>{head}</tr>{body}</table></div>'


def small_span(cell: str) -> str:
    """HTML of `+1.2 [-0.8, +3.1]`: the interval small, below the number."""
    middle, _, span = cell.partition(" ")
    return f"{middle}<small>{escape(span)}</small>"


def picture_section(pictures: Sequence[tuple[str, Path]]) -> str:
    figures = []
    for caption, path in pictures:
        source = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure style="margin-bottom:26px"><img alt="{escape(caption)}" src="data:image/png;base64,{source}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return section("Pictures", "The same files lie in figures/.", *figures) if figures else ""


def state_section(results: Outcome) -> str:
    """What went wrong or is missing; "" where nothing is."""
    lines = [f"<li>{escape(remark)}</li>" for remark in results.remarks]
    failed = results.failed.items()
    lines += [f"<li>failed: {escape(name)}: {escape(text.splitlines()[0])}</li>" for name, text in failed]
    if results.missing:
        lines.append(f"<li>not complete: {escape(', '.join(results.missing))}</li>")
    if not lines:
        return ""
    return section("To know before reading", "What went wrong or is missing.", f"<ul>{''.join(lines)}</ul>")


def facts_section(setting: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """Settings on the left, versions and machine on the right."""
    return section(
        "Settings",
        "What must be the same for a number to be compared with these.",
        f'<div class="columns"><div><h3>Experiment</h3>{fact_table({k: str(v) for k, v in setting.items()})}</div>'
        f"<div><h3>Versions and machine</h3>{fact_table({**versions(), **facts})}</div></div>",
    )
