"""What the cache remembers beside the values: known sets of background cells, and what a caller's id was last used for.

Nothing here decides an answer. It says what to try; the key, the fingerprints or the guard decide.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from jaxtyping import Int32
from numpy import ndarray

K = TypeVar("K")
V = TypeVar("V")
MAX_SCOPES = 64
MAX_CALLERS = 1024
KEYS_PER_CALLER = 4


class RecentlyUsed(Generic[K, V]):
    """A mapping that forgets what was least recently set or got."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def set(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self.limit:
            self._items.popitem(last=False)

    def newest(self) -> list[V]:
        return list(reversed(self._items.values()))


CellSets = RecentlyUsed[bytes, Int32[ndarray, "n"]]


class KnownSets:
    """Per scope and grid, the sets of background cells that values exist for."""

    def __init__(self, max_sets: int) -> None:
        self._max_sets = max_sets
        self._scopes: RecentlyUsed[tuple[bytes, bytes], CellSets] = RecentlyUsed(MAX_SCOPES)

    def add(self, scope: bytes, grid: bytes, ids: Int32[ndarray, "n"]) -> None:
        sets = self._scopes.get((scope, grid))
        if sets is None:
            sets = CellSets(self._max_sets)
            self._scopes.set((scope, grid), sets)
        sets.set(ids.tobytes(), ids)

    def of(self, scope: bytes, grid: bytes) -> list[Int32[ndarray, "n"]]:
        """The largest first: of two backgrounds that match, the larger one saves more."""
        sets = self._scopes.get((scope, grid))
        return [] if sets is None else sorted(sets.newest(), key=len, reverse=True)


class CallerHints:
    """The last keys that answered for a caller's id, per tenant."""

    def __init__(self) -> None:
        self._keys: RecentlyUsed[tuple[bytes, str], list[str]] = RecentlyUsed(MAX_CALLERS)

    def add(self, salt: bytes, caller_id: str | None, key: str) -> None:
        if caller_id is not None:
            others = [known for known in self._keys.get((salt, caller_id)) or [] if known != key]
            self._keys.set((salt, caller_id), [key, *others][:KEYS_PER_CALLER])

    def of(self, salt: bytes, caller_id: str | None) -> list[str]:
        return [] if caller_id is None else list(self._keys.get((salt, caller_id)) or [])
