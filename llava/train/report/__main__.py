"""The report page of a run that is over, or still running: `python -m llava.train.report OUTPUT_DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.train.report.page import REPORT_FILE, write_report
from llava.utils.logging import setup_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where nothing was trained in the folder."""
    setup_logging("INFO")
    parser = argparse.ArgumentParser(prog="python -m llava.train.report", description=__doc__)
    parser.add_argument("folder", help="--output_dir of a run")
    parser.add_argument("--out", help=f"file of the page (default: FOLDER/{REPORT_FILE})")
    args = parser.parse_args(argv)
    try:
        print(write_report(args.folder, args.out))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
