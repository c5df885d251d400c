"""Does predicting the next frame help a model that walks? Arms, controls, statistics and a page, in one command.

python -m playground.experiments.reconstruction.run                     # 40 minutes on 2 cores
python -m playground.experiments.reconstruction.run --setting large     # every arm, both formats, 5 seeds, one GPU
python -m playground.experiments.reconstruction.run --arms baseline actions leaking --seeds 0 1 2 3 4

Killed or failed: the same command goes on, and finished arms are reused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from playground.demo.plan import available_cores
from playground.experiments.common import (
    finish,
    print_phases,
    require_matplotlib,
    run_phases,
    say_failures,
    wide_console,
)
from playground.experiments.reconstruction.arms import ARMS
from playground.experiments.reconstruction.plan import make_plan
from playground.experiments.reconstruction.settings import FORMATS, SETTINGS, Setting, narrowed


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reconstruction.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--setting", default="small", help=f"row of settings.py: {', '.join(SETTINGS)} (default small)")
    add("--seeds", type=int, nargs="+", help="default: the setting's")
    add("--formats", nargs="+", choices=FORMATS, help="default: the setting's")
    add("--arms", nargs="+", metavar="ARM", help=f"default: the setting's; of {', '.join(ARMS)}")
    add("--equal-cost", nargs="+", metavar="ARM", help="arms trained again for as long as the baseline took")
    add("--run-dir", type=Path, help="folder for everything (default: the setting's)")
    add("--cores", type=int, help="cores to use (default: all that this process may use)")
    add("--plan", action="store_true", help="print the commands of every phase and the expected time, and stop")
    add("--report-only", action="store_true", help="read what is there, write tables and page, and stop")
    return parser


def choose_setting(options: argparse.Namespace) -> Setting:
    """The setting that the command line means.

    Raises:
        ValueError: an unknown setting or arm; the nearest is suggested.
    """

    def given(values: Sequence | None) -> tuple | None:
        return None if values is None else tuple(values)

    try:
        return narrowed(
            SETTINGS[options.setting],
            seeds=given(options.seeds),
            formats=given(options.formats),
            arms=given(options.arms),
            equal_cost=given(options.equal_cost),
        )
    except KeyError as error:
        raise ValueError(error.args[0]) from None


def run(setting: Setting, run_dir: Path, *, cores: int, console: Console) -> int:
    """Brings every phase to its end, as far as none of its needs failed; the number of failed phases."""
    phases = make_plan(setting, run_dir, cores=cores)
    title = f"{setting.name}: {len(setting.runs())} trainings"
    failed = run_phases(title, phases, run_dir, cores=cores, console=console)
    report(setting, run_dir, console=console, failed=failed)
    return len(failed)


def report(setting: Setting, run_dir: Path, *, console: Console, failed: dict[str, str] | None = None) -> None:
    """results.json, tables, pictures and the page from what is there."""
    from playground.experiments.reconstruction.collect import collect
    from playground.experiments.reconstruction.page import write_page
    from playground.experiments.reconstruction.tables import tables

    results = collect(setting, run_dir, failed=failed or {})
    for table in tables(results):
        console.print(table)
    say_failures(failed or {}, console)
    page = write_page(results, run_dir)
    console.print(f"results: {run_dir / 'results.json'}\nreport: {page}", style="bold", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 = everything is there, 1 = an arm failed, 2 = a mistake in the call, 130 = interrupted."""
    options, console = build_parser().parse_args(arguments), wide_console()

    def work() -> int:
        setting = choose_setting(options)
        require_matplotlib()
        run_dir, cores = options.run_dir or Path(setting.run_dir), options.cores or available_cores()
        if options.plan:
            title = f"{len(setting.runs())} trainings"
            print_phases(title, make_plan(setting, run_dir, cores=cores), cores=cores, console=console)
            return 0
        if options.report_only:
            report(setting, run_dir, console=console)
            return 0
        return 1 if run(setting, run_dir, cores=cores, console=console) else 0

    return finish("reconstruction.run", console, work)


if __name__ == "__main__":
    sys.exit(main())
