"""The cost model bypasses where the cache loses, and the statistics add up."""

from __future__ import annotations

import json

import pytest

from llava.scene.cache.cost import (
    MeasuredCosts,
    break_even_hit_rate,
    saved_seconds,
    worth_looking,
    worth_serving,
)
from tests.unit.scene.token_cache_toy import cache, change, encode, fill, picture, provenance, request, value_bytes

COSTS = MeasuredCosts(
    encode_s_per_token=1e-5,
    prefill_s_per_token=4e-5,
    lookup_s=1e-3,
    hit_s=5e-4,
    host_s_per_byte=2e-10,
    disk_s_per_byte=3e-9,
)


def test_a_hit_saves_what_it_spares_less_what_it_costs():
    """400 tokens: 20 ms of tower and model; 10 MB from the host 2 ms, from disk 30 ms; 1.5 ms of lookup and launch."""
    hit = {"kind": "kv", "num_tokens": 400, "num_bytes": 10_000_000}
    assert saved_seconds(COSTS, tier="device", **hit) == pytest.approx(0.0185)
    assert saved_seconds(COSTS, tier="host", **hit) == pytest.approx(0.0165)
    assert saved_seconds(COSTS, tier="disk", **hit) == pytest.approx(-0.0115)
    assert saved_seconds(COSTS, tier="device", **(hit | {"kind": "tokens"})) == pytest.approx(0.0025)


def test_few_tokens_are_not_worth_a_lookup():
    """Tokens of 150 cells take 1.5 ms, which is what a lookup and a hit take."""
    assert not worth_looking(COSTS, "tokens", 149)
    assert worth_looking(COSTS, "tokens", 151)
    assert worth_looking(COSTS, "kv", 31)


def test_a_slow_tier_is_not_worth_reading():
    assert worth_serving(COSTS, kind="kv", num_tokens=400, num_bytes=10_000_000, tier="host")
    assert not worth_serving(COSTS, kind="kv", num_tokens=400, num_bytes=10_000_000, tier="disk")


def test_the_break_even_hit_rate_is_the_lookup_over_the_gain():
    """Gain of a hit 20 - 0.5 ms: with 1 ms of lookup for everybody, one hit in 19.5 requests pays."""
    facts = {"kind": "kv", "num_tokens": 400, "num_bytes": 0, "tier": "device"}
    assert break_even_hit_rate(COSTS, **facts) == pytest.approx(1 / 19.5)
    assert break_even_hit_rate(COSTS, **(facts | {"num_tokens": 5})) == float("inf")


def test_requests_that_lose_even_on_a_hit_are_bypassed_and_not_stored():
    store = cache(costs=COSTS)  # 12 tokens spare 0.12 ms
    fill(store, request(), request())
    assert store.stats.answers == {"bypass:cost": 2}
    assert store.stats.entries_by_tier["device"] == 0


def test_what_a_detector_leaves_is_bypassed_too_where_it_is_too_little():
    store, calls = cache(costs=COSTS), []

    def detect() -> list[int]:
        calls.append(1)
        return [0, 1, 2]

    for _ in range(2):
        with store.get_or_compute(request(background=detect), encode) as answer:
            assert answer.provenance == "bypass:cost" and answer.background_ids.tolist() == [0, 1, 2]
    assert store.stats.entries_by_tier["device"] == 0 and len(calls) == 2


def test_an_entry_on_a_slow_disk_is_computed_instead_and_then_lies_on_the_device(tmp_path):
    tier = {"disk_folder": tmp_path, "disk_bytes": 2**20, "write_through": True}
    fill(cache(**tier), request())
    slow = MeasuredCosts(encode_s_per_token=1e-3, prefill_s_per_token=0, lookup_s=0, disk_s_per_byte=1.0)
    store = cache(costs=slow, **tier)
    with store.get_or_compute(request(), encode) as answer:
        assert answer.provenance == "bypass:slow_tier"
    assert provenance(store, request()) == "exact_tokens"


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_costs_that_nobody_measured_are_named(value):
    with pytest.raises(ValueError, match="lookup_s"):
        MeasuredCosts(encode_s_per_token=0, prefill_s_per_token=0, lookup_s=value)


def test_statistics_count_every_request_once_and_print_as_a_table():
    store = cache()
    fill(store, request(), request(), request(change(picture(), 0)), request(want_kv=True), request(background=[]))
    stats = store.stats
    assert stats.answers == {"miss": 2, "exact_tokens": 2, "bypass:no_background": 1}
    assert (stats.queries, stats.hits, stats.hit_rate) == (5, 2, 0.4)
    assert stats.saved_tokens == {"exact_tokens": 24}
    lines = [line.split() for line in str(stats).splitlines()]
    assert ["exact_tokens", "2", "24"] in lines
    assert ["all", "5", "24"] in lines
    assert ["device", "2", f"{2 * value_bytes():,}", "1,048,576", "0"] in lines
    assert ["hit", "rate", "40.0%"] in lines
    assert json.loads(json.dumps(stats.to_dict()))["answers"]["miss"] == 2


def test_a_snapshot_does_not_change_afterwards():
    store = cache()
    before = store.stats
    fill(store, request())
    assert before.queries == 0
    assert store.stats.queries == 1
