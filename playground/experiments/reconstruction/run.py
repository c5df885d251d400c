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
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from playground.demo.display import Display, clock
from playground.demo.plan import available_cores
from playground.demo.processes import stop_on_signals
from playground.demo.runner import Runner, exclusive
from playground.experiments.reconstruction.arms import ARMS
from playground.experiments.reconstruction.plan import make_plan
from playground.experiments.reconstruction.settings import FORMATS, SETTINGS, Setting, narrowed

INTERRUPTED = 130
TABLE_WIDTH = 130


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
    with exclusive(run_dir), Display(console) as display:
        runner = Runner(phases, run_dir, cores=cores, display=display, cwd=Path.cwd(), keep_going=True)
        display.say(f"{setting.name}: {len(setting.runs())} trainings, {len(phases)} phases on {cores} cores", "bold")
        display.say(f"about {clock(runner.seconds_planned())} if nothing is there yet; all in {run_dir}", "dim")
        runner.run()
        runner.write_timing()
    report(setting, run_dir, console=console, failed=runner.failed)
    return len(runner.failed)


def report(setting: Setting, run_dir: Path, *, console: Console, failed: dict[str, str] | None = None) -> None:
    """results.json, tables, pictures and the page from what is there."""
    from playground.experiments.reconstruction.collect import collect
    from playground.experiments.reconstruction.page import write_page
    from playground.experiments.reconstruction.tables import tables

    results = collect(setting, run_dir, failed=failed or {})
    for table in tables(results):
        console.print(table)
    for name, message in (failed or {}).items():
        console.print(f"failed: {name}: {message.splitlines()[0]}", style="red", markup=False, soft_wrap=True)
    page = write_page(results, run_dir)
    console.print(f"results: {run_dir / 'results.json'}\nreport: {page}", style="bold", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 = everything is there, 1 = an arm failed, 2 = a mistake in the call, 130 = interrupted."""
    options = build_parser().parse_args(arguments)
    console = wide_console()
    stop_on_signals()
    try:
        setting = choose_setting(options)
        if find_spec("matplotlib") is None:
            raise ValueError("the page needs matplotlib, which is not installed; pip install matplotlib")
        run_dir, cores = options.run_dir or Path(setting.run_dir), options.cores or available_cores()
        if options.plan:
            print_plan(setting, run_dir, cores=cores, console=console)
        elif options.report_only:
            report(setting, run_dir, console=console)
        else:
            return 1 if run(setting, run_dir, cores=cores, console=console) else 0
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on where it was", style="yellow")
        return INTERRUPTED
    except (ValueError, RuntimeError) as error:
        print(f"reconstruction.run: error: {error}", file=sys.stderr)
        return 2
    return 0


def wide_console() -> Console:
    """The tables have up to ten columns: at least so wide, even where a pipe or a narrow terminal says less."""
    console = Console(highlight=False)
    return console if console.width >= TABLE_WIDTH else Console(highlight=False, width=TABLE_WIDTH)


def print_plan(setting: Setting, run_dir: Path, *, cores: int, console: Console) -> None:
    from playground.demo.runner import makespan

    phases = make_plan(setting, run_dir, cores=cores)
    for phase in phases:
        console.print(f"# {phase.title}", *map(str, phase.commands), sep="\n", soft_wrap=True, markup=False)
    seconds = makespan(phases, {phase.name: phase.seconds for phase in phases}, cores)
    console.print(f"{len(setting.runs())} trainings, {len(phases)} phases, about {clock(seconds)} on {cores} cores")


if __name__ == "__main__":
    sys.exit(main())
