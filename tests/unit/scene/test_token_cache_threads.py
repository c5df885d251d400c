"""Requests at the same time: one computation, no request waits for ever, answers as if they had come one by one."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llava.scene.token_cache import Answer, BackgroundValue
from tests.unit.scene.token_cache_toy import (
    cache,
    encode,
    encode_with_kv,
    fill,
    picture,
    provenance,
    request,
    value_bytes,
)

THREADS = 8


class SlowEncoder:
    """Computes when told to, and counts."""

    def __init__(self, failures: int = 0) -> None:
        self.started, self.may_end = threading.Event(), threading.Event()
        self.calls, self.failures, self._lock = 0, failures, threading.Lock()

    def __call__(self, answer: Answer) -> BackgroundValue:
        with self._lock:
            self.calls += 1
            number = self.calls
        self.started.set()
        assert self.may_end.wait(60)
        if number <= self.failures:
            raise ArithmeticError(f"failure {number}")
        return encode(answer)


def ask_together(store, encoder: SlowEncoder, count: int = THREADS) -> list:
    """Results or errors of requests that all arrive while the first one computes."""

    def ask(_):
        try:
            with store.get_or_compute(request(), encoder) as answer:
                return answer.provenance, answer.shared().tokens.clone()
        except ArithmeticError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        first = pool.submit(ask, 0)
        assert encoder.started.wait(60)
        others = [pool.submit(ask, index) for index in range(1, count)]
        (flight,) = store._flights._flights.values()
        while flight.waiters < count - 1:
            threading.Event().wait(0.001)
        encoder.may_end.set()
        return [result.result(60) for result in (first, *others)]


def test_simultaneous_misses_compute_once():
    store, encoder = cache(), SlowEncoder()
    results = ask_together(store, encoder)
    assert encoder.calls == 1
    assert sorted(provenance for provenance, _ in results) == ["exact_tokens"] * 7 + ["miss"]
    assert all(torch.equal(tokens, results[0][1]) for _, tokens in results)
    assert store.stats.waited == 7


def test_when_the_computing_one_fails_a_waiter_computes_and_nobody_hangs():
    store, encoder = cache(), SlowEncoder(failures=2)
    results = ask_together(store, encoder)
    assert encoder.calls == 3
    assert sorted(type(result).__name__ for result in results) == ["ArithmeticError"] * 2 + ["tuple"] * 6


def test_waiters_of_a_value_that_no_tier_holds_get_copies_of_their_own():
    store, encoder = cache(device_bytes=1), SlowEncoder()
    results = ask_together(store, encoder)
    assert encoder.calls == 1
    assert len({tokens.data_ptr() for _, tokens in results}) == THREADS
    assert all(torch.equal(tokens, results[0][1]) for _, tokens in results)


def test_a_request_does_not_wait_longer_than_it_was_told_to():
    store, slow = cache(flight_timeout_s=0.01), SlowEncoder()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(store.get_or_compute, request(), slow)
        assert slow.started.wait(60)
        with store.get_or_compute(request(), encode) as answer:
            assert answer.provenance == "miss"
        slow.may_end.set()
        assert first.result(60).provenance == "miss"
    assert provenance(store, request()) == "exact_tokens"


def test_a_computation_that_asks_for_itself_is_an_error_not_a_hang():
    store = cache()
    with pytest.raises(RuntimeError, match="would wait for itself"):
        store.get_or_compute(request(), lambda _: store.get_or_compute(request(), encode).shared())
    fill(store, request())
    assert provenance(store, request()) == "exact_tokens"


def test_eight_threads_on_one_entry_give_the_answers_of_one_thread():
    store = cache()
    fill(store, request(want_kv=True))
    expected = encode_with_kv(store.lookup(request(want_kv=True)))

    def ask(number: int) -> bool:
        right = True
        for _ in range(20):
            with store.lookup(request(want_kv=True)) as answer:
                grown = answer.copy() if number % 2 else answer.shared()
                right &= all(
                    torch.equal(mine, theirs) for (mine, _), (theirs, _) in zip(grown.kv, expected.kv, strict=True)
                )
                if number % 2:
                    grown.kv[0][0].fill_(number)
        return right

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(ask, range(THREADS)))
    assert store.stats.written_by_reader == 0


def test_eight_threads_under_eviction_never_see_another_pictures_tokens(tmp_path):
    one = value_bytes()
    store = cache(device_bytes=3 * one, host_bytes=2 * one, disk_folder=tmp_path, disk_bytes=2**20)

    def ask(number: int) -> bool:
        order, right = random.Random(number), True
        for _ in range(25):
            with store.get_or_compute(request(picture(order.randrange(10))), encode) as answer:
                right &= torch.equal(answer.shared().tokens, encode(answer).tokens)
        return right

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(ask, range(THREADS)))
    stats = store.stats
    assert stats.queries == THREADS * 25
    assert stats.bytes_by_tier["device"] <= 3 * one and stats.bytes_by_tier["host"] <= 2 * one
    assert stats.answers["miss"] < 60


def test_a_batch_computes_what_is_missing_in_one_call_and_duplicates_once():
    store, calls = cache(), []
    fill(store, request(picture(1)))

    def encode_all(opened: list[Answer]) -> list[BackgroundValue]:
        calls.append(len(opened))
        return [encode(answer) for answer in opened]

    asked = [request(picture(seed)) for seed in (1, 2, 3, 2)]
    answers = store.get_or_compute_many(asked, encode_all)
    assert calls == [2]
    assert [answer.provenance for answer in answers] == ["exact_tokens", "miss", "miss", "exact_tokens"]
    assert all(torch.equal(answer.shared().tokens, encode(answer).tokens) for answer in answers)


def test_batches_that_share_pictures_in_opposite_order_do_not_block_each_other():
    store, together = cache(), threading.Barrier(2)

    def encode_all(opened: list[Answer]) -> list[BackgroundValue]:
        return [encode(answer) for answer in opened]

    def ask(order: list[int]) -> list[str]:
        together.wait(60)
        answers = store.get_or_compute_many([request(picture(seed)) for seed in order], encode_all)
        assert all(torch.equal(answer.shared().tokens, encode(answer).tokens) for answer in answers)
        return [answer.provenance for answer in answers]

    with ThreadPoolExecutor(2) as pool:
        seen = [*pool.map(ask, [[1, 2, 3, 4], [4, 3, 2, 1]])]
    assert sum(kinds.count("miss") for kinds in seen) == 4


def test_a_batch_that_fails_lets_go_of_everything():
    store = cache(device_bytes=value_bytes())
    fill(store, request(picture(1)))
    with pytest.raises(ArithmeticError):
        store.get_or_compute_many([request(picture(1)), request(picture(2))], lambda _: 1 / 0)
    fill(store, request(picture(2)))
    assert provenance(store, request(picture(2))) == "exact_tokens"
