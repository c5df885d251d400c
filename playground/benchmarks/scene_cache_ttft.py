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
import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from playground.benchmarks.scene_cache.bench import Bench, Machine, check
from playground.benchmarks.scene_cache.results import summarise, tables, verdict
from playground.benchmarks.scene_cache.rounds import probe, run_round
from playground.benchmarks.scene_cache.samples import Cells
from playground.benchmarks.scene_cache.shapes import CASES, SHAPES

RESULTS = Path(__file__).with_name("results")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the result file."""
    result: dict[str, Any] = head(options)
    machine = Machine(
        device=options.device, dtype=options.dtype, cache_mib=options.cache_mib, detector_ms=options.detector_ms
    )
    for case in CASES:
        if case in options.cases:
            size, num_frames = SHAPES[options.shape].of(case)
            result[case] = measure_case(case, Bench(size, num_frames, machine), options)
    return result


def measure_case(case: str, bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    shares = [share for share in options.shares if case == "picture" or share <= 0.75]
    cells: Cells = {}
    sizes: dict[str, Any] = {}
    check(bench)
    run_round(bench, case, shares[:1], -1, {}, {})  # warms up
    for number in range(options.rounds):
        run_round(bench, case, shares, number, cells, sizes)
        sys.stderr.write(f"{case}: round {number + 1} of {options.rounds}\n")
    found = {
        "frames": bench.num_frames,
        "tokens_per_picture": bench.model.tokens_per_image,
        "parameters": sum(weight.numel() for weight in bench.model.parameters()),
        "shares_on_grid": {f"{share:.2f}": round(bench.camera(share, 0).share, 3) for share in shares},
        "cells": summarise(cells),
        "verdict": verdict(cells, shares),
        "bytes": sizes,
    }
    return found | ({"probes": probe(bench, options.probes)} if case == "picture" else {})


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
