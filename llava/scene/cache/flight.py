"""Simultaneous requests for one value: the first computes it, the others wait."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from llava.scene.cache.entries import BackgroundValue


class Flight:
    """One computation under way.

    Attributes:
        owner: the thread that computes.
        waiters: requests that want the result too.
        value: for the waiters, where no tier could keep it; None after a failure, or where the cache has it.
    """

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.waiters = 0
        self.value: BackgroundValue | None = None
        self._ended = threading.Event()

    def wait(self, timeout_s: float | int | None) -> bool:
        """True when the computation has ended, however it did."""
        return self._ended.wait(timeout_s)

    def end(self) -> None:
        self._ended.set()


class SingleFlight:
    """Who computes what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def claim(self, keys: Iterable[str]) -> tuple[dict[str, Flight], list[Flight]]:
        """(flights by key that the caller has to compute and `land`, one flight to wait for per other key).

        In one step for all keys, and a caller lands its own flights before it waits: two batches that share keys in
        different order do not wait for each other for ever. A key that comes twice is computed once and waited for.
        """
        mine: dict[str, Flight] = {}
        awaited: list[Flight] = []
        with self._lock:
            for key in keys:
                if key not in self._flights:
                    mine[key] = self._flights[key] = Flight()
                    continue
                flight = self._flights[key]
                if key not in mine and flight.owner == threading.get_ident():
                    for claimed in mine:
                        del self._flights[claimed]
                    raise RuntimeError(_waits_for_itself(key))
                flight.waiters += 1
                awaited.append(flight)
        return mine, awaited

    def close(self, key: str, flight: Flight) -> int:
        """No further request may join; returns the number that did."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
            return flight.waiters

    def land(self, flights: dict[str, Flight]) -> None:
        """End the caller's computations; whoever waits goes on."""
        for key, flight in flights.items():
            self.close(key, flight)
            flight.end()


def _waits_for_itself(key: str) -> str:
    return (
        f"the computation of background {key[:12]} asks the cache for that very background and would wait for itself; "
        "compute it without the cache there"
    )
