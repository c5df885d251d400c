"""One sequence over several ranks gives the losses and gradients of one process; worst measured: 1e-6 and 2e-5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("sequence_ranks.py")
CASES = 11
TWO_RANKS = ("2:1:ring_varlen", "2:2:ring_varlen", "2:2:zigzag_ring_varlen")
FOUR_RANKS = (
    *("4:1:ring_varlen", "4:4:ring_varlen", "4:4:zigzag_ring_varlen", "4:2:ring_varlen", "4:2:zigzag_ring_varlen"),
    *("2:1:ring_varlen", "2:2:zigzag_ring_varlen"),  # two groups side by side
)


def compare_on(ranks: int, ways: tuple[str, ...], report: Path) -> list[dict[str, dict[str, float]]]:
    """Per rank, per way to share a sequence and per kind of batch the largest differences from one process."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*launch, str(PROGRAM), str(report), *ways],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(report.read_text())


@pytest.mark.parametrize(
    ("ranks", "ways"), [(2, TWO_RANKS), pytest.param(4, FOUR_RANKS, marks=pytest.mark.slow)], ids=["two", "four"]
)
def test_ranks_that_share_a_sequence_compute_what_one_process_does(ranks, ways, tmp_path):
    """Padded, packed and branched rows, few key heads, sliding windows, text alone, and the next-frame loss."""
    for results in compare_on(ranks, ways, tmp_path / "report.json"):
        assert len(results) == CASES * len(ways)
        for name, found in results.items():
            assert found["size"] > 1, name  # a loss of nothing would prove nothing
            assert found["loss"] < 1e-5, name
            assert found["gradient"] < 1e-4, name
