"""From a batch plan to batches: the loader of a training run."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from llava.batch import Sample
from llava.constants import IGNORE_INDEX
from llava.train.samplers import BatchPlan


class WithStandIns(Dataset[Sample]):
    """A data set that also answers `~index`: that sample without a label and without a clip, so that nothing is learnt.

    A rank for which an epoch has no sample left runs one of these; the others wait for its gradients.
    """

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        if index >= 0:
            return self.dataset[index]
        sample: dict[str, Any] = {**self.dataset[~index]}
        for next_frame_data in ("clip", "video_frames"):
            sample.pop(next_frame_data, None)
        return Sample(**{**sample, "labels": torch.full_like(sample["labels"], IGNORE_INDEX)})  # pyright: ignore


class TrainLoader(DataLoader):
    """A DataLoader that hands the epoch to its batch plan; ranks are dealt by the plan, nothing else shards it."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def train_loader(
    dataset: Dataset[Sample],
    plan: BatchPlan,
    *,
    collate: Callable[[list[Sample]], Any],
    workers: int = 0,
    prefetch: int | None = None,
    pin_memory: bool = False,
    seed: int = 0,
) -> TrainLoader:
    """Batches of this rank, read ahead by `workers` processes that live as long as the loader.

    Args:
        prefetch: batches that each worker reads ahead, default 4.
        seed: of the workers' own random numbers.
    """
    return TrainLoader(
        WithStandIns(dataset),
        batch_sampler=plan,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=(prefetch or 4) if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )
