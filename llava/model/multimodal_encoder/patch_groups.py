"""Rows of one group of patches, pictures end to end, each row with the place that it has in the unsplit picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PatchGroup:
    """Features (or tokens, behind a projector) of one group.

    Attributes:
        features: rows of all pictures end to end.
        places: index of each row among the rows that the unsplit picture would give; ascending within a picture.
        counts: rows per picture; 0 = the group is empty there.
    """

    features: Float[Tensor, "total d"]
    places: Int[Tensor, "total"]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        total = sum(self.counts)
        if not len(self.features) == len(self.places) == total:
            raise ValueError(
                f"{len(self.features)} rows and {len(self.places)} places, expected {total}: the sum of {self.counts}"
            )

    def of_pictures(self) -> list[PatchGroup]:
        """One group per picture; views, nothing is copied."""
        counts = list(self.counts)
        parts = zip(self.features.split(counts), self.places.split(counts), counts, strict=True)
        return [PatchGroup(features=rows, places=places, counts=(count,)) for rows, places, count in parts]

    def padded(self) -> tuple[Float[Tensor, "n m d"], Bool[Tensor, "n m"]]:
        """Rows padded with zeros to the largest count, and where they are real."""
        longest = max(self.counts, default=0)
        count = torch.tensor(self.counts, dtype=torch.long, device=self.features.device)
        is_valid = torch.arange(longest, device=self.features.device)[None] < count[:, None]
        rows = self.features.new_zeros(len(self.counts), longest, self.features.shape[-1])
        return rows.masked_scatter(is_valid[..., None], self.features), is_valid


def join_groups(groups: Sequence[PatchGroup]) -> PatchGroup:
    """Groups of further pictures behind each other."""
    return PatchGroup(
        features=torch.cat([group.features for group in groups]),
        places=torch.cat([group.places for group in groups]),
        counts=tuple(count for group in groups for count in group.counts),
    )


def in_reading_order(
    background: PatchGroup, objects: PatchGroup, has_background: Sequence[bool] | None = None
) -> Float[Tensor, "1 total d"]:
    """Tokens as their slots follow each other: the background and the objects of a picture, then the next picture.

    has_background: for each picture of `objects` whether a background stands before it (clips); None = always.
    """
    expected = [True] * len(objects.counts) if has_background is None else list(has_background)
    if len(expected) != len(objects.counts) or sum(expected) != len(background.counts):
        raise ValueError(
            f"{len(background.counts)} backgrounds and {len(objects.counts)} pictures with objects, has_background "
            f"expects {sum(expected)} and {len(expected)}"
        )
    backs, parts = iter(background.of_pictures()), []
    for has, front in zip(expected, objects.of_pictures(), strict=True):
        parts += [next(backs).features, front.features] if has else [front.features]
    return torch.cat([objects.features[:0], *parts])[None]


def merge_groups(background: PatchGroup, objects: PatchGroup) -> Float[Tensor, "n p d"]:
    """Both groups back at their places: the split backwards.

    Raises:
        ValueError: where the groups do not fill the picture, each place once.
    """
    totals = {b + o for b, o in zip(background.counts, objects.counts, strict=True)}
    if len(totals) != 1:
        raise ValueError(f"pictures have {sorted(totals)} rows in both groups together, expected the same number")
    total, rows = totals.pop(), []
    for back, front in zip(background.of_pictures(), objects.of_pictures(), strict=True):
        places = torch.cat([back.places, front.places])
        if places.sort().values.tolist() != list(range(total)):
            raise ValueError(f"the places of both groups are {places.tolist()}, expected each of 0..{total - 1} once")
        rows.append(torch.cat([back.features, front.features])[places.argsort()])
    return torch.stack(rows)
