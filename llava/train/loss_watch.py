"""Which samples gave a loss that is no number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from llava.train.checkpointing import write_json
from llava.utils.distributed import gather_objects, is_main, rank

NOT_FINITE_FILE = "loss_not_finite.json"


@dataclass(frozen=True, kw_only=True)
class BadBatch:
    """A micro-batch of one rank whose loss is not finite; `step` counts from 0, as in the optimizer."""

    rank: int
    step: int
    loss: float
    sample_ids: Sequence[str]


class LossWatch:
    """Keeps the losses of all micro-batches since the last check on the device, with the names of their samples."""

    def __init__(self, output_dir: Path) -> None:
        self.file = output_dir / NOT_FINITE_FILE
        self._losses: list[Tensor] = []
        self._where: list[tuple[int, Sequence[str]]] = []

    def observe(self, loss: Tensor, *, step: int, sample_ids: Sequence[str]) -> None:
        self._losses.append(loss.detach())
        self._where.append((step, sample_ids))

    def clear(self) -> None:
        self._losses, self._where = [], []

    def check(self) -> list[BadBatch]:
        """The first bad micro-batch of every rank that has one, written to a file; every rank must call it."""
        found = [bad for bad in gather_objects(self._first()) if bad is not None]
        self.clear()
        if found and is_main():
            write_json(self.file, {"batches": [{**asdict(bad), "loss": str(bad.loss)} for bad in found]})
        return found

    def _first(self) -> BadBatch | None:
        if not self._losses:
            return None
        losses = torch.stack([loss.float() for loss in self._losses])
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if not bad:
            return None
        step, names = self._where[bad[0]]
        return BadBatch(rank=rank(), step=step, loss=float(losses[bad[0]]), sample_ids=list(names))
