"""What the experiments share: versions and machine beside every number, and how a command ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import llava
from playground.demo.display import Display, clock
from playground.demo.phases import Command, Phase
from playground.demo.processes import describe_environment, stop_on_signals
from playground.demo.progress import training_progress
from playground.demo.runner import Runner, exclusive, makespan

INTERRUPTED = 130
TABLE_WIDTH = 130


def package_version() -> dict[str, str]:
    """A new version of the package may write other data and other models."""
    return {"llava": llava.__version__}


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    gpu = "none"
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or gpu
    return describe_environment({"gpu": gpu, "date": date.today().isoformat()})


def read_json(path: Path) -> dict[str, Any]:
    """{} where the file is not there yet."""
    return json.loads(path.read_text()) if path.is_file() else {}


def training_phase(
    *, name: str, title: str, command: Command, output: Path, seconds: float, threads: int, needs: tuple[str, ...]
) -> Phase:
    """One training; its folder is its output and tells how far it is."""
    return Phase(
        name=name,
        title=title,
        commands=(command,),
        outputs=(output,),
        seconds=seconds,
        threads=threads,
        needs=needs,
        settings=package_version() | {"threads": threads},
        progress=training_progress(output),
    )


def wide_console() -> Console:
    """The tables have up to ten columns: at least so wide, even where a pipe or a narrow terminal says less."""
    console = Console(highlight=False)
    return console if console.width >= TABLE_WIDTH else Console(highlight=False, width=TABLE_WIDTH)


def empty_table(title: str, heads: list[str]) -> Table:
    """First column is text, the others are numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=not place)
    return table


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


def say_failures(failed: Mapping[str, str], console: Console) -> None:
    for name, message in failed.items():
        console.print(f"failed: {name}: {message.splitlines()[0]}", style="red", markup=False, soft_wrap=True)


def require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise ValueError("the page needs matplotlib, which is not installed; pip install matplotlib")
