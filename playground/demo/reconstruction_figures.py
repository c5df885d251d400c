"""What the next-frame loss of a run looked like: blocks for the report page; nothing for a run without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from playground.demo.report import charts
from playground.demo.report.blocks import Block, figures
from playground.demo.report.data import EpisodePicture

Lines = Sequence[Mapping[str, Any]]
"""Lines of a progress file, oldest first."""

FOLDER = "reconstruction"
"""Beside a model: what `python -m playground.show_reconstruction CKPT --out CKPT/reconstruction` wrote."""
LOSS = "autoregressive_loss"
CURVES = (
    (LOSS, "Next-frame loss, unweighted"),
    ("autoregressive_ratio", "Weighted, as a share of the main loss"),
    ("autoregressive_skill", "Skill: 1 - error / error of copying the last frame"),
)
COLUMNS = (
    (LOSS, "loss", "unweighted"),
    ("autoregressive_ratio", "ratio", "weight x loss / main loss"),
    ("autoregressive_skill", "skill", "1 - error / error of copying the last frame"),
    ("autoregressive_skill_forward", "forward", "skill where the robot went ahead"),
    ("autoregressive_skill_turn", "turn", "skill where it turned"),
    ("autoregressive_skill_both", "both", "skill where it did both"),
    ("autoregressive_skill_still", "still", "skill where it stood"),
    ("gradient_ratio_language_model", "grad ratio LM", "weighted auxiliary / main gradient, language model"),
    ("gradient_cosine_language_model", "cosine LM", "between both gradients, language model"),
    ("gradient_ratio_vision_tower", "grad ratio tower", "weighted auxiliary / main gradient, vision tower"),
    ("gradient_cosine_vision_tower", "cosine tower", "between both gradients, vision tower"),
)
POINTS = 600


def reconstruction_blocks(curves: Mapping[str, Lines], pictures: Sequence[EpisodePicture] = ()) -> list[Block]:
    """Sections about the next-frame loss; none where no stage had it and there is no picture.

    Args:
        curves: stage title -> lines of its progress file.
        pictures: heat maps of `load_heat_maps`.
    """
    stages = {title: lines for title, lines in curves.items() if any(LOSS in line for line in lines)}
    blocks = [(f"Next-frame loss: {title}", _LEAD, _plots(lines)) for title, lines in stages.items()]
    if stages:
        lead = "Means over the last quarter of each training. A skill of 0 is no better than copying the last frame."
        blocks.append(("Next-frame loss in numbers", lead, _table(stages)))
    if pictures:
        lead = "Over real frames: where the prediction of the next frame was wrong, and where copying would have been."
        blocks.append(("Where the next frame was predicted", lead, figures(pictures)))
    return blocks


_LEAD = "Thin: as logged. Thick: running mean. The loss is for training only; nothing of it runs afterwards."


def load_heat_maps(model: Path, title: str) -> list[EpisodePicture]:
    """The pictures beside one model; none where nobody drew any."""
    paths = sorted((model / FOLDER).glob("*.png"))
    return [
        EpisodePicture(png=path.read_bytes(), title=f"{title}: {path.stem.replace('-', ' ')}", caption="")
        for path in paths
    ]


def late_mean(lines: Lines, key: str) -> float | None:
    """Over the last quarter of the lines that have the key, at least one; None where none has it."""
    values = [float(line[key]) for line in lines if _is_number(line.get(key))]
    late = values[-max(1, len(values) // 4) :]
    return sum(late) / len(late) if late else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _plots(lines: Lines) -> str:
    plots = []
    for number, (key, name) in enumerate(CURVES):
        points = [(line["elapsed"], line[key]) for line in lines if _is_number(line.get(key)) and "elapsed" in line]
        step = max(1, len(points) // POINTS)
        chart = charts.curve(points[::step], name, x_name="seconds", series=number)
        plots.append(f"<div><h3>{escape(name)}</h3>{chart}</div>")
    return f'<div class="columns">{"".join(plots)}</div>'


def _table(stages: Mapping[str, Lines]) -> str:
    means = {title: [late_mean(lines, key) for key, _, _ in COLUMNS] for title, lines in stages.items()}
    shown = [number for number in range(len(COLUMNS)) if any(row[number] is not None for row in means.values())]
    heads = "".join(f'<th title="{escape(COLUMNS[n][2])}">{escape(COLUMNS[n][1])}</th>' for n in shown)
    rows = []
    for title, values in means.items():
        cells = "".join("<td>–</td>" if (v := values[n]) is None else f"<td>{v:.3f}</td>" for n in shown)
        rows.append(f'<tr class="model"><td>{escape(title)}</td>{cells}</tr>')
    return f'<div class="scroll"><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'
