"""The cost of the next-frame loss: a training step without it, with it, and with a straightforward version of it.

What: step time (forward, backward, AdamW) and peak memory of `sft` (no such loss), `default` and `documented` (the
    presets of `llava.model.autoregressive_reconstruction`) and `straightforward` (`nn.TransformerDecoder` in language
    width, float masks over all tokens, a teacher of its own), on one model and one batch, taking turns; with a frozen
    and with a tuned tower, for several numbers of frames and patches.
How ours differs: a frozen tower is its own teacher and runs once; the predictor is as narrow as the tower, reads pooled
    features, and attends by blocks of frames without any mask over tokens.
Checked before a clock starts: the language loss is the same in every arm, and a frozen tower runs once per step.
Goal at NaVILA-8B (8 x 196 tokens): default at most 1.02 x sft with a frozen tower, 1.08 x with a tuned one.

    python -m playground.benchmarks.reconstruction_cost                     # every width / 16, minutes on one CPU core
    python -m playground.benchmarks.reconstruction_cost --shape navila-8b --device cuda --dtype bfloat16
    python -m playground.benchmarks.reconstruction_cost --fit               # also: 8 x 729 tokens at real widths

Times on the CPU are CPU seconds of the process. Memory is measured in a fresh process per arm: on CUDA
`max_memory_allocated`, on the CPU the growth of resident memory over what the imports took.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from llava.batch import MultimodalBatch
from llava.model.autoregressive_reconstruction import create_autoregressive_reconstruction_module
from playground.benchmarks.reconstruction_arms import (
    ARMS,
    PRESETS,
    SHAPES,
    Arm,
    Shape,
    base_optimizer,
    build,
    forwards_of,
    make_batch,
)
from playground.benchmarks.reconstruction_flops import step_flops

RESULTS = Path(__file__).with_name("results")
GOAL = {"default, frozen tower": 1.02, "default, tuned tower": 1.08}
TOWERS = ("frozen", "tuned")
PHASES = ("forward", "backward", "optimizer")
REAL = SHAPES["navila-8b"]
DEFAULT_POINTS = {"sixteenth": ["8x13", "4x13", "8x20"], "navila-8b": ["8x27", "4x27", "16x27"], "tiny": ["3x5"]}
"""Frames x patches per side; 13 gives 49 tokens per frame, 20 gives 100, 27 gives 196."""


# ---- one step ----


class Clock:
    """CPU seconds of this process, which a busy machine does not stretch; on CUDA wall seconds of finished work."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device.startswith("cuda")

    def __call__(self) -> float:
        if not self.is_cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def step(arm: Arm, batch: MultimodalBatch, clock: Clock) -> dict[str, float]:
    """Seconds per phase of one training step."""
    times = [clock()]
    loss, _ = arm.losses(batch)
    times.append(clock())
    loss.backward()
    times.append(clock())
    arm.update()
    times.append(clock())
    return {name: times[i + 1] - times[i] for i, name in enumerate(PHASES)}


def check(arms: Sequence[Arm], batch: MultimodalBatch, tower: str) -> dict[str, dict[str, int]]:
    """A first step of every arm, not timed: forward passes of the live tower and of another one that gives targets, and
    operators run.

    Raises:
        RuntimeError: an arm computes another language loss than the first, or encodes pictures more often than it
            should; a comparison of their times would mean nothing.
    """
    counts: dict[str, dict[str, int]] = {}
    losses = {}
    for arm in arms:
        live = arm.model.vision_tower
        others = [arm.teacher] if arm.teacher is not None and arm.teacher is not live else []
        with forwards_of([live, *others]) as forwards, Operators() as operators:
            loss, main = arm.losses(batch)
            loss.backward()
        arm.update()
        losses[arm.name] = float(main)
        counts[arm.name] = {
            "tower_forwards": forwards[0],
            "teacher_forwards": sum(forwards[1:]),
            "operators": operators.count,
        }
        shares = arm.name in PRESETS and tower == "frozen"
        expected = 0 if shares or arm.name == "sft" else 1
        if (forwards[0], sum(forwards[1:])) != (1, expected):
            raise RuntimeError(f"{arm.name}, {tower} tower: forward passes {forwards}, expected 1 and {expected}")
    if any(abs(loss - losses[arms[0].name]) > 1e-6 * abs(loss) for loss in losses.values()):
        raise RuntimeError(f"the arms compute different language losses, {losses}; repair that first")
    return counts


class Operators(TorchDispatchMode):
    """Counts what is really computed, views left out: on a GPU about one kernel launch each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


# ---- rounds ----


def measure_times(shape: Shape, tower: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows by arm of one case."""
    model = build(shape, tuned_tower=tower == "tuned", device=options.device, dtype=getattr(torch, options.dtype))
    optimizer, batch, clock = base_optimizer(model), make_batch(shape, options.device), Clock(options.device)
    arms = [Arm(name, model, optimizer, shape) for name in options.arms]
    counts = check(arms, batch, tower)
    rounds = [{arm.name: step(arm, batch, clock) for arm in arms} for _ in range(options.rounds)]
    return {name: counts[name] | summary(name, rounds) for name in options.arms}


def summary(name: str, rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Medians; ratios are taken within a round."""
    first = next(iter(rounds[0]))
    seconds = [sum(timed[name].values()) for timed in rounds]
    ratios = [value / sum(timed[first].values()) for value, timed in zip(seconds, rounds, strict=True)]
    return {
        "seconds": round(statistics.median(seconds), 4),
        "seconds_per_round": [round(value, 4) for value in seconds],
        "time_ratio": round(statistics.median(ratios), 4),
        "time_ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        **{phase: round(statistics.median(timed[name][phase] for timed in rounds), 4) for phase in PHASES},
    }


def predictions(shape: Shape, arm: str, tower: str) -> dict[str, Any]:
    """What arithmetic says of this shape, and of NaVILA-8B with as many frames."""
    real = REAL.at(shape.frames, REAL.grid)
    return {
        "flops": step_flops(shape, arm, tuned_tower=tower == "tuned").shares(),
        "flops_navila_8b": step_flops(real, arm, tuned_tower=tower == "tuned").shares(),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the result file."""
    cases = []
    for point in options.points:
        shape = SHAPES[options.shape].at(*read_point(point))
        for tower in options.towers:
            peaks = {name: spawn(name, tower, point, options) for name in options.arms} if options.memory else {}
            rows = measure_times(shape, tower, options)
            for name, row in rows.items():
                row |= predictions(shape, name, tower) | peaks.get(name, {})
            size = {"frames": shape.frames, "tokens_per_frame": shape.tokens_per_frame, "patches": shape.patches}
            cases.append({"point": point, "tower": tower, **size, "rows": rows})
            sys.stderr.write(f"{point}, {tower} tower: done\n")
            if options.device.startswith("cuda"):
                torch.cuda.empty_cache()
    result = {**head(options), "shape": SHAPES[options.shape].to_dict(), "cases": cases}
    return result | ({"fit": spawn("fit", "frozen", "8x27", options)} if options.fit else {})


def read_point(point: str) -> tuple[int, int]:
    frames, _, grid = point.partition("x")
    if not (frames.isdigit() and grid.isdigit() and int(frames) > 1 and int(grid) > 0):
        raise ValueError(f"point is {point!r}, expected frames x patches per side with at least 2 frames, such as 8x13")
    return int(frames), int(grid)


def head(options: argparse.Namespace) -> dict[str, Any]:
    is_cuda = options.device.startswith("cuda")
    name = torch.cuda.get_device_name() if is_cuda else f"cpu, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "benchmark": "reconstruction_cost",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("llava", "torch", "transformers")},
        "device": name,
        "clock": "wall seconds" if is_cuda else "CPU seconds of the process",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "arguments": {key: str(value) for key, value in vars(options).items()},
        "goal": GOAL,
    }


# ---- one fresh process ----


def spawn(case: str, tower: str, point: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `child` in a process of its own."""
    command = [sys.executable, "-m", "playground.benchmarks.reconstruction_cost", "--child", case]
    command += ["--shape", options.shape, "--points", point, "--towers", tower, "--threads", str(options.threads)]
    command += ["--device", options.device, "--dtype", options.dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{case}, {tower} tower, {point}: ended with {run.returncode}:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def child(options: argparse.Namespace) -> dict[str, Any]:
    if options.child == "fit":
        return fit(options)
    shape = SHAPES[options.shape].at(*read_point(options.points[0]))
    with peak_memory(options.device) as peak:
        dtype = getattr(torch, options.dtype)
        model = build(shape, tuned_tower=options.towers[0] == "tuned", device=options.device, dtype=dtype)
        arm = Arm(options.child, model, base_optimizer(model), shape)
        batch, clock = make_batch(shape, options.device), Clock(options.device)
        for _ in range(2):  # the second step finds the optimizer's state
            step(arm, batch, clock)
    return {"peak_mib": peak["mib"]}


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """The module alone on 8 x 729 tokens in NaVILA-8B's widths: one step from given features and states."""
    frames, patches, width = REAL.frames, REAL.patches, REAL.width
    dtype = getattr(torch, options.dtype)
    draw = {"device": options.device, "dtype": dtype}
    ends = (torch.arange(frames)[None] + 1) * REAL.tokens_per_frame + 3
    clock = Clock(options.device)
    with peak_memory(options.device) as peak:
        tower = _Features(REAL)
        config = {"embedding_dim": None, "target_pool": 1, "num_heads": REAL.heads_of_loss}
        module = create_autoregressive_reconstruction_module(tower, width, config).to(options.device, dtype)
        states = torch.randn(1, REAL.sequence, width, **draw, requires_grad=True)
        features = torch.randn(1, frames, patches, REAL.tower_width, **draw)
        start = clock()
        loss = module(states, frame_features=features, frame_end_positions=ends).loss()
        loss.backward()
        seconds = clock() - start
    weights = sum(p.numel() for p in module.parameters())
    return {"tokens": frames * patches, "weights": weights, "dtype": options.dtype, "seconds": round(seconds, 2),
            "peak_mib": peak["mib"], "loss": round(loss.item(), 4)}  # fmt: skip


class _Features(torch.nn.Module):
    """The sizes of a frozen tower whose features are given."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hidden_size, self.num_patches = shape.tower_width, shape.patches
        self.image_size = shape.grid * shape.patch_size


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float]]:
    """Fills "mib" when it closes: the allocator's peak on CUDA, else what resident memory grew by at its highest."""
    found: dict[str, float] = {}
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        yield found
        found["mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    yield found
    found["mib"] = round((_resident("VmHWM") - before) / 1024, 1)


def _resident(name: str) -> int:
    """KiB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


# ---- output ----


def table(result: Mapping[str, Any]) -> Table:
    shape = result["shape"]["name"]
    shown = Table(box=box.SIMPLE_HEAD, title=f"training step with the next-frame loss, {shape}, {result['device']}")
    heads = ("frames x tokens", "arm", "x sft", "range", "x FLOPs", "8B: FLOPs", "s", "peak MiB", "+MiB", "teacher")
    for name in heads:
        shown.add_column(name, justify="left" if name in heads[:2] else "right")
    for case in result["cases"]:
        titles = [f"{case['frames']} x {case['tokens_per_frame']}", f"{case['tower']} tower"]
        first = next(iter(case["rows"].values()))
        for name, row in case["rows"].items():
            shown.add_row(titles.pop(0) if titles else "", name, *_cells(row, first.get("peak_mib")))
        shown.add_section()
    return shown


def _cells(row: Mapping[str, Any], least: float | None) -> list[str]:
    low, high = row["time_ratio_range"]
    peak = row.get("peak_mib")
    return [
        f"{row['time_ratio']:.3f}",
        f"{low:.2f}-{high:.2f}",
        f"{row['flops']['total']:.3f}",
        f"{row['flops_navila_8b']['total']:.3f}",
        f"{row['seconds']:.2f}",
        "-" if peak is None else f"{peak:,.0f}",
        "-" if peak is None or least is None else f"{peak - least:+,.0f}",
        str(row["teacher_forwards"]),
    ]


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="sixteenth", choices=sorted(SHAPES))
    parser.add_argument("--points", nargs="+", help="frames x patches per side, such as 8x13")
    parser.add_argument("--towers", nargs="+", default=list(TOWERS), choices=TOWERS)
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=ARMS, help="the first one is what others are compared with"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="no process per arm for its peak")
    parser.add_argument("--fit", action="store_true", help="also one step of the module on 8 x 729 tokens, real widths")
    parser.add_argument("--quick", action="store_true", help="tiny shape, one point, one round")
    parser.add_argument("--out", type=Path, help="default: results/reconstruction_cost-<shape>-<device>.json")
    parser.add_argument("--child", choices=(*ARMS, "fit"), help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.quick:
        options.shape, options.rounds = "tiny", 1
    options.points = options.points or DEFAULT_POINTS[options.shape]
    if options.rounds < 1:
        raise ValueError(f"rounds is {options.rounds}, expected at least 1")
    return options


def main(given: list[str] | None = None) -> dict[str, Any]:
    options = parse(given)
    torch.set_num_threads(options.threads)
    if options.child:
        result = child(options)
        sys.stdout.write(json.dumps(result) + "\n")
        return result
    result = measure(options)
    out = options.out or RESULTS / f"reconstruction_cost-{options.shape}-{options.device.split(':')[0]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=118).print(table(result))
    if "fit" in result:
        Console(width=118).print("8 x 729 tokens, module alone:", result["fit"])
    Console().print(f"written: {out}")
    return result


if __name__ == "__main__":
    main()
