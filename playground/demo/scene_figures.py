"""What the object detector of a run found: a block for the report page, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from playground.demo.report.blocks import Block, figures
from playground.demo.report.data import EpisodePicture, SceneFindings, read_json
from playground.demo.scene_phases import why_no_detector
from playground.scene.measure_yolo import cells_at

TITLE = "Background and objects"
LEAD = (
    "A YOLO model, trained from nothing on the true objects of the world for {seconds:.0f} seconds, says "
    "which patches of a picture are objects; the others are background, whose tokens can be kept and used again. "
    "Measured on {pictures} pictures of houses that it has not seen."
)
NOTE = (
    "mAP50 of any shape takes all shapes for one class: the split asks where an object is, not which. An object cell "
    "that is missed stays in the background; a background cell that is taken is only computed again. A ring of cells "
    "around every object (dilation 1) trades one for the other."
)


def load_scene(run_dir: Path) -> SceneFindings:
    """Of one run folder; results that are there count, whatever is installed now."""
    file = run_dir / "detector" / "yolo.json"
    if not file.is_file():
        return SceneFindings(reason=why_no_detector())
    pictures = [
        EpisodePicture(png=path.read_bytes(), title=f"Picture {int(path.stem)}", caption="")
        for path in sorted((run_dir / "scene").glob("*.png"))
    ]
    return SceneFindings(report=read_json(file), pictures=pictures)


def scene_blocks(found: SceneFindings) -> list[Block]:
    """One section; none where nothing was tried."""
    if found.report is None:
        return [(TITLE, f"Left out: {found.reason}.", "")] if found.reason else []
    arguments = found.report["arguments"]
    lead = LEAD.format(seconds=found.report["training_seconds"], pictures=arguments["val"])
    body = f'<div class="columns">{_precision(found.report)}{_cells(found.report)}</div>'
    return [
        (TITLE, lead, f'{body}<p class="quiet" style="margin-top:14px">{escape(NOTE)}</p>{figures(found.pictures)}')
    ]


def scene_line(report: Mapping[str, Any]) -> str:
    """The result for the end of the run."""
    cells = cells_at(report)
    return (
        f"object detector: mAP50 {report['boxes']['mAP50']:.3f}, object cells found {cells['recall']:.1%}, "
        f"background cells taken {cells['false_share']:.1%}"
    )


def _precision(report: Mapping[str, Any]) -> str:
    kinds = [(name, report[name]) for name in ("boxes", "masks") if name in report]
    columns = (("mAP50", "mAP50"), ("mAP50-95", "mAP50_95"), ("mAP50, any shape", "mAP50_any"))
    rows = [(name, [f"{numbers[key]:.3f}" for _, key in columns]) for name, numbers in kinds]
    return _table("Average precision", [head for head, _ in columns], rows)


def _cells(report: Mapping[str, Any]) -> str:
    size = report["patch_size"]
    rows = [
        (f"{row['confidence']:g}", [str(row["dilation"]), f"{row['recall']:.1%}", f"{row['false_share']:.1%}"])
        for row in report["cells"]
    ]
    heads = ["dilation", "object cells found", "background cells taken"]
    return _table(f"Cells of {size} x {size} pixels, by smallest confidence", heads, rows)


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = [
        f'<tr class="model"><td>{escape(name)}</td>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    ]
    table = f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    return f'<div><h3>{escape(title)}</h3><div class="scroll">{table}</div></div>'
