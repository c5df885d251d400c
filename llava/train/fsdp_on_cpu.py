"""FSDP on CPU ranks.

accelerate shards models on GPUs only: where `--fsdp` or its launcher's environment asks for FSDP on CPU ranks, it says
nothing and copies the whole model to every rank (DDP). torch shards on the CPU as well.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


def shard_on_cpu(accelerator: Accelerator, plugin_args: dict[str, Any] | None) -> bool:
    """Make an accelerator of CPU ranks shard, where FSDP was asked for; True if it does.

    Args:
        plugin_args: what `--fsdp_config` gave, None where only the launcher may have asked.
    """
    asked = plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    plugin = FullyShardedDataParallelPlugin(**(plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version is {plugin.fsdp_version}, expected 2: CPU ranks shard with FSDP2 only")
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state: Any = accelerator.state
    state.fsdp_plugin = plugin
    for each in (state, PartialState()):  # the second is where every later state of accelerate begins
        each.distributed_type = DistributedType.FSDP
    return True
