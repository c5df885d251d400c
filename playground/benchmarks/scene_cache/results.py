"""Samples become the numbers of the result file, the verdict about the goals, and tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from playground.benchmarks.scene_cache.samples import Cells, Sample, median_seconds
from playground.benchmarks.scene_cache.shapes import CASES, COLUMNS, GOALS, MISS_GOAL


def summarise(cells: Cells) -> list[dict[str, Any]]:
    full = median_seconds(cells["-", "full path", "cold"])
    return [
        {"share": share, "row": row, "column": column, **_numbers(samples, full)}
        for (share, row, column), samples in cells.items()
    ]


def _numbers(samples: list[Sample], full: float) -> dict[str, Any]:
    """Of one cell. full: seconds of the full path."""
    seconds = [sample.seconds for sample in samples]
    stages = [sample.stages for sample in samples if sample.stages is not None]
    names = stages[0] if stages else {}
    return {
        "p50_ms": round(1000 * median_seconds(samples), 2),
        "p95_ms": round(1000 * float(np.quantile(seconds, 0.95)), 2),
        "n": len(samples),
        "x_full": round(full / median_seconds(samples), 3),
        "computed_tokens": samples[0].computed,
        "prompt_tokens": samples[0].prompt,
        "provenance": dict(Counter(sample.provenance for sample in samples)),
        "stages_ms": {name: round(1000 * float(np.median([each[name] for each in stages])), 3) for name in names},
    }


def verdict(cells: Cells, shares: Sequence[float]) -> dict[str, Any]:
    """Speed-ups against their goals, what a miss costs more, and the share of hits from which the cache pays."""
    full, found = median_seconds(cells["-", "full path", "cold"]), {}
    for share in shares:
        label = f"{share:.2f}"
        split = median_seconds(cells[label, "split", "cold"])
        miss, hit = (median_seconds(cells[label, "tokens + KV", column]) for column in ("cold", "new object"))
        even = (miss - full) / (miss - hit) if miss > hit else float("inf")
        found[label] = {
            "x_full_new_object": round(full / hit, 3),
            "goal": GOALS.get(share),
            "miss_over_split": round(miss / split, 3),
            "miss_over_full": round(miss / full, 3),
            "miss_goal": MISS_GOAL,
            "break_even_hit_rate": round(max(0.0, even), 3) if np.isfinite(even) else None,
        }
    return found


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """One for each case that was measured, from the content of the result file."""
    for case in CASES:
        if case not in result:
            continue
        found = result[case]
        title = f"p50 (p95) ms to first token, {found['frames']} x {found['tokens_per_picture']} tokens"
        shown = Table(box=box.SIMPLE_HEAD, title=f"{title}, {result['device']}")
        for name in ("background", "row", *COLUMNS):
            shown.add_column(name, justify="left" if name in ("background", "row") else "right")
        by_row: dict[tuple[str, str], dict[str, Any]] = {}
        for cell in found["cells"]:
            by_row.setdefault((cell["share"], cell["row"]), {})[cell["column"]] = cell
        for (share, row), columns in by_row.items():
            shown.add_row(share, row, *(_told(columns.get(column)) for column in COLUMNS))
        yield shown


def _told(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    words = "/".join(cell["provenance"])
    return f"{cell['p50_ms']:.1f} ({cell['p95_ms']:.1f})\n{cell['x_full']:.2f}x {words}"
