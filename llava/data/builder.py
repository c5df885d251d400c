"""A mixture text and a registry become one data set."""

from __future__ import annotations

import inspect
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.batch import Sample, VisualSpec
from llava.conversation import Conversation, get_template
from llava.data.base import DataContext, DataOptions, Dataset, Modality
from llava.data.dataset_impl import DATASETS
from llava.data.datasets_mixture import DataRegistry, Entry, load_registry
from llava.navigation.worlds.base import CameraProfile
from llava.utils.registry import suggest
from llava.utils.tokenizer import ensure_special_tokens

logger = logging.getLogger(__name__)


def repeated_indices(size: int, repeat: float, seed: int) -> np.ndarray:
    """int64: 0..size-1 as often as `repeat` says, then for its fraction a random subset in order."""
    whole = int(repeat)
    subset = np.random.default_rng(seed).permutation(size)[: round((repeat - whole) * size)]
    return np.concatenate([*[np.arange(size)] * whole, np.sort(subset)]).astype(np.int64)


class RepeatedDataset(torch.utils.data.Dataset[Sample]):
    """A data set `repeat` times over; the fraction of `repeat` is a random subset that depends on the seed only."""

    def __init__(self, dataset: Dataset, repeat: float, seed: int = 0) -> None:
        self.dataset = dataset
        self.repeat = repeat
        self.indices = repeated_indices(len(dataset), repeat, seed)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]


class MixtureDataset(torch.utils.data.Dataset[Sample]):
    """Parts one after another. Shuffling and weighting per epoch is the sampler's work (`sizes`, `names`)."""

    def __init__(self, parts: Sequence[RepeatedDataset]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()
        _warn_of_differences(self)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a mixture with {len(self)} samples")
        index %= len(self)
        part = bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]

    @property
    def names(self) -> list[str]:
        return [part.dataset.name for part in self.parts]

    @property
    def sizes(self) -> list[int]:
        return [len(part) for part in self.parts]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], estimated tokens of every sample."""
        parts = [np.asarray(part.dataset.lengths, np.int64)[part.indices] for part in self.parts]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @property
    def modality(self) -> list[Modality]:
        return [part.dataset.modality[i] for part in self.parts for i in part.indices]

    @property
    def modality_lengths(self) -> list[int]:
        """Lengths, negative for text-only samples."""
        return [-n if m == "text" else n for n, m in zip(self.lengths.tolist(), self.modality, strict=True)]

    @property
    def camera_profiles(self) -> dict[str, CameraProfile]:
        """Of the parts that have one."""
        known = {part.dataset.name: part.dataset.camera_profile for part in self.parts}
        return {name: profile for name, profile in known.items() if profile is not None}

    @property
    def camera_profile(self) -> CameraProfile | None:
        """The one camera of all parts that name one; None where they differ, or none is named."""
        different = set(self.camera_profiles.values())
        return different.pop() if len(different) == 1 else None

    @property
    def navigation_prompt(self) -> dict[str, Any] | None:
        """What the checkpoint must store about the prompt: that of the first part that has one."""
        return next(iter(self.navigation_prompts.values()), None)

    @property
    def navigation_prompts(self) -> dict[str, dict[str, Any]]:
        """Of the parts that have one."""
        formats = {part.dataset.name: getattr(part.dataset, "prompt_format", None) for part in self.parts}
        return {name: row.to_config() for name, row in formats.items() if row is not None}

    def report(self) -> str:
        """Sizes of the parts and the broken samples met so far."""
        return "\n".join(
            f"{part.dataset.report()}" + (f" (x{part.repeat:g})" if part.repeat != 1 else "") for part in self.parts
        )


def build_dataset(
    mixture: str,
    *,
    tokenizer: Any,
    spec: VisualSpec,
    template: Conversation | str,
    options: DataOptions | None = None,
    registry: DataRegistry | str | Path | Iterable[str | Path] | None = None,
    data_root: str | Path | None = None,
    split: str = "train",
) -> MixtureDataset:
    """The data sets of a mixture such as `r2r+rxr*2+scanqa*0.5` or a named one, in the order written.

    Args:
        tokenizer: gets `<image>` (in memory) if it lacks it.
        registry, data_root, split: see `datasets_mixture.load_registry`.

    Raises:
        ValueError, FileNotFoundError: for an unknown name (the nearest is suggested), type, option or path.
    """
    known = (
        registry if isinstance(registry, DataRegistry) else load_registry(registry, data_root=data_root, split=split)
    )
    ensure_special_tokens(tokenizer)
    template = get_template(template) if isinstance(template, str) else template
    context = DataContext(tokenizer=tokenizer, spec=spec, template=template, options=options or DataOptions())
    built: dict[str, Dataset] = {}
    parts = []
    for part in known.parts(mixture):
        if part.name not in built:
            built[part.name] = build_entry(known.entries[part.name], context)
        parts.append(RepeatedDataset(built[part.name], part.repeat, seed=context.options.seed))
    dataset = MixtureDataset(parts)
    if len(dataset) == 0:
        raise ValueError(f"mixture '{mixture}' has no samples: {dict(zip(dataset.names, dataset.sizes, strict=True))}")
    logger.info("mixture %s: %d samples\n%s", mixture, len(dataset), dataset.report())
    return dataset


def build_entry(entry: Entry, context: DataContext) -> Dataset:
    """One data set of a registry."""
    if entry.type not in DATASETS:
        raise ValueError(
            f"data set '{entry.name}' has the unknown type '{entry.type}'{suggest(entry.type, list(DATASETS))}; "
            "correct its registry entry"
        )
    row = DATASETS[entry.type]
    known = [field.name for field in fields(DataOptions)]
    for option in entry.options:
        if option not in known:
            raise ValueError(f"data set '{entry.name}' has the unknown option '{option}'{suggest(option, known)}")
    wanted = inspect.signature(row).parameters
    for key in entry.paths:
        if key not in wanted:
            raise ValueError(
                f"data set '{entry.name}' of type '{entry.type}' takes no '{key}'{suggest(key, list(wanted))}"
            )
    missing = [
        key for key, p in wanted.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty and key not in entry.paths
    ]
    if missing:
        raise ValueError(f"data set '{entry.name}' of type '{entry.type}' needs {missing}; add to its registry entry")
    own = replace(context, options=replace(context.options, **entry.options))
    return row(entry.name, own, **entry.paths)  # pyright: ignore[reportArgumentType]


def _warn_of_differences(mixture: MixtureDataset) -> None:
    """One model has one camera and one prompt; a mixture of several is allowed and said."""
    for kind, found, outcome in (
        ("cameras", mixture.camera_profiles, "none is stored, so evaluation cannot compare them"),
        ("navigation prompts", mixture.navigation_prompts, "the first is stored"),
    ):
        if any(value != next(iter(found.values())) for value in found.values()):
            listed = "\n  ".join(f"{name}: {value}" for name, value in found.items())
            logger.warning("the data sets of this mixture have different %s; %s:\n  %s", kind, outcome, listed)
