"""What a model and a machine cost, measured: the numbers by which a cache leaves requests alone where it would lose."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from llava.model.scene_split.parts import SplitParts
from llava.model.scene_split.prefix import KvPrefix, compute_prefix
from llava.scene.token_cache import (
    BackgroundRequest,
    BackgroundTokenCache,
    BackgroundValue,
    CacheConfig,
    MeasuredCosts,
)


@torch.no_grad()
def measure_costs(model: Any, *, disk_folder: str | Path | None = None, rounds: int = 5) -> MeasuredCosts:
    """Seconds for `CacheConfig.costs`, from one picture of noise that is all background; the least of all rounds.

    Everything is timed as a request meets it: tower and projector, the language model behind no prefix, lookups that
    miss and hit, the copy that joins a prefix with what is new, and the ways from main memory and disk.

    Args:
        disk_folder: where the cache of the machine will lie, for the speed of that disk; None = where temporary
            files do. A file that was just written is read from memory by the system: the disk counts as fast as that.

    Raises:
        ValueError: the model was trained without scene_split, or for less than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    parts = SplitParts.of(model, force=False)
    bench = _Bench(parts, rounds)
    tokens, prefix = bench.tokens, bench.prefix
    layers = tuple(zip(prefix.keys, prefix.values, strict=True))
    value, room = BackgroundValue(kv=layers), 2 * prefix.num_bytes + 2**20
    miss, hit = bench.lookups()
    with TemporaryDirectory(dir=disk_folder) as folder:
        disk = bench.fetch(value, disk_folder=folder, disk_bytes=room) - hit
    host = bench.fetch(value, host_bytes=room) - hit if bench.device.type == "cuda" else 0.0
    return MeasuredCosts(
        encode_s_per_token=bench.best(lambda: parts.encode_background(bench.pixels, bench.cells)) / len(tokens),
        prefill_s_per_token=bench.best(bench.prefill) / prefix.length,
        lookup_s=miss,
        hit_s=max(0.0, hit - miss),
        device_s_per_byte=bench.best(bench.join) / prefix.num_bytes,
        host_s_per_byte=max(0.0, host) / prefix.num_bytes,
        disk_s_per_byte=max(0.0, disk) / prefix.num_bytes,
    )


class _Bench:
    """One picture on the model's device, its tokens, and keys and values of them."""

    def __init__(self, parts: SplitParts, rounds: int) -> None:
        self.parts, self.rounds = parts, rounds
        weight = parts.model.get_input_embeddings().weight
        self.device, self.dtype = weight.device, weight.dtype
        side = parts.model.vision_tower.image_size
        noise = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.pixels = noise.to(self.device)
        self.cells = torch.arange(parts.coarse_side**2)
        self.tokens = parts.encode_background(self.pixels, self.cells)
        self.prefix: KvPrefix = self.prefill()

    def prefill(self) -> KvPrefix:
        positions = torch.arange(len(self.tokens), device=self.device)[None]
        return compute_prefix(self.parts.model.llm, self.tokens.to(self.dtype)[None], positions)

    def join(self) -> list[Tensor]:
        """What the first step behind a prefix does with it."""
        states = (*self.prefix.keys, *self.prefix.values)
        return [torch.cat([each, each[..., :1, :]], dim=-2) for each in states]

    def request(self, *, known: bool = True) -> BackgroundRequest:
        """Of the picture, hashed anew; or of one that differs in a pixel."""
        pixels = self.pixels.clone()
        if not known:
            pixels[0, 0, 0] ^= 1
        scope = self.parts.scope("measured", "")
        patch, cell = self.parts.patch_size, self.parts.cell
        return BackgroundRequest(
            scope=scope, pixels=pixels, patch_size=patch, cell=cell, background=self.cells, want_kv=True
        )

    def lookups(self) -> tuple[float, float]:
        """Seconds of a lookup that misses, and of one that hits."""
        cache = self.cache()
        with cache.lookup(self.request()) as answer:
            cache.put(answer, BackgroundValue(tokens=self.tokens))
        return (
            self.best(lambda: cache.lookup(self.request(known=False)).release()),
            self.best(lambda: cache.lookup(self.request()).release()),
        )

    def fetch(self, value: BackgroundValue, **tier: Any) -> float:
        """Seconds of a hit in the given tier, which lies below a device tier that can hold nothing."""
        cache = self.cache(device_bytes=0, **tier)
        with cache.lookup(self.request()) as answer:
            if not cache.put(answer, value):
                raise RuntimeError(f"the cache did not keep {value.nbytes:,} bytes in {tier}: {cache.stats}")
        return self.best(lambda: cache.lookup(self.request()).release())

    def cache(self, **fields: Any) -> BackgroundTokenCache:
        return BackgroundTokenCache(CacheConfig(**({"device_bytes": 2**30, "device": self.device} | fields)))

    def best(self, work: Callable[[], Any]) -> float:
        """Seconds, after one round that warms up."""
        least = float("inf")
        for number in range(self.rounds + 1):
            begin = self._now()
            work()
            least = min(least, self._now() - begin) if number else least
        return least

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
