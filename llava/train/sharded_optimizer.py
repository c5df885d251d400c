"""Optimizer states of FSDP2 on disk: every rank writes its shards, any number of ranks reads them."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

FOLDER = "optimizer_0"
"""The name that accelerate gives it, too."""


def save(model: nn.Module, optimizer: Any, checkpoint: Path) -> None:
    """Every rank must call it; on disk when it returns."""
    dcp.save({"optimizer": get_optimizer_state_dict(model, _plain(optimizer))}, checkpoint_id=checkpoint / FOLDER)


def save_async(model: nn.Module, optimizer: Any, checkpoint: Path, group: dist.ProcessGroup | None) -> Future[Any]:
    """As `save`, after the states were copied to the host; rank 0's future ends when the shards of all ranks are there.

    Args:
        group: of gloo, used by nobody else meanwhile; see `host_group`.
    """
    state = {"optimizer": get_optimizer_state_dict(model, _plain(optimizer))}
    begun: Any = dcp.async_save(state, checkpoint_id=checkpoint / FOLDER, process_group=group)
    return begun


def host_group() -> dist.ProcessGroup | None:
    """A group for `save_async`; every rank must call it at the same time."""
    group: Any = dist.new_group(backend="gloo")
    return group


def load(model: nn.Module, optimizer: Any, checkpoint: Path) -> None:
    """Read what `save` wrote, on any number of ranks."""
    state = {"optimizer": get_optimizer_state_dict(model, _plain(optimizer))}
    dcp.load(state, checkpoint_id=checkpoint / FOLDER)
    set_optimizer_state_dict(model, _plain(optimizer), state["optimizer"])


def _plain(optimizer: Any) -> Any:
    """Without accelerate's wrapper, which skips steps."""
    return getattr(optimizer, "optimizer", optimizer)
