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
from playground.scene.measure_yolo import cells_at, measure
from playground.scene.yolo_data import HOUSES_AT_ONCE, MOST_HOUSES, VAL_SEED, PictureSet, write_yolo_data

MODEL = Path(__file__).with_name("embedded-seg.yaml")

FEW_STEPS = {
    "optimizer": "AdamW",
    "momentum": 0.9,
    "lrf": 0.02,
    "warmup_epochs": 0.3,
    "warmup_bias_lr": 0.0,
}
"""For thousands of steps, not for the hundreds of thousands that ultralytics' own values are made for."""
AS_RENDERED = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "scale", "translate", "close_mosaic"), 0)
"""The renderer makes hundreds of pictures in a second, all as the robot sees them, so none need be made of others.
Mosaics cut and shrink objects that have few pixels as it is; other colours hide that walls are dull and objects are
not. Mirrored rooms are rooms."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_yolo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="run folder: data, settings, best.pt, yolo.json")
    add("--model", default=str(MODEL), help="layers (embedded-seg.yaml); with -seg it learns outlines, else boxes")
    add("--train", type=int, default=3000, help="pictures (3000)")
    add("--val", type=int, default=300, help="pictures of other houses (300)")
    add("--level", default="one_room", help="one_room or multi_room")
    add("--pixels", type=int, default=64, help="side of the rendered pictures (64)")
    add("--imgsz", type=int, default=128, help="side to which they are enlarged for the model, a multiple of 32 (128)")
    add("--epochs", type=int, default=15, help="without --minutes (15)")
    add("--minutes", type=float, help="of training; the number of epochs and the falling learning rate follow from it")
    add("--batch", type=int, default=16, help="pictures per step (16)")
    add("--lr", type=float, default=0.004, help="highest learning rate (0.004)")
    add("--one-class", action="store_true", help="all shapes are one class")
    add("--device", default="cpu", help="cpu, or the number of a GPU")
    add("--seed", type=int, default=0, help="of houses and weights")
    add("--patch-size", type=int, default=8, help="pixels of the patches whose recall is measured (8)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        report = train(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"train_yolo: error: {error}", file=sys.stderr)
        return 1
    boxes, cells = report["boxes"], cells_at(report)
    print(f"{options.val} pictures of other houses: mAP50 {boxes['mAP50']:.3f}, of any class {boxes['mAP50_any']:.3f}")
    shares = f"object cells found {cells['recall']:.1%}, background cells taken {cells['false_share']:.1%}"
    print(f"at confidence {cells['confidence']}: {shares}")
    print(f"wrote {options.out / 'best.pt'} and {options.out / 'yolo.json'} ({report['seconds']:.0f} s)")
    return 0


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Data, training, measurement; the report that `yolo.json` holds."""
    _check(options)
    begin, cpu = time.monotonic(), time.process_time()
    keep_to_itself(options.out / "settings")
    from llava.scene.detectors.yolo import load_model

    model = load_model(options.model)
    parts = picture_sets(options)
    data = write_yolo_data(options.out / "data", parts, polygons=model.task == "segment")
    fitted = time.monotonic()
    _fit(model, data, options)
    fitted = time.monotonic() - fitted
    shutil.copyfile(options.out / "train" / "weights" / "best.pt", options.out / "best.pt")
    report = measure(options.out, data, parts["val"], options)
    report |= {
        "training_seconds": fitted,
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }
    report |= {"arguments": {name: str(value) for name, value in vars(options).items()}}
    io.save(options.out / "yolo.json", report)
    return report


def _check(options: argparse.Namespace) -> None:
    for name in ("train", "val", "epochs", "batch", "patch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if options.minutes is not None and options.minutes <= 0:
        raise ValueError(f"--minutes is {options.minutes:g}, expected more than 0; leave it out for --epochs")
    if options.imgsz % 32 or options.imgsz < 32:
        raise ValueError(f"--imgsz is {options.imgsz}, expected a multiple of 32")
    if not 0 <= options.seed * options.train <= VAL_SEED - MOST_HOUSES * (options.train + HOUSES_AT_ONCE):
        raise ValueError(f"--seed {options.seed} walks into the houses of the validation pictures; take a smaller one")


def picture_sets(options: argparse.Namespace) -> dict[str, PictureSet]:
    """Another seed walks through other houses; no house is in both parts."""
    camera = CameraProfile(width=options.pixels, height=options.pixels)
    first = options.seed * options.train
    return {
        "train": PictureSet(num_pictures=options.train, first_seed=first, level=options.level, camera=camera),
        "val": PictureSet(num_pictures=options.val, first_seed=VAL_SEED + first, level=options.level, camera=camera),
    }


def keep_to_itself(folder: Path) -> None:
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
        nbs=options.batch,  # a step after every batch; by default only after 64 pictures
        lr0=options.lr,
        device=options.device,
        seed=options.seed,
        project=str(options.out.resolve()),
        name="train",
        exist_ok=True,
        single_cls=options.one_class,
        pretrained=False,
        amp=False,  # its check would fetch a model
        workers=0,
        cache="ram",
        plots=False,
        val=False,  # measured once, at the end
        **FEW_STEPS,
        **AS_RENDERED,
        **budget,
    )


if __name__ == "__main__":
    raise SystemExit(main())
