"""vila-world: write data sets of the embedded world, or look at it.

vila-world write --level one_room --out runs/data --houses 1000 --width 64 --height 64
vila-world show --level multi_room --out house.png --seed 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEVELS = ("one_room", "multi_room")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vila-world", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="one split as frames, annotations and episode files")
    show = commands.add_parser("show", help="demonstrated episodes as one picture: map and views")
    for command in (write, show):
        add = command.add_argument
        add("--level", default="one_room", help="one_room or multi_room (default one_room)")
        add("--out", type=Path, required=True, help="folder of the data set, or the picture to write")
        add("--seed", type=int, default=0, help="first house of the split (default 0)")
        add("--split", default="train", help="train, val_unseen or test: disjoint houses (default train)")
        add("--noise", type=float, default=None, help="share of decisions replaced by random moves (default 0.15)")
        add("--detours", type=float, default=0.0, help="share of episodes led to a wrong object (default 0)")
        add("--width", type=int, default=64, help="pixels (default 64)")
        add("--height", type=int, default=64, help="pixels (default 64)")
        add("--camera-height", type=float, default=1.25, help="metres above the floor (default 1.25)")
        add("--pitch", type=float, default=0.0, help="degrees, positive looks up (default 0)")
        add("--hfov", type=float, default=90.0, help="horizontal field of view in degrees (default 90)")
        add("--houses", type=int, default=1000 if command is write else 4, help="number of houses")
    _add_write_options(write)
    return parser


def _add_write_options(write: argparse.ArgumentParser) -> None:
    add = write.add_argument
    add("--frames", choices=("filmstrip", "files", "none"), help="default: filmstrip for train, none for other splits")
    add("--picture-format", choices=("auto", "png", "jpg"), default="auto", help="of filmstrips")
    add("--random-camera", action="store_true", help="draw height, pitch and field of view per episode")
    add("--oversample", action="store_true", help="copy stops x3 and turns of 30 and 45 degrees x2 as NaVILA does")
    add("--object-masks", action="store_true", help="also write which object each pixel shows (scene_split)")
    add("--depth", action="store_true", help="also write the depth of every frame (a second target of the training)")
    add("--grounding-frames", type=int, default=2, help="pictures per episode with questions about objects")
    add("--threads", type=int, default=2, help="that write pictures")


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(sys.argv[1:] if arguments is None else list(arguments))
    try:
        return _write(options) if options.command == "write" else _show(options)
    except (ValueError, KeyError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"vila-world: error: {text}", file=sys.stderr)
        return 1


def _camera(options: argparse.Namespace) -> Any:
    from llava.navigation.worlds.base import CameraProfile

    return CameraProfile(
        height_m=options.camera_height,
        pitch_deg=options.pitch,
        hfov_deg=options.hfov,
        width=options.width,
        height=options.height,
    )


def _write(options: argparse.Namespace) -> int:
    from llava.navigation.worlds.dataset_writer import CameraRange, write_dataset

    summary = write_dataset(
        options.out,
        options.level,
        options.houses,
        progress=lambda done, total: print(f"{done}/{total} episodes", flush=True),
        split=options.split,
        seed=options.seed,
        camera=_camera(options),
        camera_range=CameraRange() if options.random_camera else None,
        noise=0.15 if options.noise is None else options.noise,
        detours=options.detours,
        frames=options.frames,
        picture_format=options.picture_format,
        oversample=options.oversample,
        grounding_frames=options.grounding_frames,
        depth=options.depth,
        object_masks=options.object_masks,
        threads=options.threads,
    )
    for answer, count in summary.answers.items():
        print(f"{count:9d}  {answer}")
    how = "already there with the same settings, kept" if summary.reused else f"written in {summary.seconds:.1f} s"
    print(f"{summary.num_episodes} episodes, {summary.num_frames} frames, {summary.num_records} records: {how}")
    return 0


def _show(options: argparse.Namespace) -> int:
    import numpy as np
    from PIL import Image

    from llava.navigation.worlds.dataset_writer import SPLIT_SEEDS
    from llava.navigation.worlds.demonstrations import demonstrate
    from llava.navigation.worlds.episodes import episodes_of
    from llava.navigation.worlds.pictures import draw_demonstration

    camera = _camera(options)
    seeds = SPLIT_SEEDS[options.split] + options.seed + np.arange(options.houses)
    walks = demonstrate(options.level, seeds, camera, noise=options.noise or 0.0, detours=options.detours)
    sheets = []
    for e, episode in enumerate(episodes_of(walks, camera)):
        frames = walks.render(np.arange(walks.frame_start[e], walks.frame_start[e + 1]), camera)
        sheets.append(draw_demonstration(walks, e, episode, frames.rgb))
    size = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    page, top = Image.new("RGB", size, "white"), 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    page.save(options.out)
    print(f"{options.out}: {len(sheets)} episodes of {options.level}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
