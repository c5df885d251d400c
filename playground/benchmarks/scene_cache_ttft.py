"""Time to first token with the background cache: full path, split, tokens, tokens and KV, similar backgrounds, peers.

What: p50 and p95 of the time from uint8 pictures to the first token, every stage counted (detector, masks, lookup,
    towers, prefill), after a picture was seen: the same one again, a new object, JPEG noise, other light, a camera that
    moved by 2 px, all new; backgrounds of 25 to 90 % of the patches; one picture, and 8 frames with one background.
How ours differs: a background is encoded without its objects, so it has the same tokens and, behind the same words,
    the same keys and values in every picture; a hit costs its objects and the question. Engines keep whole pictures.
Checked before a clock starts: a hit says what the split says without a cache, and the peer what our full path says.
Goal on a CPU, same background with a new object at 25, 50, 75 %: 1.3, 1.8, 2.8 times our own full path; a miss costs
    at most 3 % more than the split without a cache.

    python -m playground.benchmarks.scene_cache_ttft                                    # minutes on two idle cores
    python -m playground.benchmarks.scene_cache_ttft --shape llava-7b --device cuda --dtype bfloat16

Weights are random: times do not depend on them, answers mean nothing but that they are equal. The detector compares
with the empty scene (OpenCV) and takes about a millisecond; `--detector-ms` adds what another one costs where it runs.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from llava.scene.token_cache import BackgroundTokenCache, CacheConfig, SimilarityConfig
from playground.benchmarks.hf_peer import build_ours, peer_of
from playground.benchmarks.scene_cache_pictures import CHANGES, Picture, StillCamera
from playground.benchmarks.workload import Size

RESULTS = Path(__file__).with_name("results")
GOALS = {0.25: 1.3, 0.5: 1.8, 0.75: 2.8}
MISS_GOAL = 1.03
SYSTEM_TOKENS, QUESTION_TOKENS = 35, 64
NOISE = 2.5
"""Standard deviation of JPEG noise at quality 85 on these pictures, in levels."""
CONTRASTS = (4, 8, 16, 32, 64)
COLUMNS = ("cold", *CHANGES)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Models of one picture and of a clip; clips come in smaller pictures on the CPU."""

    picture: Size
    clip: Size
    num_frames: int = 8


_CPU = Size(width=512, layers=8, heads=8, key_value_heads=8, vocabulary=8000, image_size=336, tower_width=512,
            tower_layers=8)  # fmt: skip
_LLAVA = Size(width=4096, layers=32, heads=32, key_value_heads=32, vocabulary=32064, image_size=336, tower_width=1024,
              tower_layers=24)  # fmt: skip
_TINY = Size(width=64, layers=2, heads=2, key_value_heads=2, vocabulary=200, image_size=112, tower_width=64,
             tower_layers=2)  # fmt: skip
SHAPES = {
    "cpu": Shape(picture=_CPU, clip=replace(_CPU, image_size=168)),
    "llava-7b": Shape(picture=_LLAVA, clip=_LLAVA),
    "tiny": Shape(picture=_TINY, clip=replace(_TINY, image_size=56), num_frames=3),
}

ROWS = ("full path", "split", "tokens", "tokens + KV", "guarded", "transformers", "transformers, prefix kept")
CASES = {
    "picture": {
        "split": ["cold"],
        "tokens": ["same picture", "new object"],
        "tokens + KV": ["cold", *CHANGES],
        "guarded": ["new object", "JPEG noise", "lighting", "shift 2 px"],
    },
    "clip": {
        "split": ["cold"],
        "tokens + KV": ["cold", "same picture", "new object"],
        "guarded": ["JPEG noise"],
    },
}
"""Which columns are measured; those of whole pictures are the same for every share and measured once."""


@dataclass
class Sample:
    """One request: seconds until its first token, and what its report says."""

    seconds: float
    computed: int
    prompt: int
    provenance: str = "-"
    stages: dict[str, float] | None = None


# ---- requests ----


class Bench:
    """A model, its peer, and a prompt: system words, pictures, question."""

    def __init__(self, size: Size, num_frames: int, options: argparse.Namespace) -> None:
        self.size, self.num_frames, self.options = size, num_frames, options
        torch.manual_seed(0)
        model = build_ours(size).to(options.device, getattr(torch, options.dtype)).eval()
        model.initialize_scene_split({"separators": False, "background_per": "clip" if num_frames > 1 else "picture"})
        self.model, self.split = model, model.scene_split
        self.peer: Any = peer_of(model).to(model.dtype).eval()
        self.peer.to(options.device)
        draw = torch.Generator().manual_seed(1)
        words = torch.randint(3, size.vocabulary - 2, (SYSTEM_TOKENS + QUESTION_TOKENS,), generator=draw)
        slots = torch.full((num_frames,), model.config.image_token_id)
        parts = [words[:SYSTEM_TOKENS], slots, words[SYSTEM_TOKENS:]]
        self.input_ids = torch.cat(parts)[None].to(options.device)

    @property
    def greedy(self) -> dict[str, Any]:
        return {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def frames(self, picture: Picture) -> Tensor:
        """uint8 [frames, 3, H, W] on the host: where pictures come from; later frames show the same."""
        return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].repeat(self.num_frames, 1, 1, 1)

    def ours(self, frames: Tensor, *, tokens: int = 1, **how: Any) -> Any:
        pixels = frames.to(self.options.device)
        return self.model.generate(
            self.input_ids, pixels, return_provenance=True, max_new_tokens=tokens, **self.greedy, **how
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model without its split."""
        self.model.scene_split = None
        try:
            yield
        finally:
            self.model.scene_split = self.split

    def full(self, frames: Tensor) -> Sample:
        with self.whole():
            return _sample(self.ours(frames))

    def splitted(self, frames: Tensor, camera: StillCamera, cache: Any = None, **how: Any) -> Sample:
        detector = Timed(camera.detector(), self.options.detector_ms)
        how["picture_ids"] = ["camera", *[None] * (self.num_frames - 1)]  # says which entry is compared first
        return _sample(self.ours(frames, detector=detector, background_cache=cache, **how))

    def peer_ids(self) -> Tensor:
        """Placeholders multiplied, as the peer wants them."""
        token = self.model.config.image_token_id
        repeats = torch.where(self.input_ids[0] == token, self.model.tokens_per_image, 1)
        return self.input_ids[0].repeat_interleave(repeats)[None]

    def theirs(self, frames: Tensor, *, tokens: int = 1, prefix: Any = None) -> tuple[Tensor, float]:
        """New ids, and seconds until the first. prefix: keys and values of everything up to the last picture."""
        begin = _now(self.options.device)
        clock = Clock(self.options.device)
        given: dict[str, Any] = {}
        if prefix is None:
            given["pixel_values"] = self._normalised(frames)
        else:
            given["past_key_values"] = copy.deepcopy(prefix)
        ids = self.peer_ids()
        out = self.peer.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
            stopping_criteria=StoppingCriteriaList([clock]), **given, **self.greedy,
        )  # fmt: skip
        return out[:, ids.shape[1] :], clock.first - begin

    @torch.no_grad()
    def peer_prefix(self, frames: Tensor) -> Any:
        ids = self.peer_ids()[:, :-QUESTION_TOKENS]
        return self.peer(input_ids=ids, pixel_values=self._normalised(frames), use_cache=True).past_key_values

    def _normalised(self, frames: Tensor) -> Tensor:
        tower: Any = self.model.vision_tower
        return tower.normalise(frames.to(self.options.device)).to(self.model.dtype)

    def transformers(self, frames: Tensor, prefix: Any = None) -> Sample:
        _, seconds = self.theirs(frames, prefix=prefix)
        total = self.peer_ids().shape[1]
        return Sample(seconds, QUESTION_TOKENS if prefix is not None else total, total)

    def cache(self, *, guarded: bool = False) -> BackgroundTokenCache:
        similarity = SimilarityConfig(noise=NOISE, max_stale_fraction=0.3) if guarded else None
        return BackgroundTokenCache(
            CacheConfig(device_bytes=self.options.cache_mib * 2**20, device=self.options.device, similarity=similarity)
        )


class Timed:
    """A detector that takes longer, to stand for one that runs on this machine in the given time."""

    def __init__(self, detector: Any, extra_ms: float) -> None:
        self.detector, self.extra_ms, self.sees_clips = detector, extra_ms, False

    def detect(self, pictures: Sequence[Picture], sources: Any = None) -> Any:
        time.sleep(self.extra_ms / 1000 * len(pictures))
        return [found for picture in pictures for found in self.detector.detect([picture], None)]


class Clock(StoppingCriteria):
    """When the first token was there."""

    def __init__(self, device: str) -> None:
        self.device, self.first = device, 0.0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.first = self.first or _now(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def _sample(answer: Any) -> Sample:
    report = answer.report
    provenance = report.pictures[0].background if report.pictures else "-"
    seconds = dict(report.seconds)
    return Sample(seconds["first_token"], report.computed_tokens, sum(report.prompt_tokens), provenance, seconds)


# ---- what has to be true before anything is timed ----


def check(bench: Bench) -> None:
    """
    Raises:
        RuntimeError: a hit answers otherwise than the split without a cache, or the peer otherwise than our full path.
    """
    camera, cache = _camera(bench, 0.5, 99), bench.cache()
    first, second = (bench.frames(camera.picture(seed)) for seed in (0, 1))
    for frames, expected in ((first, "miss"), (first, "exact_kv"), (second, "exact_kv")):
        hit = bench.ours(frames, tokens=8, detector=camera.detector(), background_cache=cache)
        plain = bench.ours(frames, tokens=8, object_patches=_masks(bench, camera))
        if not torch.equal(hit.output, plain.output) or hit.report.pictures[0].background != expected:
            found = hit.report.pictures[0].background
            raise RuntimeError(f"a hit ({found}, expected {expected}) answers otherwise than the split without a cache")
    with bench.whole():
        whole = bench.ours(first, tokens=8).output
    for prefix in (None, bench.peer_prefix(first)):
        if not torch.equal(bench.theirs(first, tokens=8, prefix=prefix)[0], whole):
            raise RuntimeError("transformers' LLaVA answers otherwise than our full path; repair that first")


def _masks(bench: Bench, camera: StillCamera) -> Tensor:
    grid = camera.side // camera.patch
    mask = torch.zeros(bench.num_frames, grid, grid, dtype=torch.bool)
    mask[:, grid - camera.object_rows :] = True
    return mask


def _camera(bench: Bench, share: float, seed: int) -> StillCamera:
    return StillCamera(bench.size.image_size, bench.size.patch_size, share, seed)


# ---- rounds ----

Cells = dict[tuple[str, str, str], list[Sample]]
"""Samples by share (as text, "-" where it does not matter), row and column."""


def run_round(
    bench: Bench, case: str, shares: Sequence[float], number: int, cells: Cells, sizes: dict[str, Any]
) -> None:
    """One sample of every cell; each round looks at other places, so that nothing is known from the last one."""
    plan = CASES[case]
    camera = _camera(bench, 0.5, 1000 + number)
    frames = bench.frames(camera.picture(0))
    _add(cells, "-", "full path", "cold", bench.full(frames))
    _add(cells, "-", "transformers", "cold", bench.transformers(frames))
    _add(cells, "-", "transformers, prefix kept", "same picture", bench.transformers(frames, bench.peer_prefix(frames)))
    for share in shares:
        camera, other = _camera(bench, share, 2000 + number), _camera(bench, share, 3000 + number)
        first, label = bench.frames(camera.picture(0)), f"{share:.2f}"
        _add(cells, label, "split", "cold", bench.splitted(first, camera))
        for row in ("tokens", "tokens + KV", "guarded"):
            columns = plan.get(row, [])
            if not columns or (row == "guarded" and share not in (0.5, 0.75)):
                continue
            cache, how = bench.cache(guarded=row == "guarded"), {"keep_kv": row != "tokens"}
            cold = bench.splitted(first, camera, cache, **how)
            sizes.setdefault(f"{case} {label} {row}", _bytes(cache))
            if "cold" in columns:
                _add(cells, label, row, "cold", cold)
            for column in columns:
                if column == "cold" or (share != 0.5 and row == "tokens + KV" and _is_a_miss(column)):
                    continue
                seen = bench.frames(CHANGES[column](camera, other))
                _add(cells, label, row, column, bench.splitted(seen, camera, cache, **how))


def _is_a_miss(column: str) -> bool:
    """For exact hits: what these cost does not depend on the share, so one is enough."""
    return column in ("JPEG noise", "lighting", "shift 2 px", "all new")


def _add(cells: Cells, share: str, row: str, column: str, sample: Sample) -> None:
    cells.setdefault((share, row, column), []).append(sample)


def _bytes(cache: BackgroundTokenCache) -> dict[str, Any]:
    stats = cache.stats
    return {"entries": stats.entries_by_tier, "bytes": stats.bytes_by_tier}


def probe(bench: Bench, rounds: int) -> dict[str, dict[str, dict[str, int]]]:
    """Objects that appear in the background: how often the changed cell was taken from the cache, and answers changed.

    The exact cache must never miss one; the guarded one misses what is fainter than the noise it was told of.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, guarded in (("tokens + KV", False), ("guarded", True)):
        camera, cache = _camera(bench, 0.75, 77), bench.cache(guarded=guarded)
        bench.splitted(bench.frames(camera.picture(0)), camera, cache)
        for contrast in CONTRASTS:
            counts = Counter(probes=0, change_missed=0, other_answer=0)
            for number in range(rounds):
                seen, cell = camera.probe(number, contrast)
                frames, masks = bench.frames(seen), _masks(bench, camera)
                answer = bench.ours(frames, tokens=4, object_patches=masks, background_cache=cache)
                plain = bench.ours(frames, tokens=4, object_patches=masks)
                picture = answer.report.pictures[0]
                counts["probes"] += 1
                counts["change_missed"] += int(picture.hit_map.flat[cell] == "reused")
                counts["other_answer"] += int(not torch.equal(answer.output, plain.output))
            found.setdefault(name, {})[str(contrast)] = dict(counts)
    return found


# ---- results ----


def summarise(cells: Cells) -> list[dict[str, Any]]:
    full = _p50(cells["-", "full path", "cold"])
    rows = []
    for (share, row, column), samples in cells.items():
        seconds = [sample.seconds for sample in samples]
        stages = [sample.stages for sample in samples if sample.stages is not None]
        rows.append(
            {
                "share": share,
                "row": row,
                "column": column,
                "p50_ms": round(1000 * _p50(samples), 2),
                "p95_ms": round(1000 * float(np.quantile(seconds, 0.95)), 2),
                "n": len(samples),
                "x_full": round(full / _p50(samples), 3),
                "computed_tokens": samples[0].computed,
                "prompt_tokens": samples[0].prompt,
                "provenance": dict(Counter(sample.provenance for sample in samples)),
                "stages_ms": {name: round(1000 * float(np.median([s[name] for s in stages])), 3) for name in stages[0]}
                if stages
                else {},
            }
        )
    return rows


def _p50(samples: Sequence[Sample]) -> float:
    return float(np.median([sample.seconds for sample in samples]))


def verdict(cells: Cells, shares: Sequence[float]) -> dict[str, Any]:
    """Speed-ups against their goals, what a miss costs more, and the share of hits from which the cache pays."""
    full, found = _p50(cells["-", "full path", "cold"]), {}
    for share in shares:
        label = f"{share:.2f}"
        split = _p50(cells[label, "split", "cold"])
        miss, hit = (_p50(cells[label, "tokens + KV", column]) for column in ("cold", "new object"))
        even = (miss - full) / (miss - hit) if miss > hit else float("inf")
        found[label] = {
            "x_full_new_object": round(full / hit, 3),
            "goal": GOALS.get(share),
            "miss_over_split": round(miss / split, 3),
            "miss_over_full": round(miss / full, 3),
            "miss_goal": MISS_GOAL,
            "break_even_hit_rate": round(max(0.0, even), 3) if np.isfinite(even) else None,
        }
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = head(options)
    shape = SHAPES[options.shape]
    for case, size, count in (("picture", shape.picture, 1), ("clip", shape.clip, shape.num_frames)):
        if case not in options.cases:
            continue
        bench, cells, sizes = Bench(size, count, options), {}, {}
        shares = [share for share in options.shares if case == "picture" or share <= 0.75]
        check(bench)
        for number in range(-1, options.rounds):  # the first round warms up
            if number < 0:
                run_round(bench, case, shares[:1], number, {}, {})
                continue
            run_round(bench, case, shares, number, cells, sizes)
            sys.stderr.write(f"{case}: round {number + 1} of {options.rounds}\n")
        result[case] = {
            "frames": count,
            "tokens_per_picture": bench.model.tokens_per_image,
            "parameters": sum(weight.numel() for weight in bench.model.parameters()),
            "shares_on_grid": {f"{share:.2f}": round(_camera(bench, share, 0).share, 3) for share in shares},
            "cells": summarise(cells),
            "verdict": verdict(cells, shares),
            "bytes": sizes,
        }
        if case == "picture":
            result[case]["probes"] = probe(bench, options.probes)
    return result


def head(options: argparse.Namespace) -> dict[str, Any]:
    is_cuda = options.device.startswith("cuda")
    name = torch.cuda.get_device_name() if is_cuda else f"cpu, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "benchmark": "scene_cache_ttft",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("llava", "torch", "transformers")},
        "device": name,
        "clock": "wall seconds until the first token",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "arguments": {key: str(value) for key, value in vars(options).items()},
    }


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    for case in ("picture", "clip"):
        if case not in result:
            continue
        found = result[case]
        title = f"p50 (p95) ms to first token, {found['frames']} x {found['tokens_per_picture']} tokens"
        shown = Table(box=box.SIMPLE_HEAD, title=f"{title}, {result['device']}")
        for name in ("background", "row", *COLUMNS):
            shown.add_column(name, justify="left" if name in ("background", "row") else "right")
        by_row: dict[tuple[str, str], dict[str, Any]] = {}
        for cell in found["cells"]:
            by_row.setdefault((cell["share"], cell["row"]), {})[cell["column"]] = cell
        for (share, row), columns in by_row.items():
            cells = [_told(columns.get(column)) for column in COLUMNS]
            shown.add_row(share, row, *cells)
        yield shown


def _told(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    words = "/".join(cell["provenance"])
    return f"{cell['p50_ms']:.1f} ({cell['p95_ms']:.1f})\n{cell['x_full']:.2f}x {words}"


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="cpu", choices=sorted(SHAPES))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75, 0.9], help="of the background")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=4, help="objects that appear, per contrast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-mib", type=int, default=2048)
    parser.add_argument("--detector-ms", type=float, default=0.0, help="added to every run of the detector")
    parser.add_argument("--quick", action="store_true", help="tiny shape, two shares, one round")
    parser.add_argument("--out", type=Path, help="default: results/scene_cache_ttft-<shape>-<device>.json")
    options = parser.parse_args(given)
    if options.quick:
        options.shape, options.rounds, options.shares, options.probes = "tiny", 1, [0.5, 0.75], 1
        options.cache_mib = 64
    if options.rounds < 1:
        raise ValueError(f"rounds is {options.rounds}, expected at least 1")
    if wrong := [share for share in options.shares if not 0 < share < 1]:
        raise ValueError(f"shares are {wrong}, expected numbers between 0 and 1")
    return options


def main(given: list[str] | None = None) -> dict[str, Any]:
    options = parse(given)
    torch.set_num_threads(options.threads)
    result = measure(options)
    out = options.out or RESULTS / f"scene_cache_ttft-{options.shape}-{options.device.split(':')[0]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    console = Console(width=150)
    for table in tables(result):
        console.print(table)
    for case in CASES:
        if case in result:
            console.print(case, result[case]["verdict"])
    console.print(f"written: {out}")
    return result


if __name__ == "__main__":
    main()
