"""What do the background/object split and its cache cost in answers? Arms, curves, statistics, a page: one command.

python -m playground.experiments.scene_split.run                     # small: 2 cores, planned for 40 minutes
python -m playground.experiments.scene_split.run --setting large     # bigger models and sets, 5 seeds, one GPU
python -m playground.experiments.scene_split.run --tasks vqa robot --seeds 0 1

Killed or failed: the same command goes on, and finished phases are reused.
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
from playground.experiments.scene_split.plan import make_plan
from playground.experiments.scene_split.settings import SETTINGS, TASKS, Setting, narrowed


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scene_split.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--setting", default="small", help=f"row of settings.py: {', '.join(SETTINGS)} (default small)")
    add("--seeds", type=int, nargs="+", help="default: the setting's")
    add("--tasks", nargs="+", choices=TASKS, help="default: the setting's")
    add("--run-dir", type=Path, help="folder for everything (default: the setting's)")
    add("--cores", type=int, help="cores to use (default: all that this process may use)")
    add("--plan", action="store_true", help="print the commands of every phase and the expected time, and stop")
    add("--report-only", action="store_true", help="read what is there, write tables and page, and stop")
    return parser


def choose_setting(options: argparse.Namespace) -> Setting:
    """The setting that the command line means.

    Raises:
        ValueError: an unknown setting; the nearest is suggested.
    """
    try:
        setting = SETTINGS[options.setting]
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    given = {name: tuple(values) for name in ("seeds", "tasks") if (values := getattr(options, name)) is not None}
    return narrowed(setting, **given)


def report(setting: Setting, run_dir: Path, *, console: Console, failed: dict[str, str] | None = None) -> None:
    """results.json, tables, pictures and the page from what is there."""
    from playground.experiments.scene_split.collect import collect
    from playground.experiments.scene_split.page import write_page
    from playground.experiments.scene_split.tables import tables

    results = collect(setting, run_dir, failed=failed or {})
    for table in tables(results):
        console.print(table)
    for remark in results.remarks:
        console.print(remark, style="yellow", markup=False, soft_wrap=True)
    say_failures(failed or {}, console)
    page = write_page(results, run_dir)
    console.print(f"results: {run_dir / 'results.json'}\nreport: {page}", style="bold", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 = everything is there, 1 = a phase failed, 2 = a mistake in the call, 130 = interrupted."""
    options, console = build_parser().parse_args(arguments), wide_console()

    def work() -> int:
        setting = choose_setting(options)
        require_matplotlib()
        run_dir, cores = options.run_dir or Path(setting.run_dir), options.cores or available_cores()
        title = f"{setting.name}: {3 * len(setting.tasks) * len(setting.seeds)} trainings"
        if options.report_only:
            report(setting, run_dir, console=console)
            return 0
        phases = make_plan(setting, run_dir, cores=cores)
        if options.plan:
            print_phases(title, phases, cores=cores, console=console)
            return 0
        failed = run_phases(title, phases, run_dir, cores=cores, console=console)
        report(setting, run_dir, console=console, failed=failed)
        return 1 if failed else 0

    return finish("scene_split.run", console, work)


if __name__ == "__main__":
    sys.exit(main())
