"""One pass of training steps, ours beside transformers' LLaVA, with the same weights and samples in one process.

    python -m playground.benchmarks.train_step                      # seconds on two CPU cores
    python -m playground.benchmarks.train_step --size 1b --device cuda --dtype bfloat16

Every variant sees every sample once; a step is forward, backward and an AdamW update. Before any clock starts, the
loss of each variant must equal the peer's padded loss. Rounds are interleaved (A B C A B C ...); medians and spreads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llava.batch import MultimodalBatch
from playground.benchmarks.hf_peer import build_ours, peer_of
from playground.benchmarks.workload import SIZES, arrange, count_tokens, make_samples

RESULTS = Path(__file__).with_name("results")
LOSS_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-3}


@dataclass(kw_only=True)
class Variant:
    """A model, an arrangement of the samples, and how the model takes a batch."""

    name: str
    model: Any
    batches: Sequence[MultimodalBatch]
    as_inputs: Callable[[MultimodalBatch], dict[str, Any]]
    optimizer: torch.optim.Optimizer

    def run(self, supervised: int, *, update: bool = True) -> float:
        """One pass over all samples; the loss is the mean over all supervised tokens of the pass."""
        total = torch.zeros((), device=next(self.model.parameters()).device)
        for batch in self.batches:
            loss = self.model(**self.as_inputs(batch), num_items_in_batch=supervised).loss
            loss.backward()
            total += loss.detach()
            if update:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return float(total)


def our_inputs(batch: MultimodalBatch) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


class PeerInputs:
    """What transformers' LLaVA takes: normalised pictures (made before the clock starts), no packing fields."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]
        self.dtype = dtype
        self._ready: dict[int, Tensor] = {}

    def __call__(self, batch: MultimodalBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "labels": batch["labels"], "use_cache": False}
        if "segment_ids" in batch and len(batch["input_ids"]) == 1 and int(batch["segment_ids"].max()) > 0:
            inputs["position_ids"] = batch["position_ids"]  # it finds the borders of packed samples in these
        else:
            inputs["attention_mask"] = batch["attention_mask"].long()
        if len(batch.get("images", ())):
            inputs["pixel_values"] = self._pixels(batch["images"])
        return inputs

    def _pixels(self, images: Tensor) -> Tensor:
        key = images.data_ptr()
        if key not in self._ready:
            mean, std = self.mean.to(images.device), self.std.to(images.device)
            self._ready[key] = ((images / 255 - mean) / std).to(self.dtype)
        return self._ready[key]


def make_variants(options: argparse.Namespace) -> tuple[list[Variant], dict[str, int]]:
    """All compared variants on copies of the same weights, and facts about the samples."""
    size, dtype = SIZES[options.size], getattr(torch, options.dtype)
    torch.manual_seed(0)
    ours = build_ours(size)
    peer = peer_of(ours)
    samples = make_samples(options.samples, size, ours.tokens_per_image)
    tower = ours.vision_tower
    models = {"ours": ours, "transformers": peer}
    takes = {"ours": our_inputs, "transformers": PeerInputs(tower.image_mean, tower.image_std, dtype)}
    for model in models.values():
        model.to(options.device, dtype).train()
    variants = []
    for arrangement in ("padded", "grouped", "packed"):
        batches = arrange(samples, arrangement, batch_size=options.batch_size, row=options.row)
        batches = [_to(batch, options.device) for batch in batches]
        for name, model in models.items():
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
            variants.append(
                Variant(
                    name=f"{name}, {arrangement}",
                    model=model,
                    batches=batches,
                    as_inputs=takes[name],
                    optimizer=optimizer,
                )
            )
    real, _ = count_tokens(variants[0].batches)
    supervised = sum(int((sample["labels"] != -100).sum()) for sample in samples)
    pictures = sum(len(sample["images"]) for sample in samples)
    return variants, {
        "samples": len(samples),
        "real_tokens": real,
        "supervised_tokens": supervised,
        "pictures": pictures,
    }


def _to(batch: MultimodalBatch, device: str) -> MultimodalBatch:
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return MultimodalBatch(**moved)  # pyright: ignore[reportArgumentType]


def check_equal(variants: Sequence[Variant], supervised: int, tolerance: float) -> dict[str, float]:
    """Loss of one pass without updates, by variant.

    Raises:
        ValueError: a variant computes another loss than the first; a comparison of their speeds would mean nothing.
    """
    losses = {variant.name: variant.run(supervised, update=False) for variant in variants}
    expected = next(iter(losses.values()))
    different = {name: loss for name, loss in losses.items() if abs(loss - expected) > tolerance * abs(expected)}
    if different:
        raise ValueError(
            f"losses differ from {expected:.7f} by more than {tolerance:g}: {different}; repair that first"
        )
    return losses


def saved_bytes(variant: Variant, supervised: int) -> int:
    """Largest sum of tensors that a forward pass keeps for the backward pass: memory, counted without an allocator."""
    worst = 0
    weights = {parameter.data_ptr() for parameter in variant.model.parameters()}
    for batch in variant.batches:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            variant.model(**variant.as_inputs(batch), num_items_in_batch=supervised).loss.backward()
        variant.optimizer.zero_grad(set_to_none=True)
        worst = max(worst, sum(kept.values()))
    return worst


def count_flops(variant: Variant, supervised: int) -> int:
    """Multiplications and additions of one pass; attention by the math kernel, which the counter can see."""
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        variant.run(supervised, update=False)
    return counter.get_total_flops()


def time_rounds(variants: Sequence[Variant], supervised: int, rounds: int, device: str) -> dict[str, dict[str, Any]]:
    """Seconds per pass of interleaved rounds, after one that is not counted; peak memory on a CUDA device.

    On the CPU these are CPU seconds of this process, which a busy machine does not stretch.
    """
    rows: dict[str, dict[str, Any]] = {variant.name: {"seconds": []} for variant in variants}
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    for number in range(rounds + 1):
        for variant in variants:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            begin = clock()
            variant.run(supervised)
            if cuda:
                torch.cuda.synchronize()
            if number:
                rows[variant.name]["seconds"].append(clock() - begin)
            if cuda:
                rows[variant.name]["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the result file."""
    variants, facts = make_variants(options)
    supervised, real = facts["supervised_tokens"], facts["real_tokens"]
    losses = check_equal(variants, supervised, LOSS_TOLERANCE[options.dtype])
    rows = {}
    for variant in variants:
        rows[variant.name] = {
            "loss": losses[variant.name],
            "positions": count_tokens(variant.batches)[1],
            "mflop_per_real_token": round(count_flops(variant, supervised) / real / 1e6, 2),
            "saved_for_backward_mib": round(saved_bytes(variant, supervised) / 2**20, 1),
        }
    for name, timed in time_rounds(variants, supervised, options.rounds, options.device).items():
        median = statistics.median(timed["seconds"])
        rows[name] |= {
            **timed,
            "real_tokens_per_second": round(real / median, 1),
            "spread": round((max(timed["seconds"]) - min(timed["seconds"])) / median, 3),
        }
    fastest_padded = rows["transformers, padded"]["real_tokens_per_second"]
    for row in rows.values():
        row["times_transformers_padded"] = round(row["real_tokens_per_second"] / fastest_padded, 2)
    return {
        "benchmark": "train_step",
        **surroundings(options),
        **facts,
        "model": asdict(SIZES[options.size]),
        "rows": rows,
    }


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """Date, versions, machine and arguments."""
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("llava", "torch", "transformers")},
        "device": device,
        "clock": "wall seconds" if options.device.startswith("cuda") else "CPU seconds of the process",
        "threads": torch.get_num_threads(),
        "arguments": {key: str(value) for key, value in vars(options).items()},
    }


def table(result: dict[str, Any]) -> Table:
    """Rows in the order in which they were measured."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"training step, {result['real_tokens']:,} real tokens per pass")
    per = "s" if result["clock"].startswith("wall") else "CPU-s"
    heads = (
        "",
        f"real tokens/{per}",
        "x padded peer",
        "positions",
        "MFLOP/token",
        "kept MiB",
        "peak GiB",
        "spread",
        "loss",
    )
    for head in heads:
        shown.add_column(head, justify="left" if not head else "right")
    for name, row in result["rows"].items():
        shown.add_row(
            name,
            f"{row['real_tokens_per_second']:,.0f}",
            f"{row['times_transformers_padded']:.2f}",
            f"{row['positions']:,}",
            f"{row['mflop_per_real_token']:.1f}",
            f"{row['saved_for_backward_mib']:.0f}",
            str(row.get("peak_gib", "-")),
            f"{row['spread']:.0%}",
            f"{row['loss']:.6f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="cpu", choices=sorted(SIZES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(LOSS_TOLERANCE))
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--row", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--out", type=Path, help="result file (default: results/train_step-<size>-<device>.json)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(options)
    out = options.out or RESULTS / f"train_step-{options.size}-{options.device.split(':')[0]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=130).print(table(result))
    Console().print(f"written: {out}")


if __name__ == "__main__":
    main()
