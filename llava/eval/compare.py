"""Two results on the same episodes, episode by episode.

python -m llava.eval.compare runs/eval/a/navigation-embedded runs/eval/b/navigation-embedded
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from llava.eval.results import HEADLINE, read_results
from llava.eval.tables import cell, text_of
from llava.navigation.metrics import paired_comparison

MUST_AGREE = ("data_hash", "max_steps", "success_radii_m", "turn_degrees", "forward_m", "dtw_backend", "camera")


def compare_results(
    first: Mapping[str, Any], second: Mapping[str, Any], *, allow_subset: bool = False
) -> dict[str, dict[str, float | int]]:
    """Per measure: both means, the mean paired difference with its interval, and McNemar's p-value where it applies.

    Raises:
        ValueError: the protocols differ in what makes episodes comparable, or the episodes differ.
    """
    different = [
        name
        for name in MUST_AGREE
        if first["protocol"].get(name) != second["protocol"].get(name) and not (name == "data_hash" and allow_subset)
    ]
    if different:
        raise ValueError(f"the two results differ in {', '.join(different)}; evaluate both under one protocol")
    a, b = first["episodes"], second["episodes"]
    shared = [name for name, _ in HEADLINE if all(name in row for row in (*a.values(), *b.values()))]
    return {name: paired_comparison(a, b, name, allow_subset=allow_subset) for name in shared}


def comparison_table(
    rows: Mapping[str, Mapping[str, float | int]], names: Sequence[str] = ("first", "second")
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("measure", *names, "difference", "95 % interval", "only 1 / only 2", "p (McNemar)"):
        table.add_column(head, justify="left" if head == "measure" else "right", overflow="fold", max_width=24)
    heads = dict(HEADLINE)
    for name, row in rows.items():
        span = f"[{cell(name, row['low'])}, {cell(name, row['high'])}]"
        counts = f"{row['only_first']} / {row['only_second']}" if "p_value" in row else ""
        p_value = f"{row['p_value']:.3g}" if "p_value" in row else ""
        numbers = [cell(name, row[key]) for key in ("first", "second", "difference")]
        table.add_row(heads[name], *numbers, span, counts, p_value)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare two navigation results on the same episodes.")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--allow-subset", action="store_true", help="compare the episodes that both have")
    options = parser.parse_args(arguments)
    contents = []
    for folder in (options.first, options.second):
        content = read_results(folder)
        if content is None:
            parser.error(f"{folder} has no results.json; run vila-eval first")
        contents.append(content)
    try:
        rows = compare_results(*contents, allow_subset=options.allow_subset)
    except ValueError as error:
        parser.error(str(error))
    n = next(iter(rows.values()))["n"]
    sys.stdout.write(text_of(f"{n} episodes in common", comparison_table(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
