"""What a device could compute at best: makers' figures by name, else a short matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Dense FLOP/s of one device, without sparsity."""

    half: float
    tf32: float
    single: float


PEAKS: Mapping[str, Peak] = {
    "B200": Peak(half=2250e12, tf32=1100e12, single=80e12),
    "GH200": Peak(half=989.4e12, tf32=494.7e12, single=66.9e12),
    "H200": Peak(half=989.4e12, tf32=494.7e12, single=66.9e12),
    "H100 PCIe": Peak(half=756e12, tf32=378e12, single=51.2e12),
    "H100 NVL": Peak(half=835e12, tf32=417.5e12, single=60e12),
    "H100": Peak(half=989.4e12, tf32=494.7e12, single=66.9e12),
    "H800": Peak(half=989.4e12, tf32=494.7e12, single=66.9e12),
    "H20": Peak(half=148e12, tf32=74e12, single=44e12),
    "A100": Peak(half=312e12, tf32=156e12, single=19.5e12),
    "A800": Peak(half=312e12, tf32=156e12, single=19.5e12),
    "A40": Peak(half=149.7e12, tf32=74.8e12, single=37.4e12),
    "A10G": Peak(half=70e12, tf32=35e12, single=31.2e12),
    "A10": Peak(half=125e12, tf32=62.5e12, single=31.2e12),
    "RTX A6000": Peak(half=154.8e12, tf32=77.4e12, single=38.7e12),
    "L40S": Peak(half=362e12, tf32=183e12, single=91.6e12),
    "L40": Peak(half=181e12, tf32=90.5e12, single=90.5e12),
    "L4": Peak(half=121e12, tf32=60e12, single=30.3e12),
    "RTX 4090": Peak(half=165.2e12, tf32=82.6e12, single=82.6e12),
    "RTX 3090": Peak(half=71e12, tf32=35.6e12, single=35.6e12),
    "V100": Peak(half=125e12, tf32=15.7e12, single=15.7e12),
    "T4": Peak(half=65e12, tf32=8.1e12, single=8.1e12),
    "MI300X": Peak(half=1307.4e12, tf32=653.7e12, single=163.4e12),
}
"""Part of a device's name -> data sheet; the first row that fits counts, so narrower names stand before wider ones."""


@dataclass(frozen=True, kw_only=True)
class PeakFlops:
    """FLOP/s against which utilisation is told; source says where the figure is from."""

    flops: float
    source: str


def peak_flops(device: torch.device, dtype: torch.dtype) -> PeakFlops:
    """The figure of one device for products of a dtype (that of autocast, where it is on)."""
    kind = str(dtype).removeprefix("torch.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"
    row = peak_of(name)
    if row is None:
        return PeakFlops(flops=measure(device, dtype), source=f"measured by a matrix product on {name}, {kind}")
    if dtype != torch.float32:
        return PeakFlops(flops=row.half, source=f"data sheet of {name}, {kind}")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return PeakFlops(flops=row.tf32 if tf32 else row.single, source=f"data sheet of {name}, {'tf32' if tf32 else kind}")


def peak_of(name: str) -> Peak | None:
    return next((row for part, row in PEAKS.items() if part in name), None)


def measure(
    device: torch.device, dtype: torch.dtype, *, seconds: float = 0.1, now: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of the fastest of some products of square matrices; takes about `seconds`."""
    size = 512 if device.type == "cpu" else 8192
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.matmul(left, right)  # the first call sets the library up
    begin, fastest = now(), float("inf")
    while now() - begin < seconds:
        _wait_for(device)
        start = now()
        torch.matmul(left, right)
        _wait_for(device)
        fastest = min(fastest, now() - start)
    return 2 * size**3 / max(fastest, 1e-9)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
