"""Draw the page of a run again: python -m playground.demo.report runs/demo"""

from __future__ import annotations

import sys
from pathlib import Path

from playground.demo.report.load import load_run
from playground.demo.report.page import write


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m playground.demo.report RUN_DIR", file=sys.stderr)
        return 2
    run_dir = Path(arguments[0])
    try:
        print(write(load_run(run_dir), run_dir / "report.html"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
