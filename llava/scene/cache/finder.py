"""The way of a request through the cache: exact by its own cells, exact by known cells, similar, and why not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int32
from numpy import ndarray

from llava.scene.cache.answer import Answer
from llava.scene.cache.config import CacheConfig
from llava.scene.cache.cost import worth_looking, worth_serving
from llava.scene.cache.entries import Entry, Origin, same_array
from llava.scene.cache.keys import Kind
from llava.scene.cache.known import MAX_SCOPES, CallerHints, KnownSets, RecentlyUsed
from llava.scene.cache.request import BackgroundRequest, ScopeDigests
from llava.scene.cache.similarity import Match, SimilaritySearch
from llava.scene.cache.tiers import Lease, TieredStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Query:
    """A request at one state of model and cache."""

    request: BackgroundRequest
    digests: ScopeDigests
    generation: int

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """In order of worth. KV depends on what stands before it: behind a guarded answer none is served."""
        return ("kv", "tokens") if self.request.want_kv and self.request.scope.exact else ("tokens",)

    @property
    def has_ids(self) -> bool:
        """The background is given, not a function that finds it."""
        return self.request.background is not None and not callable(self.request.background)

    def answer(self, provenance: str, **fields: Any) -> Answer:
        return Answer(
            request=self.request,
            digests=self.digests,
            generation=self.generation,
            provenance=provenance,
            **fields,
        )


class Finder:
    """Finds, computes nothing.

    Args:
        store: the tiers.
        clock: for the age of similar backgrounds.
    """

    def __init__(self, config: CacheConfig, store: TieredStore, clock: Callable[[], float]) -> None:
        self._config, self._store = config, store
        self._lock = threading.Lock()
        self._known = KnownSets(config.max_patch_sets)
        self._callers = CallerHints()
        self._undetected: RecentlyUsed[bytes, int] = RecentlyUsed(MAX_SCOPES)
        self._similar = SimilaritySearch(config.similarity, clock) if config.similarity else None
        self._forget_gone_at = 128

    def learn(self, origin: Origin) -> None:
        """An entry exists now."""
        with self._lock:
            self._known.add(origin.scope, origin.grid, origin.ids)
            if self._similar is not None:
                self._similar.add(origin)
                if len(self._similar) >= self._forget_gone_at:  # evicted ones, found out about now and then
                    self._similar.forget(lambda known: known.key not in self._store)
                    self._forget_gone_at = max(128, 2 * len(self._similar))

    def forget(self, is_gone: Callable[[Origin], bool]) -> None:
        with self._lock:
            if self._similar is not None:
                self._similar.forget(is_gone)

    def note(self, answer: Answer, key: str) -> None:
        """The entry that answered a caller, or was stored for it, is the first to be tried for it next time."""
        with self._lock:
            self._callers.add(answer.digests.salt, answer.request.caller_id, key)

    def find(self, query: Query) -> Answer:
        """The best that the cache has. A detector, where the request brings one, runs only if nothing else matched."""
        if query.has_ids:
            early = self._bypassed(query)
            if early is not None:
                return early
        elif callable(query.request.background) and self._is_time_to_detect(query.digests.tokens):
            return self._after_detector(query, query.answer("miss"))
        ids = query.request.asked_ids if query.has_ids else None
        first = self.exact(query, ids) if query.has_ids else self._by_known_sets(query)
        if first.is_served:
            return first
        first = self._or_similar(query, first, ids)
        if first.is_served or not callable(query.request.background):
            return first
        return self._after_detector(query, first)

    def exact(self, query: Query, ids: Int32[ndarray, "n"] | None, kinds: Iterable[Kind] | None = None) -> Answer:
        """The value under the picture's own key, checked against fingerprints."""
        if ids is None or not len(ids):
            return query.answer("miss" if ids is None else "bypass:no_background", ids=ids)
        provenance = "miss"
        for kind in kinds or query.kinds:
            key = query.request.key(kind, query.digests, ids)
            if self._is_slow(kind, key, len(ids)):
                provenance = "bypass:slow_tier"
                continue
            lease = self._store.get(key)
            if lease is None:
                continue
            if self._is_same(lease.entry, query, ids):
                return _served(query, lease, f"exact_{kind}", ids)
            lease.release()
            self._store.drop(key)
            provenance = "rejected:fingerprint"
            logger.error("entry %s is not the background that its key names; it is dropped", key[:12])
        return query.answer(provenance, ids=ids)

    def _bypassed(self, query: Query) -> Answer | None:
        ids = query.request.asked_ids
        assert ids is not None, "asked for only where ids are given"
        if not len(ids):
            return query.answer("bypass:no_background", ids=ids)
        costs = self._config.costs
        if costs is not None and not worth_looking(costs, query.kinds[0], len(ids)):
            return query.answer("bypass:cost", ids=ids)
        return None

    def _by_known_sets(self, query: Query) -> Answer:
        """Cells of which a value exists, and which show in this picture what they showed then."""
        may_detect = callable(query.request.background)
        for kind in query.kinds:
            with self._lock:
                sets = self._known.of(query.digests.of(kind), query.request.grid_bytes)
            for ids in sets:
                answer = self.exact(query, ids, (kind,))
                if not answer.is_served:
                    continue
                if not may_detect or self._tells_enough(query.request, ids):
                    return answer
                answer.release()
        return query.answer("miss")

    def _is_time_to_detect(self, scope: bytes) -> bool:
        """Once in a while: a background that was known while something stood before it has grown meanwhile."""
        every = self._config.detect_every
        with self._lock:
            count = (self._undetected.get(scope) or 0) + 1
            self._undetected.set(scope, count % every if every else 0)
        return bool(every) and count == every

    def _tells_enough(self, request: BackgroundRequest, ids: Int32[ndarray, "n"]) -> bool:
        """The cells are more than the padding that this picture shares with others, or a corner of it."""
        shown = ~request.is_blank
        return bool(shown[ids].sum() >= self._config.min_match_share * shown.sum())

    def _after_detector(self, query: Query, before: Answer) -> Answer:
        """The answer for the cells that the request's detector finds; the reason from before it if there is no other.

        Similarity is tried again: now a large object no longer hides what is behind it, nor passes for a camera that
        moved.
        """
        early = self._bypassed(query)
        if early is not None:
            return early
        ids = query.request.asked_ids
        found = self.exact(query, ids)
        if found.is_served:
            return found
        found = self._or_similar(query, found, ids)
        if found.provenance == "miss":
            found.provenance = before.provenance
        return found

    def _or_similar(self, query: Query, answer: Answer, ids: Int32[ndarray, "n"] | None) -> Answer:
        """A similar background where there is one, else the answer, which takes over the reason why there is none.

        Args:
            ids: the picture's background as far as it is known.
        """
        if self._similar is None or not query.request.allow_guarded:
            return answer
        similar = self._guarded(query, self._similar, ids)
        if similar.is_served:
            return similar
        if answer.provenance == "miss":
            answer.provenance = similar.provenance
        return answer

    def _guarded(self, query: Query, similar: SimilaritySearch, ids: Int32[ndarray, "n"] | None) -> Answer:
        """A background that differs by no more than noise; the reason of the nearest candidate if there is none."""
        reasons: list[str] = []
        for kind in query.kinds:
            for origin in self._candidates(query, similar, kind, ids):
                verdict = self._judged(query, similar, origin, ids)
                if isinstance(verdict, Answer):
                    return verdict
                reasons.append(verdict)
        reasons = [reason for reason in reasons if reason != "miss"]
        return query.answer(reasons[0] if reasons else "miss", ids=ids)

    def _candidates(
        self, query: Query, similar: SimilaritySearch, kind: Kind, ids: Int32[ndarray, "n"] | None
    ) -> list[Origin]:
        with self._lock:
            hinted = self._callers.of(query.digests.salt, query.request.caller_id)
            return similar.candidates(query.digests.of(kind), query.request, ids, hinted)

    def _judged(
        self, query: Query, similar: SimilaritySearch, origin: Origin, ids: Int32[ndarray, "n"] | None
    ) -> Answer | str:
        with self._lock:
            overdue = similar.why_not_fresh(origin)
        if overdue is not None or self._is_slow(origin.kind, origin.key, len(origin.ids)):
            if overdue is not None:
                with self._lock:
                    similar.discard(origin.key)  # still served where it is exactly the same
            return f"rejected:{overdue}" if overdue else "bypass:slow_tier"
        lease = self._store.get(origin.key)
        if lease is None:
            with self._lock:
                similar.discard(origin.key)
            return "miss"
        match = similar.judge(query.request, lease.entry, ids)
        if isinstance(match, str):
            lease.release()
            return match
        with self._lock:
            similar.note_use(origin.key)
        return _served(query, lease, "guarded", origin.ids, match)

    def _is_same(self, entry: Entry, query: Query, ids: Int32[ndarray, "n"]) -> bool:
        """Whatever key led here: the same cells of the same grid with the same fingerprints, or the same pixels."""
        request, origin = query.request, entry.origin
        if origin.grid != request.grid_bytes or not same_array(origin.ids, ids):
            return False
        if not same_array(entry.leaves, request.leaves[ids]):
            return False
        if self._config.verify == "fingerprints":
            return True
        if entry.pixels is None:  # written to disk by a cache that checks fingerprints
            return False
        rows = torch.from_numpy(ids).long()
        stored = request.grid.cells(entry.pixels)
        return torch.equal(
            stored[rows.to(stored.device)], request.cells[rows.to(request.cells.device)].to(stored.device)
        )

    def _is_slow(self, kind: Kind, key: str, num_tokens: int) -> bool:
        """Fetching the value from where it lies would take longer than computing it."""
        costs = self._config.costs
        place = None if costs is None else self._store.find(key)
        if costs is None or place is None:
            return False
        tier, num_bytes = place
        return not worth_serving(costs, kind=kind, num_tokens=num_tokens, num_bytes=num_bytes, tier=tier)


def _served(
    query: Query, lease: Lease, provenance: str, ids: Int32[ndarray, "n"], match: Match | None = None
) -> Answer:
    origin = lease.entry.origin
    stale = 0 if match is None else len(match.stale_ids)
    saved = origin.num_tokens * (len(ids) - stale) // max(1, len(ids))
    return query.answer(provenance, ids=ids, match=match, tier=lease.tier, saved_tokens=saved, lease=lease)
