"""Device, main memory, disk: where an entry lies, how it gets up when it is asked for and down when room is needed.

An entry may lie in several tiers at once: what was fetched from below stays below, so that leaving the upper tier again
copies nothing. Two locks: `_lock` guards the order of use and is held for moments; `_moving` is held by whoever copies
between tiers, and taken first. A hit on the device waits for no copy.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llava.scene.cache.config import CacheConfig
from llava.scene.cache.cost import Tier
from llava.scene.cache.disk import DiskTier
from llava.scene.cache.entries import Entry, Origin, private
from llava.scene.cache.lru import ByteLRU, Slot
from llava.scene.cache.stats import CacheStats, Counters

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class MemoryTier:
    """One memory: its order of use, and how a tensor gets into it."""

    name: Tier
    lru: ByteLRU[Entry]
    place: Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Lease:
    """An entry in use. It is not evicted before `release`, unless it is a copy that no tier holds (`slot` None)."""

    entry: Entry
    tier: Tier
    tiers: TieredStore
    slot: Slot[Entry] | None
    is_released: bool = False

    def release(self) -> bool:
        """Let go, once; False if the entry's tensors were written to, in which case it is gone from memory now."""
        if self.is_released:
            return True
        self.is_released = True
        return True if self.slot is None else self.tiers.let_go(self.slot)

    def abandon(self) -> None:
        """Have it released later. For the garbage collector, which may come while a lock is held."""
        if not self.is_released:
            self.tiers.abandoned.append(self)


class TieredStore:
    """Entries by key in up to three tiers."""

    def __init__(self, config: CacheConfig, counters: Counters) -> None:
        self._counters = counters
        self._write_through = config.write_through
        self.abandoned: deque[Lease] = deque()
        self._lock = threading.RLock()
        self._moving = threading.RLock()
        device = torch.device(config.device)
        to_device = MemoryTier("device", ByteLRU(config.device_bytes), lambda tensor: _to_device(tensor, device))
        self._memories = [to_device, MemoryTier("host", ByteLRU(config.host_bytes), _to_host)]
        self.disk: DiskTier | None = None
        if config.disk_folder is not None:
            self.disk = DiskTier(Path(config.disk_folder), config.disk_bytes, counters)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            in_memory = any(key in memory.lru for memory in self._memories)
        return in_memory or (self.disk is not None and key in self.disk)

    def find(self, key: str) -> tuple[Tier, int] | None:
        """The fastest tier that holds the key, and the bytes that lie there."""
        with self._lock:
            for memory in self._memories:
                slot = memory.lru.peek(key)
                if slot is not None:
                    return memory.name, slot.nbytes
        size = None if self.disk is None else self.disk.size(key)
        return None if size is None else ("disk", size)

    def get(self, key: str) -> Lease | None:
        """The entry on the device, pinned; fetched from below where it lies there."""
        self._release_abandoned()
        lease = self._take("device", key)
        if lease is not None:
            return lease
        with self._moving:
            return self._take("device", key) or self._fetch(key)

    def put(self, entry: Entry) -> bool:
        """Keep an entry in the highest tier that can hold it. False where none can."""
        self._release_abandoned()
        with self._moving:
            kept = any(self._settle(memory, entry) is not None for memory in self._memories)
            if self.disk is not None and (self._write_through or not kept):
                kept = entry.key in self.disk or self.disk.write(entry) or kept
            if not kept:
                self._counters.add("too_large")
            return kept

    def discard(self, key: str) -> None:
        """Out of every memory; a file stays, it is checked whenever it is read."""
        with self._lock:
            for memory in self._memories:
                memory.lru.discard(key)

    def drop(self, key: str) -> None:
        """Out of every tier: what lies under this key is not what it should be."""
        self.discard(key)
        if self.disk is not None:
            self.disk.delete(key)

    def remove(self, matches: Callable[[Origin], bool], *, disk: bool) -> int:
        """Take out all entries whose origin matches; those in use stay with their users."""
        with self._moving:
            keys = {origin.key for origin in self.in_memory() if matches(origin)}
            for key in keys:
                self.discard(key)
            return len(keys) + (self.disk.remove(matches) if disk and self.disk is not None else 0)

    def flush(self) -> int:
        """Write what lies in memory only to disk; returns the number of files written."""
        if self.disk is None:
            return 0
        with self._moving:
            with self._lock:
                entries = {slot.key: slot.value for memory in self._memories for slot in memory.lru}
            return sum(self.disk.write(entry) for key, entry in entries.items() if key not in self.disk)

    def in_memory(self) -> Iterator[Origin]:
        with self._lock:
            slots = [slot for memory in self._memories for slot in memory.lru]
        return (slot.value.origin for slot in slots)

    def let_go(self, slot: Slot[Entry]) -> bool:
        with self._lock:
            clean = not slot.value.was_written
            if not clean:
                if not slot.leaving:
                    self._counters.add("written_by_reader")
                self.discard(slot.key)
            self._memories[0].lru.unpin(slot)
        return clean

    def describe(self, stats: CacheStats) -> None:
        """Fill in what lies where."""
        self._release_abandoned()
        with self._lock:
            for memory in self._memories:
                if memory.lru.limit:
                    stats.entries_by_tier[memory.name] = len(memory.lru)
                    stats.bytes_by_tier[memory.name] = memory.lru.used
                    stats.limits_by_tier[memory.name] = memory.lru.limit
        if self.disk is not None:
            stats.entries_by_tier["disk"], stats.bytes_by_tier["disk"] = self.disk.used()
            stats.limits_by_tier["disk"] = self.disk.limit
            stats.disk_writable = self.disk.writable

    def _release_abandoned(self) -> None:
        """A write to such an entry is counted and the entry dropped; nobody is left to be told."""
        with self._lock:
            while self.abandoned:
                self.abandoned.popleft().release()

    def _take(self, name: Tier, key: str) -> Lease | None:
        with self._lock:
            slot = self._memory(name).lru.get(key, pin=True)
        if slot is None:
            return None
        slot.value.wait_until_written()
        lease = Lease(slot.value, name, self, slot)
        if slot.value.was_written:  # by a reader that kept an alias after letting go
            lease.release()
            return None
        return lease

    def _memory(self, name: Tier) -> MemoryTier:
        return next(memory for memory in self._memories if memory.name == name)

    def _fetch(self, key: str) -> Lease | None:
        host = self._memories[1]
        with self._lock:
            below = host.lru.get(key, pin=True)
        if below is not None:
            try:
                return self._raise(below.value, "host")
            finally:
                with self._lock:
                    host.lru.unpin(below)
        entry = self.disk.read(key) if self.disk is not None else None
        return None if entry is None else self._raise(entry, "disk")

    def _raise(self, entry: Entry, found_in: Tier) -> Lease | None:
        """Bring an entry to the device; where its tier has no room, the request gets a copy of its own.

        None where the device has no memory for that copy either.
        """
        device, host = self._memories
        slot = self._settle(device, entry, pin=True)
        if slot is not None:
            return Lease(slot.value, found_in, self, slot)
        if found_in == "disk":
            self._settle(host, entry)
        copied = self._placed(device, entry)
        return None if copied is None else Lease(copied, found_in, self, None)

    def _settle(self, memory: MemoryTier, entry: Entry, *, pin: bool = False) -> Slot[Entry] | None:
        """A slot for a copy of the entry in this memory; None where it does not fit."""
        with self._lock:
            slot = memory.lru.get(entry.key, pin=pin)
        if slot is not None:
            return slot
        if entry.nbytes > memory.lru.limit or not self._make_room(memory, entry.nbytes):
            return None
        placed = self._placed(memory, entry)
        if placed is None:
            return None
        with self._lock:
            return memory.lru.insert(entry.key, placed, placed.nbytes, pin=pin)

    def _placed(self, memory: MemoryTier, entry: Entry) -> Entry | None:
        """A copy of the entry in this memory, None where the allocator has no room."""
        try:
            return entry.placed(memory.place)
        except torch.OutOfMemoryError as error:
            self._counters.add("out_of_memory")
            logger.warning("the background cache found no memory for %d bytes: %s", entry.nbytes, error)
            return None

    def _make_room(self, memory: MemoryTier, nbytes: int) -> bool:
        """Evict until `nbytes` fit. What leaves is copied down first, so memory never holds more than its limit."""
        copied: set[str] = set()
        while True:
            with self._lock:
                victims = memory.lru.victims(nbytes)
                if victims is None:
                    return False
                waiting = [slot for slot in victims if slot.key not in copied]
                if not waiting:
                    for slot in victims:
                        memory.lru.discard(slot.key)
                    self._counters.add("evictions", memory.name, by=len(victims))
                    return True
            for slot in waiting:  # outside the lock: readers may pin a victim meanwhile, then others are chosen
                self._lower(memory, slot.value)
                copied.add(slot.key)

    def _lower(self, memory: MemoryTier, entry: Entry) -> None:
        """Copy an entry to the next tier that can hold it; where none can, it is gone."""
        if entry.was_written:
            return
        host = self._memories[1]
        if memory is not host and self._settle(host, entry) is not None:
            return
        if self.disk is not None and entry.key not in self.disk:
            self.disk.write(entry)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device or (device.type == "cpu" and tensor.device.type == "cpu"):
        return private(tensor)
    with torch.inference_mode(False):
        return tensor.detach().to(device, copy=True).contiguous()


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in main memory, page-locked where CUDA exists, because only such memory is copied at full speed."""
    with torch.inference_mode(False):
        copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
        return copied.copy_(tensor.detach())
