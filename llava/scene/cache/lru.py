"""Least recently used values within a number of bytes; values in use stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(eq=False)
class Slot(Generic[V]):
    """A value in the order of use. `leaving`: no longer found, but its bytes count until the last user lets go."""

    key: str
    value: V
    nbytes: int
    pins: int = 0
    leaving: bool = False


class ByteLRU(Generic[V]):
    """Not thread-safe; the owner holds a lock.

    At every moment `used` is the sum of the bytes of all values that are in it or still in use, and `used <= limit`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._slots: OrderedDict[str, Slot[V]] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot[V]]:
        """Slots, the least recently used one first."""
        return iter(list(self._slots.values()))

    def get(self, key: str, *, pin: bool = False) -> Slot[V] | None:
        """The slot, now the most recently used one."""
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
            slot.pins += pin
        return slot

    def peek(self, key: str) -> Slot[V] | None:
        """The slot, its place in the order of use unchanged."""
        return self._slots.get(key)

    def unpin(self, slot: Slot[V]) -> None:
        assert slot.pins > 0, f"{slot.key} was let go more often than taken"
        slot.pins -= 1
        if slot.leaving and not slot.pins:
            self.used -= slot.nbytes

    def victims(self, nbytes: int) -> list[Slot[V]] | None:
        """What has to leave so that `nbytes` fit; None where they do not, whatever leaves."""
        missing = self.used + nbytes - self.limit
        chosen: list[Slot[V]] = []
        for slot in self._slots.values():
            if missing <= 0:
                break
            if not slot.pins:
                chosen.append(slot)
                missing -= slot.nbytes
        return chosen if missing <= 0 else None

    def insert(self, key: str, value: V, nbytes: int, *, pin: bool = False) -> Slot[V]:
        assert key not in self._slots, f"{key} is in this tier already"
        assert self.used + nbytes <= self.limit, f"{nbytes} bytes beside {self.used} are more than {self.limit}"
        self._slots[key] = slot = Slot(key, value, nbytes, pins=int(pin))
        self.used += nbytes
        return slot

    def discard(self, key: str) -> bool:
        """Take a value out; where it is in use its users keep it, and its bytes count until they let go."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return False
        if slot.pins:
            slot.leaving = True
        else:
            self.used -= slot.nbytes
        return True
