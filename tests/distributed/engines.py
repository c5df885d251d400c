"""Starts `engine_ranks.py` on one or two CPU ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava.model.builder import load_pretrained_model

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("engine_ranks.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def require(engine: str) -> None:
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip('deepspeed is not installed: pip install "llava[train]"')
    if engine.startswith("zero") and shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds its operators for CPU ranks with g++, which is not installed")


class Rank:
    """A process whose output goes to files: a full pipe that nobody reads would stop it."""

    def __init__(self, command: list[str], environment: dict[str, str], base: Path) -> None:
        self.out, self.errors = base.with_suffix(".out"), base.with_suffix(".err")
        with self.out.open("w") as out, self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=errors)


def start_ranks(engine: str, folder: Path, *, ranks: int, **settings) -> list[Rank]:
    """One process per rank, without a launcher that would turn their exit codes into its own."""
    require(engine)
    folder.mkdir(exist_ok=True)
    settings = {"per_device_train_batch_size": 4 // ranks, **settings}
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, str(PROGRAM), engine, str(folder), json.dumps(settings)]
    places = [ENVIRONMENT | _place(engine, rank, ranks, port) for rank in range(ranks)]
    return [Rank(command, place, folder / f"rank{rank}") for rank, place in enumerate(places)]


def _place(engine: str, rank: int, ranks: int, port: int) -> dict[str, str]:
    if engine == "one":
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(number) for name, number in numbers.items()}


def wait_for(ranks: list[Rank], seconds: float = 1200) -> list[tuple[int, str]]:
    """Exit code and errors of each; all are ended where one does not end in time."""
    try:
        return [(rank.process.wait(seconds), rank.errors.read_text()) for rank in ranks]
    finally:
        for rank in ranks:
            rank.process.kill()


def run(engine: str, folder: Path, *, ranks: int, **settings) -> list[dict[str, float]]:
    """The log of rank 0; the batch of a step is 4 samples over all ranks."""
    for code, errors in wait_for(start_ranks(engine, folder, ranks=ranks, **settings)):
        assert code == 0, errors[-4000:]
    return json.loads((folder / "log0.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    _, model, *_ = load_pretrained_model(str(folder), device="cpu", dtype=torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
