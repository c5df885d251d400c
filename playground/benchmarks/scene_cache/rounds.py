"""Rounds over all cells of the table, and probes for objects that a cache does not see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from llava.scene.token_cache import BackgroundTokenCache
from playground.benchmarks.scene_cache.bench import Bench
from playground.benchmarks.scene_cache.pictures import CHANGES
from playground.benchmarks.scene_cache.samples import Cells, add_sample
from playground.benchmarks.scene_cache.shapes import CASES, CONTRASTS


def run_round(
    bench: Bench, case: str, shares: Sequence[float], number: int, cells: Cells, sizes: dict[str, Any]
) -> None:
    """One sample of every cell; each round looks at other places, so that nothing is known from the last one.

    Args:
        sizes: takes what every cache holds after its first picture, the first time only.
    """
    _ask_for_whole_pictures(bench, number, cells)
    for share in shares:
        camera, label = bench.camera(share, 2000 + number), f"{share:.2f}"
        add_sample(cells, label, "split", "cold", bench.splitted(bench.frames(camera.picture(0)), camera))
        for row in ("tokens", "tokens + KV", "guarded"):
            columns = CASES[case].get(row, [])
            if columns and (row != "guarded" or share in (0.5, 0.75)):
                kept = _ask_with_cache(bench, share, row, columns, number, cells)
                sizes.setdefault(f"{case} {label} {row}", kept)


def _ask_for_whole_pictures(bench: Bench, number: int, cells: Cells) -> None:
    frames, peer = bench.frames(bench.camera(0.5, 1000 + number).picture(0)), bench.peer
    add_sample(cells, "-", "full path", "cold", bench.full(frames))
    add_sample(cells, "-", "transformers", "cold", peer.sample(frames))
    kept = peer.sample(frames, peer.prefix(frames))
    add_sample(cells, "-", "transformers, prefix kept", "same picture", kept)


def _ask_with_cache(
    bench: Bench, share: float, row: str, columns: Sequence[str], number: int, cells: Cells
) -> dict[str, Any]:
    """A first picture, then everything that may happen to it; what the cache holds after the first."""
    camera, other = bench.camera(share, 2000 + number), bench.camera(share, 3000 + number)
    cache, how = bench.cache(guarded=row == "guarded"), {"keep_kv": row != "tokens"}
    cold = bench.splitted(bench.frames(camera.picture(0)), camera, cache, **how)
    kept, label = _bytes(cache), f"{share:.2f}"
    for column in columns:
        if column == "cold":
            add_sample(cells, label, row, column, cold)
        elif share == 0.5 or row != "tokens + KV" or not _is_a_miss(column):
            seen = bench.frames(CHANGES[column](camera, other))
            add_sample(cells, label, row, column, bench.splitted(seen, camera, cache, **how))
    return kept


def _is_a_miss(column: str) -> bool:
    """For exact hits: what these cost does not depend on the share, so one is enough."""
    return column in ("JPEG noise", "lighting", "shift 2 px", "all new")


def _bytes(cache: BackgroundTokenCache) -> dict[str, Any]:
    stats = cache.stats
    return {"entries": stats.entries_by_tier, "bytes": stats.bytes_by_tier}


def probe(bench: Bench, rounds: int) -> dict[str, dict[str, dict[str, int]]]:
    """Objects that appear in the background: how often the changed cell was taken from the cache, and answers changed.

    The exact cache must never miss one; the guarded one misses what is fainter than the noise it was told of.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, guarded in (("tokens + KV", False), ("guarded", True)):
        camera, cache = bench.camera(0.75, 77), bench.cache(guarded=guarded)
        bench.splitted(bench.frames(camera.picture(0)), camera, cache)
        for contrast in CONTRASTS:
            counts = Counter(probes=0, change_missed=0, other_answer=0)
            for number in range(rounds):
                seen, cell = camera.probe(number, contrast)
                frames, masks = bench.frames(seen), bench.masks(camera)
                answer = bench.ask(frames, tokens=4, object_patches=masks, background_cache=cache)
                plain = bench.ask(frames, tokens=4, object_patches=masks)
                picture = answer.report.pictures[0]
                counts["probes"] += 1
                counts["change_missed"] += int(picture.hit_map.flat[cell] == "reused")
                counts["other_answer"] += int(not torch.equal(answer.output, plain.output))
            found.setdefault(name, {})[str(contrast)] = dict(counts)
    return found
