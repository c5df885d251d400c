"""Bytes are bounded, the least recently used leaves first, what is in use stays, and what leaves goes down a tier."""

from __future__ import annotations

import gc
import logging

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llava.scene.cache.entries import BackgroundValue
from llava.scene.cache.lru import ByteLRU, Slot
from tests.unit.scene.token_cache_toy import cache, encode, fill, picture, provenance, request, value_bytes

NAMES = st.sampled_from("abcdefgh")
ONE = value_bytes()


class LruMachine(RuleBasedStateMachine):
    """ByteLRU against a list in the order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.lru: ByteLRU[str] = ByteLRU(100)
        self.order: list[Slot[str]] = []
        self.pinned: list[Slot[str]] = []

    @rule(name=NAMES, nbytes=st.integers(1, 120), pin=st.booleans())
    def insert(self, name: str, nbytes: int, pin: bool) -> None:
        if name in self.lru:
            return
        victims = self.lru.victims(nbytes)
        unpinned = [slot for slot in self.order if slot not in self.pinned]
        assert (victims is None) == (self.lru.used - sum(slot.nbytes for slot in unpinned) + nbytes > 100)
        if victims is None:
            return
        assert victims == unpinned[: len(victims)]
        assert not victims or self.lru.used - sum(slot.nbytes for slot in victims[:-1]) + nbytes > 100
        for slot in victims:
            self.lru.discard(slot.key)
            self.order.remove(slot)
        slot = self.lru.insert(name, name.upper(), nbytes, pin=pin)
        self.order.append(slot)
        self.pinned += [slot] * pin

    @rule(name=NAMES, pin=st.booleans())
    def get(self, name: str, pin: bool) -> None:
        slot = self.lru.get(name, pin=pin)
        assert (slot is not None) == any(known.key == name for known in self.order)
        if slot is not None:
            assert slot.value == name.upper()
            self.order.remove(slot)
            self.order.append(slot)
            self.pinned += [slot] * pin

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.pinned))
        self.pinned.remove(slot)
        self.lru.unpin(slot)

    @rule(name=NAMES)
    def discard(self, name: str) -> None:
        assert self.lru.discard(name) == any(slot.key == name for slot in self.order)
        self.order = [slot for slot in self.order if slot.key != name]

    @invariant()
    def bytes_are_those_of_all_values_present_or_in_use(self) -> None:
        alive = {id(slot): slot.nbytes for slot in [*self.order, *self.pinned]}
        assert self.lru.used == sum(alive.values()) <= 100
        assert [slot.key for slot in self.lru] == [slot.key for slot in self.order]


class CacheMachine(RuleBasedStateMachine):
    """A cache with room for three entries on the device and two below: whatever happens, values are right."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache(device_bytes=3 * ONE, host_bytes=2 * ONE)
        self.held: list = []

    @rule(seed=st.integers(0, 7), hold=st.booleans())
    def ask(self, seed: int, hold: bool) -> None:
        answer = self.cache.get_or_compute(request(picture(seed)), encode)
        assert torch.equal(answer.shared().tokens, encode(answer).tokens)
        if hold:
            self.held.append(answer)
        else:
            answer.release()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        answer = data.draw(st.sampled_from(self.held))
        self.held.remove(answer)
        assert torch.equal(answer.shared().tokens, encode(answer).tokens)
        answer.release()

    @rule()
    def invalidate(self) -> None:
        self.cache.invalidate()

    @invariant()
    def tiers_are_within_their_bytes(self) -> None:
        stats = self.cache.stats
        assert stats.bytes_by_tier["device"] <= 3 * ONE
        assert stats.bytes_by_tier["host"] <= 2 * ONE
        in_use = {id(answer.lease.slot) for answer in self.held if answer.is_served and answer.lease.slot}
        assert stats.bytes_by_tier["device"] >= len(in_use) * ONE


TestLru = LruMachine.TestCase
TestLru.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_the_least_recently_used_entry_leaves_and_is_counted():
    store = cache(device_bytes=2 * ONE)
    fill(store, request(picture(1)), request(picture(2)), request(picture(1)), request(picture(3)))
    assert [provenance(store, request(picture(seed))) for seed in (1, 2, 3)] == ["exact_tokens", "miss", "exact_tokens"]
    assert store.stats.evictions["device"] == 1
    assert store.stats.bytes_by_tier == {"device": 2 * ONE}


def test_entries_in_use_stay_and_what_finds_no_room_is_not_kept():
    store = cache(device_bytes=2 * ONE)
    fill(store, request(picture(1)), request(picture(2)))
    with store.lookup(request(picture(1))), store.lookup(request(picture(2))):
        fill(store, request(picture(3)))
        assert provenance(store, request(picture(3))) == "miss"
        assert store.stats.too_large == 1
    fill(store, request(picture(3)))
    assert provenance(store, request(picture(3))) == "exact_tokens"


def test_an_answer_that_is_forgotten_does_not_pin_for_ever():
    store = cache(device_bytes=ONE)
    fill(store, request(picture(1)))
    store.lookup(request(picture(1)))
    gc.collect()
    fill(store, request(picture(2)))
    assert provenance(store, request(picture(2))) == "exact_tokens"


def test_a_value_larger_than_every_tier_is_computed_each_time_and_reported():
    store = cache(device_bytes=ONE - 1, host_bytes=ONE - 1)
    fill(store, request(), request())
    assert store.stats.answers == {"miss": 2}
    assert store.stats.too_large == 2
    assert "too large for every tier: 2" in str(store.stats)


def test_what_leaves_the_device_is_found_below_and_comes_back_up():
    store = cache(device_bytes=ONE, host_bytes=2 * ONE)
    fill(store, request(picture(1)), request(picture(2)))
    assert store.stats.entries_by_tier == {"device": 1, "host": 1}
    for seed, tier in ((1, "host"), (1, "device"), (2, "host"), (2, "device")):
        with store.lookup(request(picture(seed))) as answer:
            assert answer.tier == tier
            assert torch.equal(answer.shared().tokens, encode(answer).tokens)


def test_three_tiers_hold_what_one_cannot(tmp_path):
    store = cache(device_bytes=ONE, host_bytes=ONE, disk_folder=tmp_path, disk_bytes=2**20)
    fill(store, *(request(picture(seed)) for seed in range(4)))
    stats = store.stats
    assert stats.entries_by_tier == {"device": 1, "host": 1, "disk": 2}
    for seed in (0, 1, 2, 3):
        with store.lookup(request(picture(seed))) as answer:
            assert answer.provenance == "exact_tokens"
            assert torch.equal(answer.shared().tokens, encode(answer).tokens)
    assert store.stats.bytes_by_tier["device"] <= ONE


def test_where_the_device_is_full_of_pinned_entries_a_request_gets_a_copy_of_its_own():
    store = cache(device_bytes=ONE, host_bytes=2 * ONE)
    fill(store, request(picture(1)), request(picture(2)))
    with store.lookup(request(picture(2))) as pinned, store.lookup(request(picture(1))) as private:
        assert (pinned.tier, private.tier) == ("device", "host")
        assert torch.equal(private.shared().tokens, encode(private).tokens)
        private.shared().tokens.zero_()
    with store.lookup(request(picture(1))) as again:
        assert torch.equal(again.shared().tokens, encode(again).tokens)


def test_a_device_without_memory_sends_entries_below_and_says_so(monkeypatch, caplog):
    store = cache(device_bytes=2**20, host_bytes=2**20)

    def full(_):
        raise torch.OutOfMemoryError("nothing left")

    monkeypatch.setattr(store._store._memories[0], "place", full)
    with caplog.at_level(logging.WARNING):
        fill(store, request())
        assert provenance(store, request()) == "miss"  # no memory for a copy that the request could read either
    monkeypatch.undo()
    assert store.stats.out_of_memory == 3
    assert store.stats.entries_by_tier == {"device": 0, "host": 1}
    assert "found no memory" in caplog.text
    assert provenance(store, request()) == "exact_tokens"


def test_kv_and_tokens_leave_apart_from_each_other():
    """KV of one picture is larger than tokens of another: the tokens need not leave with it."""
    store = cache(device_bytes=4 * ONE)
    fill(store, request(picture(1), want_kv=True))
    stats = store.stats
    assert stats.entries_by_tier["device"] == 2
    tokens, kv = 12 * 3 * 4, 4 * 13 * 3 * 4
    assert stats.bytes_by_tier["device"] == tokens + kv + 2 * 12 * (32 + 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_entries_go_down_to_pinned_memory_and_come_back_bit_equal():
    store = cache(device="cuda", device_bytes=ONE, host_bytes=2 * ONE)
    expected = {}
    for seed in (1, 2):
        answer = store.get_or_compute(
            request(picture(seed)), lambda opened: BackgroundValue(tokens=encode(opened).tokens.cuda())
        )
        expected[seed] = answer.shared().tokens
    (below,) = list(store._store._memories[1].lru)
    assert below.value.value.tokens.is_pinned()
    for seed in (1, 2):
        with store.lookup(request(picture(seed))) as answer:
            assert answer.shared().tokens.is_cuda
            assert torch.equal(answer.shared().tokens, expected[seed])
