"""What the batches of an epoch cost, from lengths to the first batch, for data sets of millions of records.

    python -m playground.benchmarks.sampler_build --num-records 10000000

Goal: each sampler is built, and has the batches of an epoch ready, within 10 s for ten million records. Lengths are
log-normal (median 665 tokens, at most 8,192), one fifth is text only; of the three parts of the mixture the second is
drawn by half and the third twice. Time is CPU seconds of the process, which a busy machine does not stretch; memory is
the peak of what numpy and Python allocate beside the lengths themselves.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from llava.train.samplers import BatchPlan, LengthGroupedBatches, Mixture, PackedBatches, Shard, ShuffledBatches

RESULTS = Path(__file__).with_name("results")
GOAL_SECONDS = 10.0
SHARD = Shard(rank=3, world_size=8)
BATCH_SIZE, TOKENS_PER_BATCH = 16, 16384


def workload(num_records: int) -> tuple[Mixture, np.ndarray, np.ndarray]:
    """A mixture, the length of every record, and its modality."""
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(6.5, 0.8, num_records).astype(np.int64) + 20, 8192)
    modalities = (generator.random(num_records) > 0.2).astype(np.uint8)
    half, quarter = num_records // 2, num_records // 4
    sizes = (half, quarter, num_records - half - quarter)
    return Mixture(sizes=sizes, weights=(1.0, 0.5, 2.0)), lengths, modalities


def plans(num_records: int) -> dict[str, Callable[[], BatchPlan]]:
    mixture, lengths, modalities = workload(num_records)
    place: dict[str, Any] = {"seed": 1, "shard": SHARD}
    grouped = {"lengths": lengths, "batch_size": BATCH_SIZE, **place}
    return {
        "shuffle": lambda: ShuffledBatches(mixture, batch_size=BATCH_SIZE, **place),
        "length": lambda: LengthGroupedBatches(mixture, **grouped),
        "modality_length": lambda: LengthGroupedBatches(mixture, modalities=modalities, **grouped),
        "packed": lambda: PackedBatches(mixture, lengths=lengths, tokens_per_batch=TOKENS_PER_BATCH, **place),
    }


def measure(build: Callable[[], BatchPlan]) -> dict[str, Any]:
    """CPU seconds of building and of one epoch up to its first batch, then peak memory of the same in a second pass."""
    begin = time.process_time()
    plan = build()
    built = time.process_time()
    next(iter(plan))
    ready = time.process_time()
    del plan
    tracemalloc.start()
    plan = build()
    next(iter(plan))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "steps": len(plan),
        "build_seconds": round(built - begin, 3),
        "epoch_seconds": round(ready - built, 3),
        "peak_mib": round(peak / 2**20, 1),
    }


def report(result: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{result['arguments']['num_records']:,} records")
    for head in ("sampler", "steps per rank", "build CPU-s", "first epoch CPU-s", "peak MiB"):
        table.add_column(head, justify="left" if head == "sampler" else "right")
    for name, row in result["rows"].items():
        cells = (
            f"{row['steps']:,}",
            f"{row['build_seconds']:.2f}",
            f"{row['epoch_seconds']:.2f}",
            f"{row['peak_mib']:.0f}",
        )
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-records", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "sampler_build_cpu.json")
    options = parser.parse_args()
    if options.num_records < 4:
        parser.error(f"--num-records is {options.num_records}, expected at least 4")
    rows = {name: measure(build) for name, build in plans(options.num_records).items()}
    worst = max(row["build_seconds"] + row["epoch_seconds"] for row in rows.values())
    result = {
        "benchmark": "sampler_build",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("llava", "numpy")},
        "device": platform.processor() or "cpu",
        "clock": "CPU seconds of the process",
        "arguments": {"num_records": options.num_records},
        "goal_seconds": GOAL_SECONDS,
        "worst_seconds": round(worst, 3),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    Console().print(report(result))
    Console().print(f"slowest {worst:.1f} s, goal {GOAL_SECONDS:.0f} s; written: {options.out}")


if __name__ == "__main__":
    main()
