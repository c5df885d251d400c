"""Patches of two groups apart and together again: gather by place, scatter back; split then merge = identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """The patches (or cells) of one group of every picture of a batch, ascending, padded to a common count.

    Attributes:
        ids: place of each in its picture; 0 where not valid.
        valid: True = a member, False = padding; the members of a row come first.
    """

    ids: Int[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]

    @property
    def counts(self) -> Int[Tensor, " b"]:
        return self.valid.sum(dim=1)

    @property
    def boundaries(self) -> Int[Tensor, " ends"]:
        """First row of each picture in a packed group, and the end; int32 as kernels of variable length want it."""
        ends = self.counts.cumsum(0, dtype=torch.int32)
        return torch.cat([ends.new_zeros(1), ends])


@dataclass(frozen=True, kw_only=True)
class SceneSplit:
    """Which place of `num_places` belongs to which group."""

    background: Group
    objects: Group
    num_places: int


def split_places(
    is_object: Bool[Tensor, "b p"], *, background_room: int | None = None, object_room: int | None = None
) -> SceneSplit:
    """Both groups of every picture from its patch mask (`PatchMask.patches`) or cell mask (`PatchMask.cells`), flat.

    Args:
        background_room, object_room: columns of the padded groups; None = the largest count of the batch. A fixed room
            keeps shapes the same from batch to batch.
    """
    return SceneSplit(
        background=_group(~is_object, background_room, "background_room"),
        objects=_group(is_object, object_room, "object_room"),
        num_places=is_object.shape[1],
    )


def _group(member: Bool[Tensor, "b p"], room: int | None, name: str) -> Group:
    counts = member.sum(dim=1)
    most = int(counts.max()) if len(counts) else 0
    if room is not None and room < most:
        raise ValueError(f"{name} is {room} and a picture of the batch has {most} places of that group; raise it")
    room = most if room is None else room
    order = member.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # members first, ascending
    missing = max(room - member.shape[1], 0)
    ids = torch.nn.functional.pad(order, (0, missing))[:, :room]
    valid = torch.arange(room, device=member.device)[None, :] < counts[:, None]
    return Group(ids=ids.masked_fill(~valid, 0), valid=valid)


def gather(tokens: Float[Tensor, "b p d"], group: Group) -> Float[Tensor, "b n d"]:
    """The group's rows; zeros where not valid."""
    _check_batch(tokens, group)
    if tokens.shape[1] == 0 or group.ids.shape[1] == 0:
        return tokens.new_zeros(*group.ids.shape, tokens.shape[2])
    rows = tokens.gather(1, group.ids[..., None].expand(-1, -1, tokens.shape[2]))
    return rows.masked_fill(~group.valid[..., None], 0)


def merge(
    background: Float[Tensor, "b n d"], objects: Float[Tensor, "b m d"], split: SceneSplit
) -> Float[Tensor, "b p d"]:
    """Both groups back at their places; what stands where a group is not valid is never read."""
    if background.dtype != objects.dtype:
        raise ValueError(f"background is {background.dtype} and objects {objects.dtype}; cast one of them")
    whole = background.new_zeros(len(background), split.num_places, background.shape[2])
    for tokens, group in ((background, split.background), (objects, split.objects)):
        _check_batch(tokens, group)
        if tokens.shape[1] != group.ids.shape[1]:
            raise ValueError(f"a group has {tokens.shape[1]} columns, its split {group.ids.shape[1]}; do not crop it")
        picture = torch.arange(len(whole), device=whole.device)[:, None].expand_as(group.ids)
        whole = whole.index_put((picture[group.valid], group.ids[group.valid]), tokens[group.valid])
    return whole


def pack(tokens: Float[Tensor, "b n d"], group: Group) -> Float[Tensor, "members d"]:
    """Only the members, picture after picture; `Group.boundaries` says where each begins."""
    _check_batch(tokens, group)
    return tokens[group.valid]


def unpack(packed: Float[Tensor, "members d"], group: Group) -> Float[Tensor, "b n d"]:
    """The reverse of `pack`; zeros where not valid."""
    members = int(group.valid.sum())
    if len(packed) != members:
        raise ValueError(f"{len(packed)} packed rows for a group of {members} members; take the group that packed them")
    rows = packed.new_zeros(*group.ids.shape, packed.shape[1])
    return rows.index_put((group.valid,), packed)


def may_attend(group: Group) -> Bool[Tensor, "b 1 n n"]:
    """Members see the members of their picture; padding sees itself, so that no softmax runs over nothing."""
    pairs = group.valid[:, :, None] & group.valid[:, None, :]
    itself = torch.eye(group.ids.shape[1], dtype=torch.bool, device=group.ids.device)
    return (pairs | (itself & ~group.valid[:, :, None]))[:, None]


def may_attend_packed(group: Group) -> Bool[Tensor, "members members"]:
    """The same for a packed group: one block per picture."""
    picture = torch.arange(len(group.ids), device=group.ids.device).repeat_interleave(group.counts)
    return picture[:, None] == picture[None, :]


def places_of_cells(grid: int, cell: int, order: str = "row") -> Int[Tensor, "cells members"]:
    """The patches of every token of a projector that merges cell x cell patches; -1 = a patch of zeros that it adds.

    Rows follow each other as the projector's tokens do: "row" by row, or "column" by column (its `token_order`).
    Inside a cell the patches run row by row, so that gathered features laid side by side are its input.
    """
    if order not in ("row", "column"):
        raise ValueError(f"token order is {order!r}, expected 'row' or 'column'")
    missing = -grid % cell
    places = torch.arange(grid * grid).reshape(grid, grid)
    places = torch.nn.functional.pad(places, (0, missing, 0, missing), value=-1)
    coarse = (grid + missing) // cell
    places = places.reshape(coarse, cell, coarse, cell)  # [cell row, row in cell, cell column, column in cell]
    axes = (0, 2, 1, 3) if order == "row" else (2, 0, 1, 3)
    return places.permute(*axes).reshape(coarse * coarse, cell * cell)


def gather_cells(
    tokens: Float[Tensor, "b p d"], cells: Group, places: Int[Tensor, "all_cells members"]
) -> Float[Tensor, "b n e"]:
    """Features of whole cells, side by side, as the projector's first layer makes them; zeros for added patches.

    Args:
        cells: a group of cells, from `split_places` on `PatchMask.cells` in the order of `places`.
        places: `places_of_cells` of the grid.
    """
    _check_batch(tokens, cells)
    members = places.to(tokens.device)[cells.ids]  # [b, n, members]
    is_read = (members >= 0) & cells.valid[..., None]
    rows = tokens.gather(1, members.clamp(min=0).flatten(1)[..., None].expand(-1, -1, tokens.shape[2]))
    return rows.masked_fill(~is_read.flatten(1)[..., None], 0).reshape(
        *cells.ids.shape, members.shape[2] * tokens.shape[2]
    )


def _check_batch(tokens: Tensor, group: Group) -> None:
    if len(tokens) != len(group.ids):
        raise ValueError(f"{len(tokens)} pictures of tokens for a split of {len(group.ids)}; give both the same batch")
