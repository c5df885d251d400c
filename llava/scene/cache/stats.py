"""Counters of a cache, and the table that shows them."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SERVED = ("exact_kv", "exact_tokens", "guarded")


@dataclass
class CacheStats:
    """All counts since the cache was made; a snapshot.

    Attributes:
        answers: requests by provenance, reasons included (`miss`, `exact_kv`, `rejected:stale` ...).
        saved_tokens: positions of the language model's input that hits spared, by provenance.
        bytes_by_tier, limits_by_tier, entries_by_tier: what lies where, now.
        evictions: values that left a tier for want of room.
        refused_files: files of the disk tier that were not served, by reason (`corrupt`, `foreign`, `version`).
        disk_errors: failed writes; the first one ends writing.
        disk_writable: False after such a failure.
        too_large: values that no tier could hold.
        out_of_memory: values that the device had no memory for although the tier's limit allowed them.
        discarded: results not stored because the model or the cache changed while they were computed.
        waited: requests that another one's computation served.
        written_by_reader: entries dropped because a reader wrote to shared tensors.
    """

    answers: Counter[str] = field(default_factory=Counter)
    saved_tokens: Counter[str] = field(default_factory=Counter)
    evictions: Counter[str] = field(default_factory=Counter)
    refused_files: Counter[str] = field(default_factory=Counter)
    bytes_by_tier: dict[str, int] = field(default_factory=dict)
    limits_by_tier: dict[str, int] = field(default_factory=dict)
    entries_by_tier: dict[str, int] = field(default_factory=dict)
    disk_errors: int = 0
    disk_writable: bool = True
    too_large: int = 0
    out_of_memory: int = 0
    discarded: int = 0
    waited: int = 0
    written_by_reader: int = 0

    @property
    def queries(self) -> int:
        return sum(self.answers.values())

    @property
    def hits(self) -> int:
        return sum(self.answers[kind] for kind in SERVED)

    @property
    def hit_rate(self) -> float:
        return self.hits / self.queries if self.queries else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for a JSON report or a metrics page."""
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in {**vars(self), "queries": self.queries, "hits": self.hits}.items()
        }

    def __str__(self) -> str:
        rows = [("answer", "requests", "saved tokens")]
        rows += [(kind, f"{count:,}", f"{self.saved_tokens[kind]:,}") for kind, count in sorted(self.answers.items())]
        rows += [("all", f"{self.queries:,}", f"{sum(self.saved_tokens.values()):,}"), ("", "", "")]
        rows += [("tier", "entries", "bytes", "of", "evictions")]
        rows += [
            (tier, f"{self.entries_by_tier[tier]:,}", f"{used:,}", f"{limit:,}", f"{self.evictions[tier]:,}")
            for tier, limit in self.limits_by_tier.items()
            for used in (self.bytes_by_tier[tier],)
        ]
        return "\n".join([_columns(rows), f"hit rate {self.hit_rate:.1%}", *self._troubles()])

    def _troubles(self) -> list[str]:
        lines = [f"refused file, {reason}: {count:,}" for reason, count in sorted(self.refused_files.items())]
        if not self.disk_writable:
            lines.append(f"the disk tier takes no more writes after {self.disk_errors} failed")
        counted = {
            "values too large for every tier": self.too_large,
            "values that the device had no memory for": self.out_of_memory,
            "results discarded, model or cache changed": self.discarded,
            "entries dropped, a reader wrote to them": self.written_by_reader,
            "requests served by another one's computation": self.waited,
        }
        return lines + [f"{what}: {count:,}" for what, count in counted.items() if count]


class Counters:
    """The counts of a living cache; a lock of their own, because several others guard what is counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = CacheStats()

    def add(self, name: str, key: str | None = None, by: int = 1) -> None:
        """Count in the attribute of that name, under `key` where it is a table."""
        with self._lock:
            if key is None:
                setattr(self._stats, name, getattr(self._stats, name) + by)
            else:
                getattr(self._stats, name)[key] += by

    def snapshot(self) -> CacheStats:
        with self._lock:
            return copy.deepcopy(self._stats)


def _columns(rows: list[tuple[str, ...]]) -> str:
    """First column to the left, numbers to the right."""
    width = max(len(row) for row in rows)
    padded = [row + ("",) * (width - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in padded) for column in range(width)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])] + [cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True)]
        )
        for row in padded
    ]
    return "\n".join(line.rstrip() for line in lines)
