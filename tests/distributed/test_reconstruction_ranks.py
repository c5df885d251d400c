"""The next-frame loss under every engine, on two CPU ranks of which one often has no video."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("reconstruction_ranks.py")
NAMES = ("loss", "main_loss", "autoregressive_loss", "autoregressive_skill", "autoregressive_ratio")


def run(engine: str, folder: Path, *, ranks: int) -> list[dict[str, float]]:
    """The log of rank 0; the batch of a step is 4 samples over all ranks."""
    folder.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    launch = [sys.executable] if ranks == 1 else launch
    done = subprocess.run(
        [*launch, str(PROGRAM), engine, str(folder), str(4 // ranks)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "log0.json").read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    return run("one", folder, ranks=1), folder


SLOW = pytest.mark.slow  # DeepSpeed compiles an operator for CPU ranks first
ENGINES = ["ddp", "fsdp2", pytest.param("zero2", marks=SLOW), pytest.param("zero3", marks=SLOW)]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_what_one_process_does(engine, one_process, tmp_path):
    """Same losses and skill at every step, equal weights on both ranks; worst difference measured 5e-7."""
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip('deepspeed is not installed: pip install "llava[train]"')
    if engine.startswith("zero") and shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds its operators for CPU ranks with g++, which is not installed")
    expected, folder = one_process
    found = run(engine, tmp_path / engine, ranks=2)
    assert len(found) == 5 and any(row["autoregressive_loss"] > 0 for row in found)
    for name in NAMES:
        theirs = [row[name] for row in found]
        assert theirs == pytest.approx([row[name] for row in expected], abs=2e-5), name
    whole, theirs = (
        load_file(f / "model" / "autoregressive" / "model.safetensors") for f in (folder, tmp_path / engine)
    )
    assert whole.keys() == theirs.keys()
    for name, weight in whole.items():
        assert torch.allclose(theirs[name], weight, atol=1e-4), name
    if engine in ("ddp", "zero2"):
        a, b = (torch.load(tmp_path / engine / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
