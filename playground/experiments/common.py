"""What the experiments share: versions and machine beside every number, a training as a phase, a plain table."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.table import Table

import llava
from playground.demo.phases import Command, Phase
from playground.demo.processes import describe_environment
from playground.demo.progress import training_progress


class Outcome(Protocol):
    """What the results of every experiment say beside their own numbers.

    Attributes:
        setting: a dataclass.
        failed: phase -> what went wrong; missing: what has not been measured (yet); remarks: what a reader must know.
        facts: the machine.
    """

    @property
    def setting(self) -> Any: ...
    @property
    def failed(self) -> Mapping[str, str]: ...
    @property
    def missing(self) -> Sequence[str]: ...
    @property
    def remarks(self) -> Sequence[str]: ...
    @property
    def facts(self) -> Mapping[str, str]: ...


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


def empty_table(title: str, heads: list[str]) -> Table:
    """First column is text, the others are numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=not place)
    return table
