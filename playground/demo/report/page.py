"""The page itself: sections in reading order, one function each, one self-contained file at the end."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from playground.demo.display import clock
from playground.demo.reconstruction_figures import reconstruction_blocks
from playground.demo.report import charts
from playground.demo.report.data import MEASURES, Evaluation, RunData, rate_of, rates_on_level, versions
from playground.demo.scene_figures import scene_blocks

STYLE = Path(__file__).with_name("report.css")
POINTS_PER_CURVE = 600


def section(title: str, lead: str, *body: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="quiet">{escape(lead)}</p>{"".join(body)}</section>'


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def cards(run: RunData) -> str:
    """The headline: what each format reached on the first level."""
    boxes = []
    for index, evaluation in enumerate(run.on_level(run.levels[0]) if run.levels else []):
        for measure, head, meaning in MEASURES[:2]:
            rate = rate_of(evaluation.summary, measure, head)
            if rate is None:
                continue
            span = f"95 % interval {100 * rate.low:.0f} to {100 * rate.high:.0f}"
            boxes.append(
                f'<div class="card {"second" if index else ""}"><i>{escape(evaluation.name)}</i> · {escape(head)}'
                f"<b>{percent(rate.value)}</b><span>{escape(meaning)}<br>{span}</span></div>"
            )
    return f'<div class="cards">{"".join(boxes)}</div>'


def result_row(label: str, summary: Mapping[str, Any], colour: str, *, kind: str) -> str:
    cells = []
    for measure, _, _ in MEASURES:
        rate = rate_of(summary, measure, label)
        if rate is None:
            cells.append("<td>–</td>")
            continue
        cells.append(f"<td>{100 * rate.value:.1f}<small>{100 * rate.low:.0f}–{100 * rate.high:.0f}</small></td>")
    error = summary.get("mean_distance_to_goal")
    cells.append(f"<td>{error:.2f}</td>" if error is not None else "<td>–</td>")
    return f'<tr class="{kind}"><td>{dot(colour)}{escape(label)}</td>{"".join(cells)}</tr>'


def result_table(evaluations: Sequence[Evaluation]) -> str:
    heads = "".join(f'<th title="{escape(meaning)}">{escape(head)} %</th>' for _, head, meaning in MEASURES)
    rows = [result_row(e.name, e.summary, charts.SERIES[i], kind="model") for i, e in enumerate(evaluations)]
    rows += [
        result_row(n, s, charts.FLOOR, kind="floor") for n, s in (evaluations[0].floors if evaluations else {}).items()
    ]
    return f'<div class="scroll"><table><tr><th></th>{heads}<th>Error m</th></tr>{"".join(rows)}</table></div>'


def results(run: RunData, level: str) -> str:
    """Table and interval plots of one level."""
    evaluations = run.on_level(level)
    episodes = evaluations[0].summary["total_episodes"]
    plots = "".join(
        f"<div><h3>{escape(head)}: {escape(meaning)}</h3>"
        f"{charts.interval_plot(rates_on_level(evaluations, measure), head)}</div>"
        for measure, head, meaning in MEASURES[:2]
    )
    return section(
        f"Results: {level}",
        f"{episodes:.0f} episodes in houses that no training saw. Small numbers are 95 % intervals. Grey rows are "
        "floors and the ceiling: random steps, walking straight ahead, walking to any object, and the planner itself.",
        result_table(evaluations),
        f'<div class="columns" style="margin-top:20px">{plots}</div>',
    )


def legend(names: Mapping[str, str]) -> str:
    return f'<div class="legend">{"".join(f"<span>{dot(c)}{escape(n)}</span>" for n, c in names.items())}</div>'


def by_length(evaluations: Sequence[Evaluation]) -> str:
    """SR 1 m per bin of the shortest path, bins in ascending order."""
    groups: dict[float, tuple[str, list[charts.Rate]]] = {}
    for index, evaluation in enumerate(evaluations):
        for row in evaluation.summary.get("success_1m_by_shortest_path", []):
            name = f"{row['from']:g}–{row['to']:g} m" if row["to"] < 1e6 else f"over {row['from']:g} m"
            rate = charts.Rate(label=evaluation.name, value=row["rate"], low=row["low"], high=row["high"], series=index)
            groups.setdefault(row["from"], (name, []))[1].append(rate)
    return charts.grouped_rates({name: rates for _, (name, rates) in sorted(groups.items())}, "SR 1 m by path length")


def details(run: RunData, level: str) -> str:
    """Where the successes and failures of one level lie."""
    evaluations = run.on_level(level)
    bars = [
        f"<div>{escape(e.name)}</div>{charts.stacked_bar(e.summary['classes_1m'], e.name)}"
        for e in evaluations
        if e.summary.get("classes_1m")
    ]
    names = {e.name: charts.SERIES[i] for i, e in enumerate(evaluations)}
    return section(
        f"Where it succeeds and fails: {level}",
        "At a radius of 1 m. Passed by: was near and did not stop there. Never arrived: ran out of steps. Stuck: "
        "hardly moved at the end.",
        '<div class="columns"><div><h3>Success by shortest path from start to goal</h3>'
        f"{legend(names)}{by_length(evaluations)}</div><div><h3>How episodes end</h3>"
        f'{legend(charts.CLASSES)}<div class="bars">{"".join(bars)}</div></div></div>',
    )


def curves(run: RunData) -> str:
    plots = []
    names = list(dict.fromkeys(evaluation.name for evaluation in run.evaluations))  # a format keeps its colour
    for title, lines in run.curves.items():
        step = max(1, len(lines) // POINTS_PER_CURVE)
        points = [(line["elapsed"], line["loss"]) for line in lines[::step] if "loss" in line and "elapsed" in line]
        chart = charts.curve(
            points, title, x_name="seconds", series=names.index(title) if title in names else len(names)
        )
        last = lines[-1] if lines else {}
        speed = f"{last['tokens_per_second']:,.0f} tokens/s" if last.get("tokens_per_second") else ""
        note = f"{last.get('step', 0):,} steps, {speed}".rstrip(", ")
        plots.append(f"<div><h3>{escape(title)}</h3>{chart}<small>{note}</small></div>")
    lead = (
        "Thin: as logged. Thick: running mean. A lower loss does not mean a better walker; compare the success rates."
    )
    return section("Training loss", lead, f'<div class="columns">{"".join(plots)}</div>')


def episodes(run: RunData) -> str:
    figures = []
    for evaluation in run.evaluations:
        for picture in evaluation.pictures:
            source = base64.b64encode(picture.png).decode()
            figures.append(
                f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{source}">'
                f"<figcaption><b>{escape(picture.title)}</b><br>{escape(picture.caption)}</figcaption></figure>"
            )
    if not figures:
        return ""
    lead = "From above: walls, objects, the way that was walked. In front: what the agent saw on the way."
    return section("Episodes", lead, f'<div class="episodes">{"".join(figures)}</div>')


def costs(run: RunData) -> str:
    heads = (
        "tokens per decision",
        "decisions per episode",
        "decisions/s",
        "ms per action",
        "answers without an action %",
    )
    keys = ("tokens_per_decision", "model_calls_per_episode", "decisions_per_second", "ms_per_action", "fallback_rate")
    rows = []
    for evaluation in run.evaluations:
        cost = evaluation.summary.get("cost", {})
        values = [cost.get(key) for key in keys]
        values[-1] = None if values[-1] is None else 100 * values[-1]
        cells = "".join(f"<td>{value:,.1f}</td>" if value is not None else "<td>–</td>" for value in values)
        rows.append(f'<tr class="model"><td>{escape(evaluation.name)}, {escape(evaluation.level)}</td>{cells}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return section(
        "What a decision costs",
        "Measured during the evaluation, batched over episodes. Tokens are those that the model reads and writes.",
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>',
    )


def timing(run: RunData) -> str:
    phases = [row for row in run.timing.get("phases", []) if row["state"] == "done"]
    bars = charts.time_bars([(row["title"], max(row["seconds"], 0.1)) for row in phases], "seconds per phase")
    commands = "\n\n".join(f"# {row['title']}\n" + "\n".join(row["commands"]) for row in phases)
    wall = run.timing.get("wall_seconds")
    lead = f"{run.timing.get('cores', '?')} cores; phases run side by side where their threads fit."
    if wall:
        lead += f" All together {clock(wall)}."
    return section(
        "Time per phase", lead, bars, f"<details><summary>The commands</summary><pre>{escape(commands)}</pre></details>"
    )


def fact_table(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f'<table class="facts">{rows}</table>'


def facts(run: RunData) -> str:
    protocols = {f"{e.name}, {e.level}": json.dumps(e.content.get("protocol", {}), indent=1) for e in run.evaluations}
    details = "".join(
        f"<details><summary>Protocol: {escape(name)}</summary><pre>{escape(content)}</pre></details>"
        for name, content in protocols.items()
    )
    return section(
        "Settings",
        "What must be the same for a number to be compared with these.",
        f'<div class="columns"><div><h3>Run</h3>{fact_table(run.settings)}</div>'
        f"<div><h3>Versions and machine</h3>{fact_table({**versions(), **run.machine})}</div></div>",
        details,
    )


def render(run: RunData) -> str:
    """The whole page as one string; needs no file beside it and no network."""
    parts = [cards(run)]
    for level in run.levels:
        parts += [results(run, level)]
    parts += [curves(run), *(section(*block) for block in reconstruction_blocks(run.curves, run.heat_maps))]
    for level in run.levels:
        parts.append(details(run, level))
    parts += [
        episodes(run),
        *(section(*block) for block in scene_blocks(run.scene)),
        costs(run),
        timing(run),
        facts(run),
    ]
    written = escape(str(run.timing.get("written", "")))
    lead = (
        f"Profile {escape(run.profile)}, {written}. Two ways to put one navigation job to the same small model: a "
        "growing dialogue of frames and answers (streaming), and eight frames with one question a decision (8 frames)."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.title)}</title><style>{STYLE.read_text()}</style></head><body><main>"
        f'<h1>{escape(run.title)}</h1><p class="quiet">{lead}</p>{"".join(parts)}'
        "<footer>Written by playground/demo. One file: send it, keep it.</footer></main></body></html>\n"
    )


def write(run: RunData, path: Path) -> Path:
    """Write the page in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(render(run), encoding="utf-8")
    partial.replace(path)
    return path
