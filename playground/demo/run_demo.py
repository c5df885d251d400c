"""A world, its data, two trainings, an evaluation and a page, in one command that can be killed and run again.

python -m playground.demo.run_demo                  # 12 minutes on 2 cores
python -m playground.demo.run_demo --profile full   # up to 25 minutes of training a format, several rooms
python -m playground.demo.run_demo --gpu            # larger pictures and a larger model on one GPU
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from playground.demo.display import Display, clock
from playground.demo.plan import available_cores, make_plan
from playground.demo.processes import stop_on_signals
from playground.demo.profiles import PROFILES, Profile, shortened, with_overrides
from playground.demo.report.data import MEASURES, RunData, rate_of
from playground.demo.report.load import load_run, save_profile
from playground.demo.runner import PhaseFailed, Runner, exclusive
from playground.demo.scene_figures import scene_line
from playground.demo.scene_phases import why_no_detector

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
IN_TABLE = ("success_1m", "right_object", "success", "spl", "never_stopped")
"""Measures of the table at the end; the page shows them all."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="demo", help=f"row of profiles.py: {', '.join(PROFILES)}")
    parser.add_argument("--gpu", action="store_const", const="gpu", dest="profile", help="the same as --profile gpu")
    parser.add_argument("--quick", type=float, metavar="SECONDS", help="tiny budgets: checks the flow, learns nothing")
    parser.add_argument("--seed", type=int, help="of houses and weights")
    parser.add_argument("--run-dir", type=Path, help="folder for everything (default: the profile's)")
    parser.add_argument("--cores", type=int, help="cores to use (default: all that this process may use)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a setting of the profile"
    )
    parser.add_argument("--plan", action="store_true", help="print the commands of every phase and stop")
    return parser


def choose_profile(options: argparse.Namespace) -> Profile:
    """The profile that the command line means.

    Raises:
        ValueError: an unknown profile or setting, or a pair without `=`.
    """
    try:
        profile = PROFILES[options.profile]
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    if options.quick is not None:
        profile = shortened(profile, options.quick)
    overrides: dict[str, Any] = {}
    for pair in options.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r} is no NAME=VALUE, for example --set train_seconds=600")
        overrides[name] = json.loads(value)
    if options.seed is not None:
        overrides["seed"] = options.seed
    return with_overrides(profile, overrides)


def result_table(run: RunData, level: str) -> Table:
    """Formats and floors as rows, rates with their 95 % intervals as columns; fits 80 columns."""
    evaluations = run.on_level(level)
    episodes = evaluations[0].summary["total_episodes"]
    title = f"{level}: {episodes:.0f} unseen houses, % and 95 % interval"
    table = Table(title=title, box=None, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for measure in IN_TABLE:
        table.add_column(next(head for key, head, _ in MEASURES if key == measure), justify="right", no_wrap=True)
    rows = [(e.name, e.summary, "bold") for e in evaluations]
    rows += [(name, summary, "dim") for name, summary in evaluations[0].floors.items()]
    for name, summary, style in rows:
        rates = [rate_of(summary, measure, name) for measure in IN_TABLE]
        cells = [f"{100 * r.value:.0f} [{100 * r.low:.0f},{100 * r.high:.0f}]" if r else "-" for r in rates]
        table.add_row(name, *map(escape, cells), style=style)
    return table


def run(profile: Profile, run_dir: Path, *, cores: int, console: Console) -> None:
    """Bring every phase to its end and say what came out."""
    with exclusive(run_dir), Display(console) as display:
        phases = make_plan(profile, run_dir, cores=cores)
        save_profile(profile, run_dir)
        seconds = sum(phase.seconds for phase in phases)
        display.say(f"llava demo, profile {profile.name}: {len(phases)} phases on {cores} cores in {run_dir}", "bold")
        if reason := why_no_detector():
            display.say(reason, "yellow")
        runner = Runner(phases, run_dir, cores=cores, display=display, cwd=Path.cwd())
        display.say(
            f"about {clock(runner.seconds_planned())} if nothing is there yet ({clock(seconds)} of work)", "dim"
        )
        runner.run()
        timing = runner.write_timing()
    data = load_run(run_dir)
    for level in data.levels:
        console.print(result_table(data, level))
    if data.scene.report is not None:
        console.print(scene_line(data.scene.report), highlight=False)
    console.print(f"wall time {clock(timing['wall_seconds'])}, per phase in {run_dir / 'timing.json'}")
    console.print(f"report: {run_dir / 'report.html'}", style="bold", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 = everything is there, 1 = a phase failed, 2 = a mistake in the call, 130 = interrupted."""
    options = build_parser().parse_args(arguments)
    console = Console(highlight=False, stderr=False)
    stop_on_signals()
    try:
        profile = choose_profile(options)
        run_dir = options.run_dir or Path(profile.run_dir)
        cores = options.cores or available_cores()
        if options.plan:
            for phase in make_plan(profile, run_dir, cores=cores):
                console.print(f"# {phase.title}", *map(str, phase.commands), sep="\n", soft_wrap=True, markup=False)
            return 0
        run(profile, run_dir, cores=cores, console=console)
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on where it was", style="yellow")
        return INTERRUPTED
    except PhaseFailed as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    except (ValueError, RuntimeError) as error:
        print(f"run_demo: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
