"""Where a run took place: versions, devices, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from llava.utils.distributed import world_size

PACKAGES = ("llava", "torch", "transformers", "accelerate", "deepspeed", "peft", "trl", "bitsandbytes", "numpy")


def environment() -> dict[str, str]:
    """Names and values in reading order; what is not installed is left out."""
    facts = {"commit": commit(Path(__file__).parent), "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["device"] = _device()
    if torch.version.cuda and torch.cuda.is_available():
        facts["CUDA"] = torch.version.cuda
    facts["processes"] = str(world_size())
    facts["host"] = f"{platform.node()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return {name: value for name, value in facts.items() if value}


def _device() -> str:
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''} per process"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB, {torch.cuda.device_count()} visible"


def commit(folder: Path) -> str:
    """Commit of the working copy that holds a folder, with a word where files differ from it; empty without git."""
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    count = len(changed.splitlines())
    return f"{head} and {count} changed files" if count else head


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
