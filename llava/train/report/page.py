"""The report of a run: one page that needs no other file."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llava.train.report.curves import PANELS, Curve, Panel, draw, names_of, series
from llava.train.report.data import RunData, read_run
from llava.utils.io import atomic_path

logger = logging.getLogger(__name__)

REPORT_FILE = "run_report.html"
STYLE = Path(__file__).with_name("report.css")
LINKS = (
    ("progress.jsonl", "log lines"),
    ("logs", "a line per step and rank"),
    ("run_settings.json", "settings and environment of every start"),
    ("trained_parts.json", "what is trained"),
    ("trainer_state.json", "the trainer's own record"),
    ("config.json", "settings of the model"),
    ("runs", "TensorBoard: tensorboard --logdir runs"),
)


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes `run_report.html` into the folder of a run, from what lies there; without matplotlib it has no curves.

    Raises:
        ValueError: nothing was trained there.
    """
    folder = Path(folder)
    path = Path(out) if out else folder / REPORT_FILE
    run = read_run(folder)
    body = [_head(run), _cards(run), _curves(run), _parts(run), _settings(run), _environment(run), _links(run)]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_name(folder))}</title><style>{STYLE.read_text()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _name(folder: Path) -> str:
    return folder.resolve().name


# ---- the sections, in reading order ----


def _head(run: RunData) -> str:
    state, words = _state(run)
    return f'<h1>{escape(_name(run.folder))}</h1><p class="state {state}">{escape(words)}</p>'


def _state(run: RunData) -> tuple[str, str]:
    """(class of the line, what became of the run)."""
    if run.finished is not None:
        return "good", f"Finished at step {run.finished['step']:,}."
    end = run.starts[-1].get("end") if run.starts else None
    step = f"step {run.last.get('step', 0):,}"
    if end is None:
        return "open", f"No end is recorded: it is still running, or was killed after {step}."
    if end["status"] == "finished":
        return "good", f"Finished after {step}."
    if end["status"] == "failed":
        return "bad", f"Failed after {step}: {end['message']}"
    return "open", f"Stopped after {step} ({end['message']}): the same command goes on from there."


def _cards(run: RunData) -> str:
    last = run.last
    shown: list[tuple[str, float | None, str]] = [
        ("steps", last.get("step"), "{:,.0f}"),
        ("loss", run.median("loss"), "{:.4g}"),
        ("tokens per second", run.median("tokens_per_second"), "{:,.0f}"),
        ("model FLOP utilisation", run.median("mfu"), "{:.1%}"),
        ("waiting for data", run.median("data_wait"), "{:.1%}"),
        ("device memory, GiB", last.get("peak_memory_gib"), "{:.1f}"),
        ("host memory, GiB", last.get("peak_host_memory_gib"), "{:.1f}"),
    ]
    boxes = [(name, form.format(value)) for name, value, form in shown if value is not None]
    if "elapsed" in last:
        boxes.append(("training time", _clock(last["elapsed"])))
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in boxes)
    note = "Loss, speed and shares are medians of the second half of the run." if boxes else "No step was logged."
    return f'<div class="cards">{cards}</div><p class="quiet">{note}</p>'


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _curves(run: RunData) -> str:
    found, left = series(run.rows), None
    try:
        pictures = [_picture(p, {n: found[n] for n in names_of(p, list(found))}) for p in PANELS]
        pictures.append(_by_rank(run))
    except ImportError:
        left = "No curves: matplotlib is not installed (pip install matplotlib)."
        logger.warning("%s", left)
        pictures = [f'<p class="quiet">{left}</p>']
    return f'<h2>Curves</h2><div class="curves">{"".join(pictures)}</div>' if any(pictures) else ""


def _picture(panel: Panel, curves: Mapping[str, Curve]) -> str:
    if not curves:
        return ""
    data = base64.b64encode(draw(panel, curves)).decode()
    return f'<img alt="{escape(panel.title)}" src="data:image/png;base64,{data}">'


def _by_rank(run: RunData) -> str:
    """Seconds that each rank waits for data in a step: one that is slower than the others holds all of them up."""
    if len(run.ranks) < 2:
        return ""
    curves = {f"rank {rank}": series(rows).get("data_wait", ([], [])) for rank, rows in run.ranks.items()}
    panel = Panel(title="Seconds waiting for data per step and rank", starts=(), is_smoothed=True)
    return _picture(panel, {name: curve for name, curve in list(curves.items())[:6] if curve[0]})


def _parts(run: RunData) -> str:
    if not run.parts:
        return ""
    rows = [
        (
            row["part"].replace("_", " "),
            f"{row['parameters']:,}",
            f"{row['trainable']:,}",
            row["method"],
            "–" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
            row["dtype"],
        )
        for row in run.parts
    ]
    heads = ("part", "parameters", "trained", "how", "learning rate", "dtype")
    return f"<h2>What is trained</h2>{_table(heads, rows, numbers=(1, 2, 4))}"


def _settings(run: RunData) -> str:
    if not run.starts:
        return ""
    start = run.starts[-1]
    given, settings = set(start["given"]), start["settings"]
    chosen = [(name, _text(value)) for name, value in settings.items() if name in given]
    others = [(name, _text(value)) for name, value in settings.items() if name not in given]
    command = f"<pre>{escape(' '.join(start['argv']))}</pre>"
    rest = f"<details><summary>{len(others)} settings that were not given</summary>{_table((), others)}</details>"
    return f"<h2>Settings</h2>{command}{_table((), chosen)}{rest}"


def _environment(run: RunData) -> str:
    if not run.starts:
        return ""
    facts = _table((), list(run.starts[-1]["environment"].items()))
    rows = [(_date(start["time"]), _outcome(start)) for start in run.starts]
    return f"<h2>Environment</h2>{facts}<h2>Starts</h2>{_table(('began', 'ended'), rows)}"


def _outcome(start: Mapping[str, Any]) -> str:
    end = start.get("end")
    if end is None:
        return "not recorded"
    return f"{_date(end['time'])}: {end['status']}" + (f", {end['message']}" if end["message"] else "")


def _links(run: RunData) -> str:
    known = [(name, words) for name, words in LINKS if (run.folder / name).exists()]
    known += [(path.name, "checkpoint") for path in sorted(run.folder.glob("checkpoint-*")) if path.is_dir()]
    items = "".join(f'<li><a href="{escape(name)}">{escape(name)}</a> {escape(words)}</li>' for name, words in known)
    return f"<h2>Files</h2><ul>{items}</ul>" if items else ""


# ---- small parts ----


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        kind = [' class="number"' if index in numbers else "" for index in range(len(row))]
        return "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in zip(row, kind, strict=True))

    lines = [cells(heads, "th")] if heads else []
    lines += [cells(row, "td") for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{body}</table></div>'


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
