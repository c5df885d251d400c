"""Train a YOLO model from its YAML on the embedded world's true objects; nothing is downloaded, nothing leaves RUN.

python -m playground.scene.train_yolo --out runs/scene/yolo
python -m playground.scene.train_yolo --out runs/scene/quick --train 64 --val 32 --epochs 2 --model yolov8n.yaml
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.navigation.worlds import CameraProfile
from llava.utils import io
from playground.scene.yolo_data import VAL_SEED, PictureSet, write_yolo_data


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_yolo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="run folder: data, settings, best.pt, yolo.json")
    add("--model", default="yolo11n-seg.yaml", help="layers; with -seg it learns outlines, without it boxes")
    add("--train", type=int, default=1000, help="pictures (1000)")
    add("--val", type=int, default=300, help="pictures of other houses (300)")
    add("--level", default="one_room", help="one_room or multi_room")
    add("--pixels", type=int, default=64, help="side of the rendered pictures (64)")
    add("--imgsz", type=int, default=128, help="side to which the model enlarges them (128)")
    add("--epochs", type=int, default=60, help="at most (60)")
    add("--minutes", type=float, help="end the training after so many")
    add("--batch", type=int, default=16, help="pictures per step (16)")
    add("--device", default="cpu", help="cpu, or the number of a GPU")
    add("--seed", type=int, default=0, help="of houses and weights")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    if options.train < 1 or options.val < 1 or options.epochs < 1:
        print("train_yolo: error: --train, --val and --epochs must be at least 1", file=sys.stderr)
        return 1
    try:
        report = train(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"train_yolo: error: {error}", file=sys.stderr)
        return 1
    print(f"mAP50 {report['mAP50']:.3f}, mAP50-95 {report['mAP50_95']:.3f} on {options.val} pictures of other houses")
    print(f"wrote {options.out / 'best.pt'} and {options.out / 'yolo.json'} ({report['seconds']:.0f} s)")
    return 0


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Data, training, measurement; the report that `yolo.json` holds."""
    begin = time.monotonic()
    if not 0 <= options.seed * options.train <= VAL_SEED - options.train:
        raise ValueError(f"--seed {options.seed} walks into the houses of the validation pictures; take a smaller one")
    _keep_to_itself(options.out / "settings")
    from llava.scene.detectors.yolo import load_model

    model = load_model(options.model)
    camera = CameraProfile(width=options.pixels, height=options.pixels)
    first = options.seed * options.train  # other seeds walk through other houses
    parts = {
        "train": PictureSet(num_pictures=options.train, first_seed=first, level=options.level, camera=camera),
        "val": PictureSet(num_pictures=options.val, first_seed=VAL_SEED + first, level=options.level, camera=camera),
    }
    data = write_yolo_data(options.out / "data", parts, polygons=model.task == "segment")
    _fit(model, data, options)
    best = options.out / "train" / "weights" / "best.pt"
    shutil.copyfile(best, options.out / "best.pt")
    report = _measure(options.out / "best.pt", data, options)
    report |= {"seconds": time.monotonic() - begin, "arguments": {k: str(v) for k, v in vars(options).items()}}
    io.save(options.out / "yolo.json", report)
    return report


def _keep_to_itself(folder: Path) -> None:
    """ultralytics writes its settings here instead of the user's home, and asks the net for nothing.

    It looks for a font called Arial.ttf before every training and fetches it where it is missing; matplotlib's own
    font stands in for it.
    """
    font = folder / "Ultralytics" / "Arial.ttf"
    font.parent.mkdir(parents=True, exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"], os.environ["YOLO_OFFLINE"] = str(folder.resolve()), "true"
    from matplotlib import get_data_path

    shutil.copyfile(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", font)


def _fit(model: Any, data: Path, options: argparse.Namespace) -> None:
    budget = {} if options.minutes is None else {"time": options.minutes / 60}
    model.train(
        data=str(data),
        imgsz=options.imgsz,
        epochs=options.epochs,
        batch=options.batch,
        device=options.device,
        seed=options.seed,
        project=str(options.out.resolve()),
        name="train",
        exist_ok=True,
        pretrained=False,
        amp=False,  # its check would fetch a model
        workers=0,
        cache="ram",
        plots=False,
        val=False,  # measured once, at the end
        **budget,
    )


def _measure(weights: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    from llava.scene.detectors.yolo import load_model

    metrics = load_model(weights).val(
        data=str(data),
        imgsz=options.imgsz,
        batch=options.batch,
        device=options.device,
        workers=0,
        plots=False,
        project=str(options.out.resolve()),
        name="val",
        exist_ok=True,
        verbose=False,
    )
    report = {"mAP50": float(metrics.box.map50), "mAP50_95": float(metrics.box.map), "model": options.model}
    if hasattr(metrics, "seg"):
        report |= {"mask_mAP50": float(metrics.seg.map50), "mask_mAP50_95": float(metrics.seg.map)}
    return report


if __name__ == "__main__":
    raise SystemExit(main())
