"""What a log line counts: rates without padding and pauses, means over steps and ranks, utilisation."""

from __future__ import annotations

import pytest
import torch

from llava.train import meter as meter_module
from llava.train import peak
from llava.train.meter import TrainingMeter
from llava.train.peak import PeakFlops, peak_of


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> TrainingMeter:
    return TrainingMeter(now=clock)


def test_rates_are_sums_over_seconds(meter, clock):
    meter.add_step(tokens=300, samples=4, wait=1.0)
    meter.add_step(tokens=100, samples=4, wait=1.0)
    clock.seconds = 8.0
    row = meter.read()
    assert (row["tokens_per_second"], row["samples_per_second"], row["data_wait"]) == (50.0, 1.0, 0.25)
    assert meter.total_tokens == 400


def test_time_of_saving_is_in_no_rate(meter, clock):
    meter.add_step(tokens=300, wait=1.0)
    clock.seconds = 2.0
    with meter.paused():
        clock.seconds = 100.0
    clock.seconds = 102.0
    row = meter.read()
    assert (row["tokens_per_second"], row["data_wait"]) == (75.0, 0.25)


def test_a_second_reading_begins_at_the_first(meter, clock):
    meter.add_step(tokens=300, wait=1.0)
    clock.seconds = 2.0
    meter.read()
    meter.add_step(tokens=100, wait=0.0)
    clock.seconds = 4.0
    assert meter.read()["tokens_per_second"] == 50.0


def test_losses_are_means_over_steps_of_sums_over_micro_batches(meter):
    for first, second in ((1.0, 2.0), (3.0, 4.0)):  # two steps of two micro-batches, each already a share of its step
        meter.add_step(tokens=1, wait=0.0)
        meter.add_terms({"main_loss": torch.tensor(first)}, scale=1.0)
        meter.add_terms({"main_loss": torch.tensor(second)}, scale=1.0)
    assert meter.step.terms["main_loss"] == 7.0
    assert meter.read()["main_loss"] == 5.0


def test_utilisation_is_a_share_of_the_peak_of_each_device(meter, clock, monkeypatch):
    meter.peak = PeakFlops(flops=10e12, source="test")
    meter.add_step(tokens=1, wait=0.0, flops=8e12)
    clock.seconds = 2.0
    monkeypatch.setattr(meter_module, "gather_objects", lambda mine: [mine, {**mine, "flops": 16e12}])
    row = meter.read()
    assert row["tflops_per_device"] == 6.0  # (8 + 16) e12 in 2 s on 2 devices
    assert row["mfu"] == 0.6


def test_without_a_count_of_flops_no_utilisation_is_told(meter, clock):
    meter.add_step(tokens=1, wait=0.0)
    clock.seconds = 1.0
    assert {"mfu", "tflops_per_device"}.isdisjoint(meter.read())


def test_ranks_add_their_tokens_share_the_slowest_time_and_average_their_waiting(meter, clock, monkeypatch):
    def two_ranks(mine):
        other = {**mine, "tokens": 500, "seconds": 10.0, "wait": 0.5, "terms": {"main_loss": 3.0, "extra": 1.0}}
        return [mine, {**other, "memory": {"peak_host_memory_gib": 1e6}}]

    monkeypatch.setattr(meter_module, "gather_objects", two_ranks)
    meter.add_step(tokens=100, wait=1.0)
    meter.add_terms({"main_loss": torch.tensor(1.0)}, scale=1.0)
    clock.seconds = 8.0
    row = meter.read()
    assert row["tokens_per_second"] == 60.0
    assert row["data_wait"] == pytest.approx((0.125 + 0.5) / 2, abs=1e-4)
    assert (row["main_loss"], row["extra"]) == (2.0, 0.5)
    assert row["peak_host_memory_gib"] == 1e6, "the fullest rank"


def test_memory_of_this_process_is_told(meter):
    assert 0.05 < meter.read()["peak_host_memory_gib"] < 1000


@pytest.mark.parametrize(
    ("name", "half"),
    [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12)],
)
def test_a_device_is_known_by_its_name(name, half):
    row = peak_of(name)
    assert row is not None
    assert row.half == half


def test_an_unknown_device_is_measured(monkeypatch):
    found = peak.peak_flops(torch.device("cpu"), torch.float32)
    assert "measured" in found.source
    assert 1e8 < found.flops < 1e14


def test_the_measured_peak_is_the_fastest_product(clock, monkeypatch):
    times = iter([0.0, 0.0, 0.0, 4.0, 0.5, 5.0, 7.0, 9.0])  # begin; then check, start, end of two products; last check
    found = peak.measure(torch.device("cpu"), torch.float32, seconds=1.0, now=lambda: next(times))
    assert found == pytest.approx(2 * 512**3 / 2.0)
