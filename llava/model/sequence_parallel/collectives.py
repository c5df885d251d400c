"""Exchanges between the ranks of a group that a gradient can pass backwards, on any backend of torch.distributed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(grads[0], ctx.group), None  # pyright: ignore[reportReturnType]


def all_to_all(parts: Tensor, group: Any) -> Tensor:
    """parts[i] goes to rank i of the group; out[j] is what rank j had for this one. All parts have one shape."""
    return _AllToAll.apply(parts, group)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = part.new_empty(dist.get_world_size(group), *part.shape)
        dist.all_gather(list(parts.unbind()), part.contiguous(), group=group)
        return parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = torch.empty_like(grads[0][0], memory_format=torch.contiguous_format)
        dist.reduce_scatter(grad, list(grads[0].contiguous().unbind()), group=ctx.group)
        return grad, None


def gather(part: Tensor, group: Any) -> Tensor:
    """[ranks, ...] the parts of all ranks. The gradient of a part is the sum of what every rank's loss asks of it."""
    return _Gather.apply(part, group)  # pyright: ignore[reportReturnType]


class Passing:
    """Tensors on their way to the next rank of a ring, while others come from the rank before.

    Args:
        first_tag: of the first tensor; what is on its way at the same time has other tags.
    """

    def __init__(self, tensors: tuple[Tensor, ...], group: Any, first_tag: int = 0) -> None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self._sent = tuple(tensor.contiguous() for tensor in tensors)
        self._received = tuple(torch.empty_like(tensor) for tensor in self._sent)
        pairs = zip(self._sent, self._received, strict=True)
        self._requests = dist.batch_isend_irecv(
            [
                operation
                for tag, (sent, received) in enumerate(pairs, start=first_tag)
                for operation in (
                    dist.P2POp(dist.isend, sent, group=group, tag=tag, group_peer=(rank + 1) % size),
                    dist.P2POp(dist.irecv, received, group=group, tag=tag, group_peer=(rank - 1) % size),
                )
            ]
        )

    def wait(self) -> tuple[Tensor, ...]:
        """What came; the tensors that were sent may then be changed again."""
        for request in self._requests:
            request.wait()
        return self._received
