"""Every engine trains what one process does: on two CPU ranks, of which one often has no picture in its batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.distributed.engines import run, weights

SLOW = pytest.mark.slow
ENGINES = ["ddp", "fsdp2", "zero2", "zero3"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    return run("one", folder, ranks=1, max_steps=20), folder


@SLOW
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("engine", [*ENGINES, "zero3_offload"])  # offload compiles the optimizer of CPU ranks first
def test_twenty_steps_of_mixed_batches_have_the_losses_of_one_process(engine, one_process, tmp_path):
    """Worst difference of a loss measured: 4.8e-7."""
    expected, folder = one_process
    found = run(engine, tmp_path / "run", ranks=2, max_steps=20)
    assert [len(found), len(expected)] == [20, 20]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-4)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=1e-3)
    theirs = weights(tmp_path / "run" / "model")
    for name, weight in weights(folder / "model").items():
        assert torch.allclose(theirs[name], weight, atol=1e-3), name
    pairs = list(zip(*(kinds(tmp_path / "run", rank) for rank in (0, 1)), strict=True))
    assert any(first == {0} and second != {0} for first, second in pairs)  # one rank has text only


def kinds(folder: Path, rank: int) -> list[set[int]]:
    """Per micro-batch of a rank, which kinds of samples it holds: 0 text, 1 picture, 2 clip."""
    return [{int(name) % 3 for name in batch} for batch in json.loads((folder / f"seen{rank}.json").read_text())]


@SLOW
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_huge_gradient_is_clipped_to_the_limit(engine, tmp_path):
    """One step of SGD at rate 1: the weights move by the limit, which is far below the norm of the gradient."""
    limit = 0.01
    (row,) = run(
        engine, tmp_path / "run", ranks=2, max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=limit,
        logit_scale=100.0,
    )  # fmt: skip
    assert row["grad_norm"] > 100 * limit
    before = torch.load(tmp_path / "run" / "before.pt", weights_only=True)
    after = weights(tmp_path / "run" / "model")
    moved = math.sqrt(sum(float((after[name] - weight).double().square().sum()) for name, weight in before.items()))
    assert moved == pytest.approx(limit, rel=1e-2)
