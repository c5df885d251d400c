"""Find the objects of many pictures once and write them beside the pictures, so that training runs no detector.

python scripts/make_object_masks.py photos --detector yolo --weights yolo11n-seg.pt --classes person cup
python scripts/make_object_masks.py train.json --media-dir photos --detector yolo --weights best.pt --format jsonl
python scripts/make_object_masks.py frames --detector motion --format png

A picture whose objects are there is not looked at again; the detector `precomputed` reads what is written.
Exit code 0: every picture has an answer; 1: some have none (their names are printed), or an error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from llava.scene.options import add_detector_flags, detector_options, read_background  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    head, examples = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="make_object_masks.py",
        description=head,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s SOURCE [--detector NAME] [its flags] [--format json|png|jsonl] [--overwrite]",
    )
    add = parser.add_argument
    add("source", type=Path, help="folder of pictures, or a record file (.json, .jsonl)")
    add("--media-dir", type=Path, help="folder of a record file's pictures (its own)")
    add("--format", choices=("json", "png", "jsonl"), default="json", help="COCO RLE, numbers, or one file for all")
    add("--out", type=Path, help="the .jsonl file (objects.jsonl beside the pictures)")
    add("--overwrite", action="store_true", help="find all objects again")
    add("--max-crashes", type=int, default=20, help="of the detector before the run ends (20)")
    add_detector_flags(parser, ("yolo", "motion"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("YOLO_OFFLINE", "true")  # ultralytics: no downloads, no usage reports, no pip install
    try:
        return run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"make_object_masks.py: error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from llava.scene.detector import GuardedDetector, build_detector
    from llava.scene.mask_writer import MaskStore, describe_detector, find_pictures, write_masks

    settings = detector_options(options)
    pictures, root = find_pictures(options.source, options.media_dir)
    store = MaskStore(options.format, root, describe_detector(options.detector, settings), options.out)
    detector = GuardedDetector(
        build_detector(options.detector, **read_background(settings)), max_crashes=options.max_crashes
    )
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(options.detector, total=len(pictures))
        summary = write_masks(
            pictures,
            detector,
            store,
            batch=options.batch or 16,
            overwrite=options.overwrite,
            progress=lambda s: bar.update(task, completed=s.written + s.reused + len(s.failures)),
        )
    print(summary)
    return int(bool(summary.failures))


if __name__ == "__main__":
    raise SystemExit(main())
