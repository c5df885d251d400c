"""What a request gets: a value with its provenance, or the reason why it has to be computed."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int32, Int64
from numpy import ndarray
from torch import Tensor

from llava.scene.cache.cost import Tier
from llava.scene.cache.entries import BackgroundValue, alias
from llava.scene.cache.request import BackgroundRequest, CacheScope, ScopeDigests
from llava.scene.cache.similarity import Match
from llava.scene.cache.tiers import Lease

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Answer:
    """One request's result. Use it as a context manager, or call `release`: until then its entry is not evicted.

    Attributes:
        provenance: `exact_kv`, `exact_tokens` or `guarded` if the cache served; `miss`, `rejected:<why>` or
            `bypass:<why>` if not.
        ids: background cells of the value; None where the background is not known.
        match: of a guarded answer, what differs.
        tier: where the value was found.
        saved_tokens: positions that need not be computed.
        computed: the value, where this request computed it.
    """

    request: BackgroundRequest
    digests: ScopeDigests
    generation: int
    provenance: str
    ids: Int32[ndarray, "n"] | None = None
    match: Match | None = None
    tier: Tier | None = None
    saved_tokens: int = 0
    computed: BackgroundValue | None = None
    lease: Lease | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.lease is not None:  # an answer that is dropped without `release` does not pin its entry for ever
            weakref.finalize(self, self.lease.abandon)

    @property
    def is_served(self) -> bool:
        return self.lease is not None

    @property
    def is_guarded(self) -> bool:
        return self.match is not None

    @property
    def key(self) -> str:
        """256 bits, in hexadecimal, that name the prefix up to the end of this background."""
        if self.ids is None:
            raise ValueError("the background of this request is not known; give ids, or a function that finds them")
        return self.request.key("kv", self.digests, self.ids)

    @property
    def background_ids(self) -> Int64[Tensor, "n"]:
        """Cells that the value was computed for, in the coordinates of the cached picture."""
        return torch.from_numpy(self._known_ids()).long()

    @property
    def object_ids(self) -> Int64[Tensor, "m"]:
        """Cells of this request's picture that are to be computed as objects."""
        if self.match is not None:
            return torch.from_numpy(self.match.object_ids).long()
        everything = np.arange(self.request.grid.num_cells)
        return torch.from_numpy(np.setdiff1d(everything, self._known_ids(), assume_unique=True))

    @property
    def stale_ids(self) -> Int64[Tensor, "s"]:
        """Background cells of a guarded answer that no longer show what they showed."""
        return torch.from_numpy(self.match.stale_ids).long() if self.match else torch.empty(0, dtype=torch.long)

    @property
    def shift(self) -> tuple[int, int]:
        """(rows, columns) by which a guarded answer's background shows elsewhere now."""
        return self.match.shift if self.match else (0, 0)

    def shared(self) -> BackgroundValue:
        """The value without a copy, for readers that do not write to it.

        Several requests hold the same memory. A write to it is found when the answer is released, or at the latest
        when the entry is asked for again: the entry is dropped, and `release` raises.
        """
        if self.computed is not None:
            return self.computed
        return self._entry_value().map(alias)

    def copy(self) -> BackgroundValue:
        """The value in memory of the caller's own, for KV that grows in place."""
        return self.computed.copy() if self.computed is not None else self._entry_value().copy()

    def following_scope(self) -> CacheScope:
        """The scope of what comes after this background in the language model's input.

        Behind a guarded answer nothing is stored and no KV is served: it would pass for exact.
        """
        return self.request.scope.after(self.key, exact=not self.is_guarded)

    def release(self) -> None:
        """Let the entry go.

        Raises:
            RuntimeError: somebody wrote to the shared tensors of this entry.
        """
        if self.lease is not None and not self.lease.release():
            raise RuntimeError(
                f"the shared tensors of background {self.lease.entry.key[:12]} were written to; the entry is dropped. "
                "Take answer.copy() where the value is changed in place"
            )

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.release()
        except RuntimeError:
            if kind is None:
                raise
            logger.exception("found while another error is on its way")

    def _known_ids(self) -> Int32[ndarray, "n"]:
        if self.ids is None:
            raise ValueError("the background of this request is not known; give ids, or a function that finds them")
        return self.ids

    def _entry_value(self) -> BackgroundValue:
        if self.lease is None or self.lease.is_released:
            raise ValueError(f"this answer ({self.provenance}) holds no value, or was released; use it before that")
        value = self.lease.entry.value
        for tensor in value.tensors.values():
            if tensor.is_cuda:  # evicted memory is not handed on before this stream has read it
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return value
