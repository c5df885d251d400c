"""From a JPEG on disk to pixels for the vision tower: this repository against transformers' SiglipImageProcessor.

What: pictures per second of one core, decoding included, on the same files in the same run, the two taking turns.
How ours differs: decoded by OpenCV, resized as uint8 by torch, normalised later on the device of the model.
Goal: at least 1.7 times as fast at no more than 1 grey level difference.

    python playground/benchmarks/image_pipeline.py [--pictures 48] [--rounds 5] [--size 384]

Writes playground/benchmarks/results/image_pipeline_cpu.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
import torchvision
import transformers
from PIL import Image
from transformers import SiglipImageProcessor

from llava.batch import VisualSpec
from llava.mm_utils import to_uint8_tensor
from llava.video.decode import read_picture

RESULT = Path(__file__).parent / "results" / "image_pipeline_cpu.json"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """640 x 480 JPEGs with smooth light, hard edges and a little sensor noise, as a room seen by a camera has."""
    paths = []
    y, x = np.mgrid[0:480, 0:640]
    for index in range(count):
        random = np.random.default_rng(index)
        light = np.stack([np.sin(x / random.integers(60, 200) + k) + np.cos(y / 90 - k) for k in range(3)], axis=-1)
        pixels = 128 + 50 * light
        for _ in range(12):
            left, top = random.integers(0, 600), random.integers(0, 440)
            pixels[top : top + random.integers(20, 200), left : left + random.integers(20, 200)] = random.integers(
                0, 255, 3
            )
        pixels += random.normal(0, 4, pixels.shape)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def seconds_of(work: Callable[[Path], Any], paths: list[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        work(path)
    return (time.perf_counter() - start) / len(paths)


def grey_levels(ours: torch.Tensor, theirs: torch.Tensor, spec: VisualSpec) -> torch.Tensor:
    """Absolute difference in grey levels between uint8 pixels and normalised ones."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.image_mean, spec.image_std))
    return (ours - (theirs * std + mean) * 255).abs()


def run(paths: list[Path], rounds: int, size: int) -> dict[str, Any]:
    spec = VisualSpec(image_size=size, tokens_per_image=1)
    processor = SiglipImageProcessor(size={"height": size, "width": size})

    def ours(path: Path) -> torch.Tensor:
        return to_uint8_tensor(read_picture(path), spec)

    def theirs(path: Path) -> torch.Tensor:
        return processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"][0]

    differences = [grey_levels(ours(path), theirs(path), spec) for path in paths]
    times: dict[str, list[float]] = {"ours": [], "transformers": []}
    for index in range(rounds):
        turns = [("ours", ours), ("transformers", theirs)]
        for name, work in turns if index % 2 == 0 else turns[::-1]:
            times[name].append(seconds_of(work, paths))
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["transformers"], strict=True)]
    return {
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_per_round": [round(ratio, 2) for ratio in ratios],
        "ms_per_picture": {name: round(1000 * statistics.median(values), 3) for name, values in times.items()},
        "pictures_per_second_and_core": {name: round(1 / statistics.median(values)) for name, values in times.items()},
        "max_grey_level_difference": round(max(float(d.max()) for d in differences), 3),
        "share_of_values_that_differ": float(torch.stack([(d > 0.5).float().mean() for d in differences]).mean()),
    }


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "pictures": f"{arguments.pictures} JPEG 640x480 quality 90 -> {arguments.size}x{arguments.size}",
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
        "goal": {"ratio": 1.7, "max_grey_level_difference": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(write_pictures(Path(folder), arguments.pictures), arguments.rounds, arguments.size)
    result = {**settings(arguments), **figures}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
