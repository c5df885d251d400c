"""Who am I among the processes of this job? The one place that reads the launcher's environment."""

from __future__ import annotations

import os
from typing import Any


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if value and not value.lstrip("-").isdigit():
        raise ValueError(f"environment variable {name} is {value!r}, expected a number; start with torchrun")
    return int(value) if value else default


def rank() -> int:
    """Index of this process among all of the job; 0 when it is alone."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Index of this process on its machine."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """Number of processes of the job; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size())


def is_main() -> bool:
    """True in the one process that prints, writes files and reports."""
    return rank() == 0


def is_distributed() -> bool:
    return world_size() > 1


def barrier() -> None:
    """Wait for all processes; nothing to do when there is no process group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def gather_objects(record: Any) -> list[Any]:
    """One picklable record per process, in the order of ranks; this one's alone without a process group."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [record]
    records: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(records, record)
    return records


# names that scripts of the VILA family use
size = world_size
local_size = local_world_size
