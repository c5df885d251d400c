"""`BackgroundTokenCache`: the tokens and KV of backgrounds that were seen before. It knows no models.

    cache = BackgroundTokenCache(CacheConfig(device_bytes=2**30))
    with cache.get_or_compute(request, encode) as answer:
        answer.provenance         # exact_kv, exact_tokens, guarded, miss, rejected:<why>, bypass:<why>
        answer.shared().tokens    # [n, d] of the background, 0 bytes copied
        answer.object_ids         # cells that are still to be computed

The parts lie in `llava.scene.cache`; the README there tells how they work together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

import torch

from llava.scene.cache.answer import Answer
from llava.scene.cache.config import CacheConfig, SimilarityConfig
from llava.scene.cache.cost import MeasuredCosts
from llava.scene.cache.entries import BackgroundValue, Entry, Origin
from llava.scene.cache.finder import Finder, Query
from llava.scene.cache.flight import Flight, SingleFlight
from llava.scene.cache.guard import estimate_noise
from llava.scene.cache.keys import Kind
from llava.scene.cache.request import BackgroundRequest, CacheScope
from llava.scene.cache.signature import signature
from llava.scene.cache.stats import CacheStats, Counters
from llava.scene.cache.tiers import TieredStore

__all__ = [
    "Answer",
    "BackgroundRequest",
    "BackgroundTokenCache",
    "BackgroundValue",
    "CacheConfig",
    "CacheScope",
    "CacheStats",
    "MeasuredCosts",
    "SimilarityConfig",
    "estimate_noise",
]

Compute = Callable[[Answer], BackgroundValue]
ComputeMany = Callable[[list[Answer]], list[BackgroundValue]]
"""Gets answers without a value (`background_ids` and `request` tell what to encode); returns their values in order."""
Kept = Literal["kept", "no_room", "outdated", "bypassed"]


class BackgroundTokenCache:
    """Serves a background that was computed before, if it is provably the same one.

    May be shared by threads. Exact unless `config.similarity` is given.

    Args:
        config: sizes of the tiers, and what may be served.
        clock: seconds since 1970, by which entries age.
    """

    def __init__(self, config: CacheConfig, *, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self._clock = clock
        self._counters = Counters()
        self._lock = threading.Lock()
        self._generation = 0
        self._store = TieredStore(config, self._counters)
        self._finder = Finder(config, self._store, clock)
        self._flights = SingleFlight()
        self.scan_disk()

    def lookup(self, request: BackgroundRequest) -> Answer:
        """What the cache has for a request; computes nothing. Hand a value that is computed then to `put`."""
        return self._finished(self._finder.find(self._query(request)))

    def get_or_compute(self, request: BackgroundRequest, compute: Compute) -> Answer:
        """The cached value, or the one that `compute` returns, which is then kept.

        `exact_tokens` may come although KV was asked for: take it along when the prompt is computed, and `put` it.
        Simultaneous requests for one value compute it once. If the one that computes fails, its error is raised there
        and the next one computes.
        """
        return self.get_or_compute_many([request], lambda opened: [compute(opened[0])])[0]

    def get_or_compute_many(self, requests: Sequence[BackgroundRequest], compute: ComputeMany) -> list[Answer]:
        """The same for a batch: one call of `compute` for all that is missing."""
        answers: dict[int, Answer] = {}
        with ExitStack() as on_failure:
            while len(answers) < len(requests):
                missing: dict[int, Answer] = {}
                for index in (index for index in range(len(requests)) if index not in answers):
                    found = self._finder.find(self._query(requests[index]))
                    on_failure.callback(found.release)
                    (answers if found.is_served else missing)[index] = found
                for index, answer in self._compute(missing, compute).items():
                    on_failure.callback(answer.release)
                    answers[index] = answer
            on_failure.pop_all()
        return [self._finished(answers[index]) for index in range(len(requests))]

    def put(self, answer: Answer, value: BackgroundValue) -> bool:
        """Keep the value that belongs to an answer of `lookup`; its tensors are copied.

        Also for KV that came to be while the prompt was computed: `put(answer, BackgroundValue(kv=...))`, even after
        `exact_tokens`.

        Returns:
            False where it was not kept: no tier has room, the request was bypassed, or the model changed meanwhile.
        """
        if answer.is_guarded:
            raise ValueError(
                "this answer is guarded: what is computed from it is not exact and never enters the cache; ask again "
                "with allow_guarded=False to store an exact value"
            )
        return self._keep(answer, value) == "kept"

    @property
    def stats(self) -> CacheStats:
        """A snapshot; `print(cache.stats)` shows a table."""
        snapshot = self._counters.snapshot()
        self._store.describe(snapshot)
        return snapshot

    def invalidate(
        self, *, model_state: str | bytes | None = None, cache_salt: str | None = None, disk: bool = True
    ) -> int:
        """Forget the entries of a model state, of a tenant, of both together, or all; returns the number of copies.

        Keys hold the model state, so a changed model hits nothing in any case: this frees the room. Values that are
        being computed now are not stored. `disk` deletes matching files too, also those that other processes wrote.
        """
        wanted = CacheScope(
            model_state="any" if model_state is None else model_state,
            preprocessing="",
            dtype=torch.float32,
            cache_salt=cache_salt or "",
        ).resolve()

        def matches(origin: Origin) -> bool:
            same_model = model_state is None or origin.model == wanted.model
            return same_model and (cache_salt is None or origin.salt == wanted.salt)

        with self._lock:
            self._generation += 1
        self._finder.forget(matches)
        return self._store.remove(matches, disk=disk)

    def scan_disk(self) -> int:
        """Learn what the disk folder holds, so that backgrounds of other runs are matched too; returns how many."""
        origins = [] if self._store.disk is None else list(self._store.disk.origins())
        for origin in origins:
            self._finder.learn(origin)
        return len(origins)

    def flush(self) -> int:
        """Write to disk what lies only in memory; returns the number of files."""
        return self._store.flush()

    def close(self) -> None:
        """Flush, then forget everything in memory."""
        self.flush()
        self.invalidate(disk=False)

    def _query(self, request: BackgroundRequest) -> Query:
        return Query(request, request.scope.resolve(), self._generation)

    def _finished(self, answer: Answer) -> Answer:
        if answer.lease is not None:
            self._finder.note(answer, answer.lease.entry.key)
        self._counters.add("answers", answer.provenance)
        if answer.saved_tokens:
            self._counters.add("saved_tokens", answer.provenance, by=answer.saved_tokens)
        return answer

    def _compute(self, missing: dict[int, Answer], compute: ComputeMany) -> dict[int, Answer]:
        """Answers of this round; what is not among them has to be looked up again."""
        names = {index: _flight_key(answer) for index, answer in missing.items()}
        mine, awaited = self._flights.claim([name for name in names.values() if name is not None])
        waiting = iter(awaited)
        first_with: dict[str, int] = {}
        computing: dict[int, Answer] = {}
        waits: dict[int, Flight] = {}
        for index, name in names.items():
            if name is None or (name in mine and first_with.setdefault(name, index) == index):
                computing[index] = missing[index]
            else:
                waits[index] = next(waiting)
        try:
            done = self._computed(computing, mine, names, compute)
        finally:
            self._flights.land(mine)
        return done | self._awaited(waits, missing, names)

    def _computed(
        self,
        computing: dict[int, Answer],
        flights: dict[str, Flight],
        names: dict[int, str | None],
        compute: ComputeMany,
    ) -> dict[int, Answer]:
        done: dict[int, Answer] = {}
        for index, opened in computing.items():  # another request may have finished between the lookup and the claim
            again = self._finder.exact(Query(opened.request, opened.digests, opened.generation), opened.ids)
            if again.is_served and names[index] is not None:
                done[index] = again
        to_compute = {index: opened for index, opened in computing.items() if index not in done}
        values = compute(list(to_compute.values())) if to_compute else []
        if len(values) != len(to_compute):
            raise ValueError(
                f"compute returned {len(values)} values for {len(to_compute)} requests; one each, in order"
            )
        for (index, opened), value in zip(to_compute.items(), values, strict=True):
            name = names[index]
            if self._keep(opened, value) == "no_room" and name is not None and self._flights.close(name, flights[name]):
                flights[name].value = value.copy()  # nothing holds it for those that wait
            opened.computed = value
            done[index] = opened
        return done

    def _awaited(
        self, waits: dict[int, Flight], missing: dict[int, Answer], names: dict[int, str | None]
    ) -> dict[int, Answer]:
        done: dict[int, Answer] = {}
        for index, flight in waits.items():
            name, answer = names[index], missing[index]
            assert name is not None, "only named computations are waited for"
            if not flight.wait(self.config.flight_timeout_s):
                self._flights.close(name, flight)  # overdue: the next lookup that misses computes
                continue
            self._counters.add("waited")
            if flight.value is not None:
                kind: Kind = "kv" if flight.value.has("kv") and answer.request.want_kv else "tokens"
                answer.provenance, answer.computed = f"exact_{kind}", flight.value.copy()
                answer.saved_tokens = flight.value.num_tokens(kind)
                done[index] = answer
        return done

    def _keep(self, answer: Answer, value: BackgroundValue) -> Kept:
        request = answer.request
        if value.tokens is not None and value.tokens.dtype != request.scope.dtype:
            raise ValueError(
                f"tokens are {value.tokens.dtype}, the request's scope says {request.scope.dtype}; they have to agree, "
                "because the dtype is part of the key"
            )
        if answer.ids is None or not len(answer.ids) or answer.provenance == "bypass:cost":
            return "bypassed"
        if answer.generation != self._generation or request.scope.resolve() != answer.digests:
            self._counters.add("discarded")
            return "outdated"
        kinds: list[Kind] = [kind for kind in _storable(request) if value.has(kind)]
        kept = [self._keep_kind(answer, value, kind) for kind in kinds]
        return "kept" if kept and all(kept) else "no_room"

    def _keep_kind(self, answer: Answer, value: BackgroundValue, kind: Kind) -> bool:
        request, similarity = answer.request, self.config.similarity
        assert answer.ids is not None, "checked by the caller"
        grid = request.grid
        origin = Origin(
            key=request.key(kind, answer.digests, answer.ids),
            kind=kind,
            scope=answer.digests.of(kind),
            model=answer.digests.model,
            salt=answer.digests.salt,
            grid=request.grid_bytes,
            shape=(grid.frames, grid.rows, grid.cols),
            ids=answer.ids,
            signature=signature(request, answer.ids, similarity.signature_cells) if similarity else None,
            created=self._clock(),
            num_tokens=value.num_tokens(kind),
        )
        pixels = request.frames if self.config.keeps_pixels else None
        entry = Entry(origin=origin, value=value.only(kind), leaves=request.leaves[answer.ids], pixels=pixels)
        if not self._store.put(entry):
            return False
        self._finder.learn(origin)
        self._finder.note(answer, origin.key)
        return True


def _storable(request: BackgroundRequest) -> tuple[Kind, ...]:
    """KV behind a guarded answer is not exact."""
    return ("kv", "tokens") if request.scope.exact else ("tokens",)


def _flight_key(answer: Answer) -> str | None:
    """By what simultaneous requests for one value know each other; None for those that share nothing."""
    if answer.ids is None:
        raise ValueError(
            "no known background matches and the request names none; give `background`: ids, a mask, or a function "
            "that finds them"
        )
    if not len(answer.ids) or answer.provenance == "bypass:cost":  # not even a hit would pay
        return None
    return answer.request.key("kv" if answer.request.want_kv else "tokens", answer.digests, answer.ids)
