"""What becomes of a picture, step by step, as a PNG and a page: original, objects, mask, patches, cache hits.

python -m llava.scene.draw hall.png --detector yolo --weights best.pt --side 336 --patch-size 14 --out runs/scene
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from llava.batch import VisualSpec
from llava.scene.detections import Detections
from llava.scene.geometry import ViewMap, picture_views
from llava.scene.options import add_detector_flags, detector_options, read_background
from llava.scene.page import Panel, write_page, write_sheet
from llava.scene.patch_mask import PatchMask, PatchRule, to_patches, touched_bins
from llava.scene.view_pixels import fill_colour, view_pixels

HIT_COLOURS = {"reused": (44, 160, 90), "recomputed": (240, 160, 40), "stale": (214, 60, 60)}
OBJECT, BACKGROUND, LINE = (240, 120, 30), (40, 110, 200), (255, 255, 255)
SHOWN_SIDE = 336
"""Pixels to which small pictures are enlarged, by whole factors."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture, what was found in it, and the model for which it is cut.

    hit_map: for every view and every cell or patch of it "reused", "recomputed" or "stale"; None = no cache was asked.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    found: Detections
    spec: VisualSpec
    rule: PatchRule
    hit_map: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.found.height, self.found.width) != self.picture.shape[:2]:
            raise ValueError(
                f"the objects are of a picture of {self.found.height} x {self.found.width}, this one has "
                f"{self.picture.shape[0]} x {self.picture.shape[1]}"
            )


def draw_scene(scene: Scene) -> list[list[Panel]]:
    """Rows of panels: the picture and its objects, then a row for each view that the tower reads."""
    mask, shown = scene.found.pixel_mask(), _enlarge(scene.picture)
    height, width = scene.picture.shape[:2]
    first = [
        Panel("original", f"{width} x {height}", shown),
        Panel("detector", _told(scene.found), _draw_boxes(shown, scene.found)),
        Panel("combined mask", f"{mask.mean():.1%} of the pixels", _enlarge(_black_white(mask))),
    ]
    views = picture_views(scene.spec, height, width)
    hits = _hits_of_views(scene.hit_map, len(views))
    return [first, *(_draw_view(scene, mask, view, hit) for view, hit in zip(views, hits, strict=True))]


def _draw_view(scene: Scene, mask: Bool[np.ndarray, "h w"], view: ViewMap, hits: np.ndarray | None) -> list[Panel]:
    pixels = view_pixels(scene.picture, view, fill_colour(scene.spec))
    patches, rule = to_patches(mask, view, scene.rule), scene.rule
    num_objects, total = int(patches.cells.sum()), patches.cells.size
    unit = f"{rule.cell} x {rule.cell} patches" if rule.cell > 1 else "patch"
    panels = [
        Panel("model input", f"{view.side} x {view.side}, {scene.spec.aspect_mode}", _enlarge(pixels)),
        Panel(
            "mask at model size",
            "pixels that an object can change",
            _enlarge(_black_white(touched_bins(mask, view, 1))),
        ),
        Panel(
            "patch mask", f"{len(patches.patches)} x {len(patches.patches)} patches", _patch_mask(pixels, patches, rule)
        ),
        Panel(
            "background / object",
            f"{total - num_objects} / {num_objects} tokens (1 = {unit})",
            _overlay(pixels, patches, rule),
        ),
    ]
    if hits is not None:
        told = ", ".join(f"{(hits == name).sum()} {name}" for name in HIT_COLOURS)
        panels.append(Panel("cache", told, _hit_picture(pixels, patches, rule, hits)))
    return panels


def _told(found: Detections) -> str:
    if found.failure is not None:
        return f"failed, taken as a whole: {found.failure}"
    counts = {name: found.names.count(name) for name in dict.fromkeys(found.names)}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no objects"


def _enlarge(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    factor = max(1, SHOWN_SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _black_white(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(np.where(mask, 255, 30).astype(np.uint8)[..., None], 3, axis=2)


def _tint(pixels: np.ndarray, where: np.ndarray, colour: Sequence[int], strength: float = 0.45) -> np.ndarray:
    mixed = pixels * (1 - strength) + np.array(colour) * strength
    return np.where(where[..., None], mixed.astype(np.uint8), pixels)


def _draw_boxes(shown: UInt8[np.ndarray, "_ _ 3"], found: Detections) -> UInt8[np.ndarray, "_ _ 3"]:
    factor, found = shown.shape[0] // found.height, found.visible()
    if found.masks is not None and len(found):
        union = found.masks.any(axis=0).repeat(factor, axis=0).repeat(factor, axis=1)
        shown = _tint(shown, union, OBJECT, 0.25)
    image = Image.fromarray(shown)
    draw = ImageDraw.Draw(image)
    for box, name, score in zip(found.boxes, found.names, found.scores, strict=True):
        left, top, right, bottom = (float(value) * factor for value in box)
        draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=OBJECT, width=2)
        place = (min(max(left, 2), image.width - 60), min(max(top - 14, 2), image.height - 14))
        draw.text(place, f"{name} {score:.2f}", fill=LINE, stroke_width=2, stroke_fill=(30, 30, 30))
    return np.asarray(image)


def _per_pixel(values: np.ndarray, length: int, pixels: np.ndarray) -> np.ndarray:
    """A value per square of `length` pixels spread over the pixels of a view; 0 beyond the last whole square."""
    height, width = pixels.shape[:2]
    spread = np.zeros((height, width), dtype=values.dtype)
    wide = values.repeat(length, axis=0).repeat(length, axis=1)[:height, :width]
    spread[: wide.shape[0], : wide.shape[1]] = wide
    return spread


def _patch_mask(pixels: np.ndarray, patches: PatchMask, rule: PatchRule) -> UInt8[np.ndarray, "_ _ 3"]:
    flat = _black_white(_per_pixel(patches.patches, rule.patch_size, pixels))
    return _with_grid(flat, rule, (110, 110, 110))


def _overlay(pixels: np.ndarray, patches: PatchMask, rule: PatchRule) -> UInt8[np.ndarray, "_ _ 3"]:
    is_object = _per_pixel(patches.patches, rule.patch_size, pixels)
    return _with_grid(_tint(_tint(pixels, is_object, OBJECT), ~is_object, BACKGROUND), rule, LINE)


def _hit_picture(
    pixels: np.ndarray, patches: PatchMask, rule: PatchRule, hits: np.ndarray
) -> UInt8[np.ndarray, "_ _ 3"]:
    lengths = {patches.patches.shape: rule.patch_size, patches.cells.shape: rule.patch_size * rule.cell}
    if hits.shape not in lengths:
        raise ValueError(f"the hit map has shape {hits.shape}, expected patches or cells: {list(lengths)}")
    if unknown := sorted(set(hits.ravel().tolist()) - set(HIT_COLOURS)):
        raise ValueError(f"the hit map says {unknown[:3]}, expected {list(HIT_COLOURS)}")
    for name, colour in HIT_COLOURS.items():
        pixels = _tint(pixels, _per_pixel(hits == name, lengths[hits.shape], pixels), colour, 0.55)
    return _with_grid(pixels, rule, LINE)


def _with_grid(pixels: np.ndarray, rule: PatchRule, colour: Sequence[int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Enlarged, with thin lines between patches and thick ones between cells."""
    image = Image.fromarray(_enlarge(pixels))
    step = rule.patch_size * (image.width // pixels.shape[1])
    draw = ImageDraw.Draw(image)
    for number in range(1, image.width // step + 1):
        thick = 2 if rule.cell > 1 and number % rule.cell == 0 else 1
        draw.line((number * step, 0, number * step, image.height), fill=tuple(colour), width=thick)
        draw.line((0, number * step, image.width, number * step), fill=tuple(colour), width=thick)
    return np.asarray(image)


def _hits_of_views(hit_map: np.ndarray | None, num_views: int) -> list[np.ndarray | None]:
    if hit_map is None:
        return [None] * num_views
    hits = hit_map[None] if hit_map.ndim == 2 else hit_map
    if hits.ndim != 3 or len(hits) != num_views:
        raise ValueError(
            f"the hit map has shape {hit_map.shape}, expected [views, rows, columns] with {num_views} views"
        )
    return list(hits)


def read_hit_map(path: Path) -> np.ndarray:
    """From .npy, or .json with nested lists of words."""
    hits = np.load(path) if path.suffix == ".npy" else np.array(json.loads(path.read_text()))
    if hits.dtype.kind != "U":
        raise ValueError(f"{path} holds {hits.dtype}, expected rows of equal length with the words {list(HIT_COLOURS)}")
    return hits


def write_scene(scene: Scene, out: Path, name: str, facts: Sequence[str] = ()) -> tuple[Path, Path]:
    """`NAME.png` and the self-contained `NAME.html` in the folder `out`."""
    rows = draw_scene(scene)
    legend = {"object": OBJECT, "background": BACKGROUND} | ({} if scene.hit_map is None else HIT_COLOURS)
    return write_sheet(rows, out / f"{name}.png"), write_page(rows, out / f"{name}.html", name, facts, legend)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llava.scene.draw", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, help="one, or the clip that the detector 'motion' wants")
    add("--out", type=Path, required=True, help="folder for NAME.png and NAME.html")
    add("--hit-map", type=Path, help=".npy or .json: reused, recomputed or stale per patch or cell")
    add_detector_flags(parser, ("yolo", "motion", "precomputed"))
    group = parser.add_argument_group("model")
    group.add_argument("--side", type=int, default=336, help="pixels of the tower's pictures (336)")
    group.add_argument("--patch-size", type=int, default=14, help="pixels (14)")
    group.add_argument("--mode", choices=("resize", "pad", "crop", "dynamic"), default="resize", help="image mode")
    group.add_argument("--cell", type=int, default=1, help="patches on a side that become one token (1)")
    group.add_argument("--dilation", type=int, default=0, help="cells by which objects grow (0)")
    group.add_argument("--min-share", type=float, default=0.0, help="covered share of an object patch (0 = any)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("YOLO_OFFLINE", "true")  # ultralytics: no downloads, no usage reports, no pip install
    try:
        for path in draw_files(options):
            sys.stdout.write(f"wrote {path}\n")
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"llava.scene.draw: error: {error}\n")
        return 1
    return 0


def draw_files(options: argparse.Namespace) -> list[Path]:
    """What the command does; the files that it wrote."""
    from llava.scene.detector import build_detector

    settings = detector_options(options)
    pictures = [np.array(_read_rgb(path)) for path in options.pictures]
    detector = build_detector(options.detector, **read_background(settings))
    answers = detector.detect(pictures, options.pictures)
    hit_map = None if options.hit_map is None else read_hit_map(options.hit_map)
    spec = VisualSpec(image_size=options.side, tokens_per_image=1, aspect_mode=options.mode)
    rule = PatchRule(
        patch_size=options.patch_size,
        cell=options.cell,
        dilation=options.dilation,
        min_share=options.min_share,
        bit_exact=options.min_share == 0,
    )
    facts = [f"detector: {options.detector} {_as_text(settings)}", f"rule: {rule}"]
    written: list[Path] = []
    for path, picture, found in zip(options.pictures, pictures, answers, strict=True):
        scene = Scene(picture=picture, found=found, spec=spec, rule=rule, hit_map=hit_map)
        written += write_scene(scene, options.out, path.stem, facts)
    return written


def _read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _as_text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


if __name__ == "__main__":
    raise SystemExit(main())
