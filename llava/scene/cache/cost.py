"""When the cache costs more than it saves: seconds measured by the caller in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llava.scene.cache.keys import Kind

Tier = Literal["device", "host", "disk"]


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """Seconds on the machine at hand; 0 stands for "nothing to speak of".

    Attributes:
        encode_s_per_token: tower and projector, per background token; saved by a hit of either kind.
        prefill_s_per_token: language model, per background token; saved by a KV hit only.
        lookup_s: fingerprints, search and comparison of one request, hit or miss.
        hit_s: what a hit costs besides copies, whatever its size (an extra kernel launch, a second small batch).
        device_s_per_byte: copying a value out of the device tier; 0 for readers that share it.
        host_s_per_byte: main memory to device.
        disk_s_per_byte: disk to device.
    """

    encode_s_per_token: float | int
    prefill_s_per_token: float | int
    lookup_s: float | int
    hit_s: float | int = 0.0
    device_s_per_byte: float | int = 0.0
    host_s_per_byte: float | int = 0.0
    disk_s_per_byte: float | int = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}, expected seconds of 0 or more, measured on this machine")


def compute_seconds(costs: MeasuredCosts, kind: Kind, num_tokens: int) -> float:
    """What a hit spares."""
    per_token = costs.encode_s_per_token + (costs.prefill_s_per_token if kind == "kv" else 0.0)
    return per_token * num_tokens


def hit_seconds(costs: MeasuredCosts, num_bytes: int, tier: Tier) -> float:
    """What a hit costs once its entry is known, the lookup not counted."""
    per_byte = {
        "device": costs.device_s_per_byte,
        "host": costs.host_s_per_byte,
        "disk": costs.disk_s_per_byte,
    }[tier]
    return costs.hit_s + per_byte * num_bytes


def saved_seconds(costs: MeasuredCosts, *, kind: Kind, num_tokens: int, num_bytes: int, tier: Tier) -> float:
    """Gain of a hit against a request without any cache; negative = the cache loses.

    >>> costs = MeasuredCosts(encode_s_per_token=1e-5, prefill_s_per_token=2e-5, lookup_s=1e-3, host_s_per_byte=1e-9)
    >>> round(saved_seconds(costs, kind="kv", num_tokens=400, num_bytes=3_000_000, tier="host"), 6)
    0.008
    """
    return compute_seconds(costs, kind, num_tokens) - hit_seconds(costs, num_bytes, tier) - costs.lookup_s


def worth_looking(costs: MeasuredCosts, kind: Kind, num_tokens: int) -> bool:
    """False where even the best hit, one that is shared on the device, loses."""
    return saved_seconds(costs, kind=kind, num_tokens=num_tokens, num_bytes=0, tier="device") > 0


def worth_serving(costs: MeasuredCosts, *, kind: Kind, num_tokens: int, num_bytes: int, tier: Tier) -> bool:
    """False where fetching the entry takes longer than computing it; the lookup is paid by now."""
    return compute_seconds(costs, kind, num_tokens) > hit_seconds(costs, num_bytes, tier)


def break_even_hit_rate(costs: MeasuredCosts, *, kind: Kind, num_tokens: int, num_bytes: int, tier: Tier) -> float:
    """Share of hits at which the mean request costs what it costs without a cache; infinite where a hit saves nothing.

    Every request pays the lookup, a hit gains `compute - hit`.
    """
    gain = compute_seconds(costs, kind, num_tokens) - hit_seconds(costs, num_bytes, tier)
    return costs.lookup_s / gain if gain > 0 else float("inf")
