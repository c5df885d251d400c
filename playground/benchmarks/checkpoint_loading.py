"""Loading a checkpoint: memory of its own beside the size on disk, and time until the first logits.

What: a Llama + CLIP model of random bfloat16 weights is written twice with the same numbers, in our three folders and
as llava-hf, both in shards. Each is loaded in fresh processes, taking turns with transformers' own class on the
llava-hf folder. Files are in the page cache for all: a folder is read once before each process (a system that takes
pages back would else punish the folder that was read longest ago), and a first round is not counted.
Memory: RssAnon of /proc/self/status (the process's own pages; clean pages of mapped files, which the system may drop,
are not in it), sampled every 2 ms until the logits are there, less what was there before; the modules that are imported
meanwhile, about 0.15 GB, count. VmHWM is the peak with file pages.
Time: from the call of the loader to the logits of a short prompt with one picture, as mapped weights are read when they
are first used; torch and transformers are imported before.
Goals: own memory below 1.2 x the checkpoint; time at most 1.1 x that of transformers (median of the rounds' ratios).

    python -m playground.benchmarks.checkpoint_loading [--gigabytes 2] [--rounds 5] [--load-dtype auto]

Writes playground/benchmarks/results/checkpoint_loading_cpu.json; the folders are removed at the end.
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
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULT = Path(__file__).parent / "results" / "checkpoint_loading_cpu.json"
CASES = {"ours, three folders": "three", "ours, llava-hf": "hf", "transformers, llava-hf": "hf"}
PEER = "transformers, llava-hf"
TYPE = torch.bfloat16
SHARD = "500MB"
PICTURE, PATCH = 224, 14
IMAGE = 31_999
GOAL = {"own_memory_over_checkpoint": 1.2, "time_over_transformers": 1.1}


# ---- writing ----


def settings_for(num_bytes: int) -> dict[str, Any]:
    """Settings of a model of about that size: 1B shapes, or small ones below 1 GB; the layers make the size."""
    width, tower_width = (2048, 1024) if num_bytes >= 10**9 else (512, 256)
    table, layer = 2 * 32_000 * width, width**2 * (2 + 2 / 4 + 3 * 3)
    tower = 12 * 12 * tower_width**2
    layers = max(2, round((num_bytes / TYPE.itemsize - table - tower) / layer))
    return {
        "llm_cfg": {
            "model_type": "llama", "vocab_size": 32_000, "hidden_size": width, "intermediate_size": 3 * width,
            "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 256,
            "max_position_embeddings": 4096,
        },
        "vision_tower_cfg": {
            "model_type": "clip_vision_model", "image_size": PICTURE, "patch_size": PATCH, "hidden_size": tower_width,
            "intermediate_size": 4 * tower_width, "num_attention_heads": tower_width // 64, "num_hidden_layers": 12,
        },
        "mm_projector_cfg": "mlp2x_gelu",
        "image_token_id": IMAGE,
    }  # fmt: skip


def write_both(root: Path, num_bytes: int) -> int:
    """Both folders with the same weights, one tensor at a time; answers the bytes of the weights."""
    from llava.model.builder import build_model
    from llava.model.checkpoints.export_config import hf_config
    from llava.model.checkpoints.shards import write_shards

    with torch.device("meta"):
        model = build_model(settings_for(num_bytes), dtype=TYPE)
    parts: dict[str, Any] = {
        "llm": model.llm, "vision_tower": model.vision_tower.vision_tower, "mm_projector": model.mm_projector
    }  # fmt: skip
    everything = {}
    for part, module in parts.items():
        rows = {name: _writable(f"{part}.{name}", value) for name, value in module.state_dict().items()}
        write_shards(root / "three" / part, rows, SHARD)
        module.config.save_pretrained(str(root / "three" / part))
        everything |= {_published(part, name): row for name, row in rows.items()}
    model.config.save_pretrained(str(root / "three"))
    write_shards(root / "hf", everything, SHARD)
    config = hf_config(model, num_rows=32_000)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(str(root / "hf"))
    return sum(row.num_bytes for row in everything.values())


def _writable(name: str, value: torch.Tensor) -> Any:
    from llava.model.checkpoints.shards import Writable

    def make() -> torch.Tensor:
        """Small numbers that repeat: writing is not what is measured."""
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        block = (0.02 * torch.randn(2**16, generator=draw)).to(TYPE)
        count = value.numel()
        return block.repeat(-(-count // len(block)))[:count].reshape(value.shape)

    return Writable(shape=tuple(value.shape), dtype=TYPE, make=make)


def _published(part: str, name: str) -> str:
    """As files on the hub name it."""
    if part == "llm":
        return f"language_model.{name}"
    if part == "vision_tower":
        return f"vision_tower.vision_model.{name}"
    return "multi_modal_projector." + name.replace("layers.0.", "linear_1.").replace("layers.2.", "linear_2.")


# ---- one fresh process ----


def child(case: str, folder: Path, load_dtype: str) -> dict[str, Any]:
    """Figures of one load; the first logits are handed back to be compared."""
    import transformers  # noqa: F401  (imported before the clock starts, like torch)

    load = _load_theirs if case == PEER else _load_ours
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    before = _memory()
    with _Peak() as peak:
        start = time.perf_counter()
        run = load(folder, load_dtype)
        loaded = time.perf_counter() - start
        logits = run()
        usable = time.perf_counter() - start
    after = _memory()
    return {
        "seconds_loaded": loaded,
        "seconds_usable": usable,
        "own_peak_bytes": peak.highest - before["RssAnon"],
        "peak_with_file_pages_bytes": after["VmHWM"] - before["VmRSS"],
        "logits": logits[0, -1, :8].float().tolist(),
    }


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    slots = (PICTURE // PATCH) ** 2
    pixels = torch.linspace(-1, 1, 3 * PICTURE**2).reshape(1, 3, PICTURE, PICTURE)
    return torch.cat([torch.tensor([1, 5]), torch.full((slots,), IMAGE), torch.tensor([7, 9])])[None], pixels


def _load_ours(folder: Path, load_dtype: str) -> Callable[[], torch.Tensor]:
    from llava.model.checkpoints import ReadOptions, read_checkpoint

    model = read_checkpoint(folder, ReadOptions(dtype=load_dtype))
    ids, pixels = _inputs()
    return lambda: _no_grad(model, ids, pixels.to(model.dtype))


def _load_theirs(folder: Path, load_dtype: str) -> Callable[[], torch.Tensor]:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=load_dtype).eval()
    ids, pixels = _inputs()
    return lambda: _no_grad(model, ids, pixel_values=pixels.to(model.dtype))


@torch.no_grad()
def _no_grad(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return model(*args, **kwargs).logits


def _memory() -> dict[str, int]:
    """Bytes by name, of this process."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


class _Peak:
    """Highest RssAnon while it is open."""

    def __enter__(self) -> _Peak:
        self.highest, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.highest = max(self.highest, _memory()["RssAnon"])

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, _memory()["RssAnon"])


# ---- rounds ----


def _read_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**24):
                    pass


def spawn(case: str, root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    _read_all(root / CASES[case])
    command = [sys.executable, "-m", "playground.benchmarks.checkpoint_loading", "--child", case]
    command += ["--folder", str(root / CASES[case]), "--load-dtype", arguments.load_dtype]
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    if run.returncode:
        raise RuntimeError(f"{case}: the process ended with {run.returncode}:\n{run.stderr[-3000:]}")
    return {**json.loads(run.stdout.splitlines()[-1]), "seconds_process": time.perf_counter() - start}


def measure(root: Path, num_bytes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    first = {case: spawn(case, root, arguments) for case in CASES}
    _require_equal({case: row["logits"] for case, row in first.items()})
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(arguments.rounds):
        order = list(CASES)[number % 3 :] + list(CASES)[: number % 3]
        rounds.append({case: spawn(case, root, arguments) for case in order})
        sys.stderr.write(f"round {number + 1} of {arguments.rounds}\n")
    return {case: _summary(case, rounds, num_bytes) for case in CASES}


def _require_equal(logits: Mapping[str, list[float]]) -> None:
    for case, values in logits.items():
        worst = max(abs(a - b) for a, b in zip(values, logits[PEER], strict=True))
        if worst > 1e-2:
            raise RuntimeError(f"{case} computes other logits than {PEER} (by {worst:.3g}); nothing is measured")


def _summary(case: str, rounds: list[dict[str, dict[str, Any]]], num_bytes: int) -> dict[str, Any]:
    def middle(key: str) -> float:
        return statistics.median(row[case][key] for row in rounds)

    ratios = [row[case]["seconds_usable"] / row[PEER]["seconds_usable"] for row in rounds]
    return {
        "own_memory_over_checkpoint": round(max(row[case]["own_peak_bytes"] for row in rounds) / num_bytes, 3),
        "peak_with_file_pages_over_checkpoint": round(middle("peak_with_file_pages_bytes") / num_bytes, 3),
        "time_over_transformers": round(statistics.median(ratios), 3),
        "time_over_transformers_per_round": [round(ratio, 3) for ratio in ratios],
        "seconds_loaded": round(middle("seconds_loaded"), 3),
        "seconds_usable": round(middle("seconds_usable"), 3),
        "seconds_of_the_whole_process": round(middle("seconds_process"), 3),
    }


def head(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "checkpoint_loading",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m playground.benchmarks.checkpoint_loading", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "arguments": {"gigabytes": arguments.gigabytes, "rounds": arguments.rounds, "threads": arguments.threads,
                      "load_dtype": arguments.load_dtype, "stored_dtype": str(TYPE).removeprefix("torch.")},
        "goal": GOAL,
    }  # fmt: skip


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the weights (10^9 bytes)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load-dtype", default="auto", help="auto = as stored, or float32")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: the system's place)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.child:
        sys.stdout.write(json.dumps(child(arguments.child, arguments.folder, arguments.load_dtype)) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        num_bytes = write_both(Path(folder), int(arguments.gigabytes * 10**9))
        figures = measure(Path(folder), num_bytes, arguments)
    result = {**head(arguments), "checkpoint_bytes": num_bytes, "cases": figures}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
