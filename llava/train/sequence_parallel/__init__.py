"""Sequence parallelism of a run: what the flags ask for, and the groups behind it (`llava.model.sequence_parallel`)."""

from __future__ import annotations

import logging
from typing import Any

from llava.model.sequence_parallel import SequenceParallelConfig, check_model, create_group, group_members
from llava.train.parse import RunArguments
from llava.utils.distributed import world_size

logger = logging.getLogger(__name__)


def sequence_parallel_settings(args: RunArguments) -> SequenceParallelConfig | None:
    """What the `--seq_parallel_*` flags ask for; None where every process has sequences of its own.

    Raises:
        ValueError: for sizes that do not fit each other or the job.
    """
    training = args.training
    if training.seq_parallel_size in (-1, 1):
        if training.seq_parallel_ring_size not in (-1, 1):
            raise ValueError(
                f"--seq_parallel_ring_size is {training.seq_parallel_ring_size} and --seq_parallel_size "
                f"{training.seq_parallel_size}, expected a ring inside a group of several processes; set "
                f"--seq_parallel_size {training.seq_parallel_ring_size} (ring alone) or a multiple of it"
            )
        if "seq_parallel_ring_type" in args.given:
            logger.warning("--seq_parallel_ring_type has no effect without --seq_parallel_ring_size above 1")
        return None
    ring_size = training.seq_parallel_ring_size
    config = SequenceParallelConfig(
        size=training.seq_parallel_size,
        ring_size=1 if ring_size == -1 else ring_size,
        ring_type=training.seq_parallel_ring_type,
    )
    group_members(world_size(), config)
    if config.ring_size == 1 and "seq_parallel_ring_type" in args.given:
        logger.warning("--seq_parallel_ring_type has no effect without --seq_parallel_ring_size above 1")
    return config


def attach_sequence_parallel(model: Any, config: SequenceParallelConfig | None) -> None:
    """Opens the groups and hands the model its own; every process calls it once, after the model is complete.

    Raises:
        ValueError: for a model that cannot be split (`model/sequence_parallel/checks.py`), or whose next-frame loss
            weighs itself by gradients, of which each process has a part.
    """
    if config is None:
        return
    check_model(model, config)
    predictor = model.autoregressive_reconstruction
    if predictor is not None and predictor.config.gradient_share is not None:
        raise ValueError(
            f"gradient_share is {predictor.config.gradient_share}, under sequence parallelism every process has a part "
            "of the gradients only; set loss_weight instead"
        )
    model.sequence_group = create_group(config)
    logger.info(
        "%d processes share a sequence: %d exchange heads (Ulysses), %d pass keys and values round (%s)",
        config.size, config.ulysses_size, config.ring_size, config.ring_type if config.ring_size > 1 else "no ring",
    )  # fmt: skip
