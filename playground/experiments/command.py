"""The command line of an experiment: a setting is chosen; its plan is printed, run or, as far as it got, reported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.utils.registry import Registry
from playground.demo.display import Display, clock
from playground.demo.phases import Phase
from playground.demo.plan import available_cores
from playground.demo.processes import stop_on_signals
from playground.demo.runner import Runner, exclusive, makespan
from playground.experiments.common import Outcome

INTERRUPTED = 130
TABLE_WIDTH = 130


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What one experiment has of its own.

    Attributes:
        name: of its folder.
        words: help text.
        settings: rows by name; a setting has a `name` and the `run_dir` where everything goes by default.
        choices: its own flags besides `--seeds`, each with keywords of `add_argument`; several values each.
        narrow: (setting, **flags that were given, as tuples) -> setting.
        count_trainings: of a setting, for the titles.
        make_plan: (setting, run folder, cores=) -> phases.
        collect: (setting, run folder, failed=) -> results, written to results.json as well.
        tables, write_page: results -> tables for the terminal, and the page's file.
    """

    name: str
    words: str
    settings: Registry[Any]
    narrow: Callable[..., Any]
    count_trainings: Callable[[Any], int]
    make_plan: Callable[..., tuple[Phase, ...]]
    collect: Callable[..., Outcome]
    tables: Callable[[Any], Iterable[Table]]
    write_page: Callable[[Any, Path], Path]
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"{self.name}.run", description=self.words, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = parser.add_argument
        add("--setting", default="small", help=f"row of settings.py: {', '.join(self.settings)} (default small)")
        add("--seeds", type=int, nargs="+", help="default: the setting's")
        for flag, keywords in self.choices.items():
            add(flag, nargs="+", **keywords)
        add("--run-dir", type=Path, help="folder for everything (default: the setting's)")
        add("--cores", type=int, help="cores to use (default: all that this process may use)")
        add("--plan", action="store_true", help="print the commands of every phase and the expected time, and stop")
        add("--report-only", action="store_true", help="read what is there, write tables and page, and stop")
        return parser

    def choose(self, options: argparse.Namespace) -> Any:
        """The setting that the command line means.

        Raises:
            ValueError: an unknown setting or choice; the nearest is suggested.
        """
        names = [flag.removeprefix("--").replace("-", "_") for flag in ("--seeds", *self.choices)]
        given = {name: tuple(values) for name in names if (values := getattr(options, name)) is not None}
        try:
            return self.narrow(self.settings[options.setting], **given)
        except KeyError as error:
            raise ValueError(error.args[0]) from None

    def report(self, setting: Any, run_dir: Path, *, console: Console, failed: Mapping[str, str] | None = None) -> None:
        """results.json, tables, pictures and the page from what is there."""
        results = self.collect(setting, run_dir, failed=failed or {})
        for table in self.tables(results):
            console.print(table)
        for remark in results.remarks:
            console.print(remark, style="yellow", markup=False, soft_wrap=True)
        for name, message in results.failed.items():
            console.print(f"failed: {name}: {message.splitlines()[0]}", style="red", markup=False, soft_wrap=True)
        page = self.write_page(results, run_dir)
        console.print(f"results: {run_dir / 'results.json'}\nreport: {page}", style="bold", soft_wrap=True)

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Exit code 0 = everything is there, 1 = a phase failed, 2 = a mistake in the call, 130 = interrupted."""
        options, console = self.parser().parse_args(arguments), wide_console()
        return finish(f"{self.name}.run", console, lambda: self._work(options, console))

    def _work(self, options: argparse.Namespace, console: Console) -> int:
        setting = self.choose(options)
        _require_matplotlib()
        run_dir, cores = options.run_dir or Path(setting.run_dir), options.cores or available_cores()
        if options.report_only:
            self.report(setting, run_dir, console=console)
            return 0
        phases = self.make_plan(setting, run_dir, cores=cores)
        title = f"{setting.name}: {self.count_trainings(setting)} trainings"
        if options.plan:
            print_phases(title, phases, cores=cores, console=console)
            return 0
        failed = run_phases(title, phases, run_dir, cores=cores, console=console)
        self.report(setting, run_dir, console=console, failed=failed)
        return 1 if failed else 0


def wide_console() -> Console:
    """The tables have up to ten columns: at least so wide, even where a pipe or a narrow terminal says less."""
    console = Console(highlight=False)
    return console if console.width >= TABLE_WIDTH else Console(highlight=False, width=TABLE_WIDTH)


def finish(name: str, console: Console, work: Callable[[], int]) -> int:
    """Exit code of `work`, 2 = a mistake in the call, 130 = interrupted."""
    stop_on_signals()
    try:
        return work()
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on where it was", style="yellow")
        return INTERRUPTED
    except (ValueError, RuntimeError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2


def run_phases(title: str, phases: Sequence[Phase], run_dir: Path, *, cores: int, console: Console) -> dict[str, str]:
    """Brings every phase to its end, as far as none of its needs failed; what failed, and how."""
    with exclusive(run_dir), Display(console) as display:
        runner = Runner(tuple(phases), run_dir, cores=cores, display=display, cwd=Path.cwd(), keep_going=True)
        display.say(f"{title}, {len(phases)} phases on {cores} cores", "bold")
        display.say(f"about {clock(runner.seconds_planned())} if nothing is there yet; all in {run_dir}", "dim")
        runner.run()
        runner.write_timing()
    return runner.failed


def print_phases(title: str, phases: Sequence[Phase], *, cores: int, console: Console) -> None:
    """The commands of every phase, and the expected time."""
    for phase in phases:
        console.print(f"# {phase.title}", *map(str, phase.commands), sep="\n", soft_wrap=True, markup=False)
    seconds = makespan(tuple(phases), {phase.name: phase.seconds for phase in phases}, cores)
    console.print(f"{title}, {len(phases)} phases, about {clock(seconds)} on {cores} cores")


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise ValueError("the page needs matplotlib, which is not installed; pip install matplotlib")
