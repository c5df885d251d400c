"""One piece of work at a time beside the training loop, and copies of tensors that the loop goes on changing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class BackgroundWriter:
    """Writes in a thread of its own. What goes wrong there is raised by the next `wait` or `submit`."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Start to write; what was begun before is finished first."""
        self.wait()
        self._running = self._threads.submit(work)

    def wait(self) -> None:
        """Until nothing is being written."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


def snapshot(tree: Any, *, fixed: Collection[int] = ()) -> Any:
    """The same dicts and lists with copies of their tensors on the host; tensors of one storage place stay one.

    Args:
        fixed: addresses (`data_ptr`) of tensors that nobody changes and that need no copy.
    """
    return _copied(tree, frozenset(fixed), {})


def _copied(tree: Any, fixed: frozenset[int], copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        if tree.data_ptr() in fixed:
            return tree
        place = (tree.data_ptr(), tree.dtype, tree.shape, tree.stride())
        if place not in copies:
            copies[place] = torch.empty_like(tree, device="cpu").copy_(tree.detach())
        return copies[place]
    if isinstance(tree, Mapping):
        return {key: _copied(value, fixed, copies) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copied(value, fixed, copies) for value in tree)
    return tree
