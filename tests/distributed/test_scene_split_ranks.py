"""The split on two CPU ranks whose batches hold different things: none waits for the other, both learn the same."""

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
PROGRAM = Path(__file__).with_name("scene_split_ranks.py")

pytestmark = pytest.mark.slow


def run(engine: str, folder: Path, *, ranks: int) -> list[dict[str, float]]:
    """The log of rank 0; the batch of a step is 2 samples over all ranks."""
    folder.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    launch = [sys.executable] if ranks == 1 else launch
    done = subprocess.run(
        [*launch, str(PROGRAM), engine, str(folder), str(2 // ranks)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "log0.json").read_text())


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_two_ranks_train_what_one_process_does(engine, tmp_path):
    if engine == "zero3" and (importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None):
        pytest.skip('deepspeed and g++ are needed: pip install "llava[train]"')
    expected = run("one", tmp_path / "one", ranks=1)
    found = run(engine, tmp_path / engine, ranks=2)
    assert len(found) == 4
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=2e-5)
    one, both = (load_file(tmp_path / name / "model" / "scene_split" / "model.safetensors") for name in ("one", engine))
    assert one.keys() == both.keys()
    assert max(float((one[name] - both[name]).abs().max()) for name in one) < 1e-4
    if engine == "ddp":
        ranks = [torch.load(tmp_path / "ddp" / f"weights{rank}.pt") for rank in (0, 1)]
        assert all(torch.equal(value, ranks[1][name]) for name, value in ranks[0].items())
