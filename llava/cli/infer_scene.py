"""The part of vila-infer that splits pictures, keeps backgrounds and shows what was saved."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.scene_split.report import SceneAnswer, SceneReport

DEVICE_BYTES, DISK_BYTES = 2**30, 4 * 2**30
DETECTORS = ("yolo", "motion", "precomputed")
SUFFIXES = (".png", ".html")
COLUMNS = ("detector", "resize", "lookup", "encoder", "prefill", "first_token", "total")


def add_scene_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("background and objects").add_argument
    add("--scene-split", action="store_true", help="split pictures of a model trained without it, to measure that")
    add("--background-cache", nargs="?", const="", metavar="DIR", help="keep backgrounds, also for later runs in DIR")
    add("--noise", type=float, metavar="LEVELS", help="of the camera: backgrounds that differ by no more are similar")
    add("--detector", choices=DETECTORS, help="finds the objects (as stored in the checkpoint)")
    add("--detector-options", nargs="+", default=[], metavar="KEY=VALUE", help="its settings, such as weights=best.pt")
    add("--repeat", type=int, default=1, metavar="N", help="ask N times (1)")
    add("--profile", action="store_true", help="times and tokens of each request, on standard error")
    add("--draw", metavar="FILE", help="picture (.png) or page (.html) of patches reused, recomputed, stale")


def check_scene(options: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: a flag that would have no effect, or a value that means nothing.
    """
    if options.repeat < 1:
        raise ValueError(f"--repeat is {options.repeat}, expected at least 1")
    if options.repeat > 1 and not (options.profile or options.json):
        raise ValueError("--repeat shows nothing by itself; add --profile or --json, or leave it out")
    if options.noise is not None and options.background_cache is None:
        raise ValueError("--noise is of a cache that also serves similar backgrounds; add --background-cache")
    if options.noise is not None and not 0 <= options.noise < float("inf"):
        raise ValueError(f"--noise is {options.noise}, expected a standard deviation in levels of 0 to 255")
    if options.detector_options and not options.detector:
        raise ValueError("--detector-options are of a detector; add --detector, or leave them out")
    if options.draw and Path(options.draw).suffix not in SUFFIXES:
        raise ValueError(f"--draw is {options.draw}, expected a name that ends in {' or '.join(SUFFIXES)}")
    about_pictures = {"--background-cache": options.background_cache is not None, "--draw": bool(options.draw)}
    about_pictures |= {"--detector": bool(options.detector), "--scene-split": options.scene_split}
    for flag, given in about_pictures.items():
        if given and not options.media:
            raise ValueError(f"{flag} speaks of pictures and --media has none; give some, or leave it out")
    read_settings(options.detector_options)


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as a dict; values are read as JSON where they are JSON, else as text."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ValueError(f"--detector-options holds {word!r}, expected KEY=VALUE such as weights=best.pt")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


class SceneSession:
    """What the flags ask of a model.

    Attributes:
        is_wanted: some flag asks for more than the answer.
    """

    def __init__(self, model: Any, options: argparse.Namespace) -> None:
        self.model, self.options = model, options
        splits = options.scene_split or options.background_cache is not None or options.detector or options.draw
        self.is_wanted = bool(splits or options.profile)
        if splits and model.scene_split is None and not options.scene_split:
            raise ValueError(
                f"{options.model_path} was trained without scene_split, so its answers to split pictures are worse; "
                "train it with scene_split, or add --scene-split to see how much worse"
            )
        self.detector = self._detector()
        self.cache = self._cache()

    def keywords(self, media: Sequence[Any]) -> dict[str, Any]:
        """For `generate_content`."""
        if not self.is_wanted:
            return {}
        found: dict[str, Any] = {"return_provenance": True, "force_scene_split": self.options.scene_split}
        if self.detector is not None:
            found["detector"] = self.detector
        if self.cache is not None:
            found["background_cache"] = self.cache
            self.model.weight_fingerprint(self.model)  # reading every weight once belongs to loading the model
        if self.options.scene_split and self.detector is None and self.model.scene_split is None:
            found["object_masks"] = [None] * sum(len(medium.pictures) for medium in media)
        if self.options.detector == "precomputed":
            found["picture_sources"] = _sources(media)
        return found

    def show(self, answers: Sequence[SceneAnswer]) -> None:
        if self.options.profile:
            print_profile([answer.report for answer in answers])

    def draw(self, report: SceneReport, media: Sequence[Any]) -> None:
        """Writes the file of --draw: where every patch of every picture came from."""
        if not self.options.draw:
            return
        from llava.scene.draw import BACKGROUND, HIT_COLOURS, OBJECT, draw_scene
        from llava.scene.page import write_page, write_sheet

        rows = [row for scene in self._scenes(report, media) for row in draw_scene(scene)]
        out = Path(self.options.draw)
        if out.suffix == ".png":
            write_sheet(rows, out)
        else:
            facts = [f"picture {n}: {told_picture(each)}" for n, each in enumerate(report.pictures)]
            write_page(rows, out, out.stem, facts, {"object": OBJECT, "background": BACKGROUND} | HIT_COLOURS)

    def _scenes(self, report: SceneReport, media: Sequence[Any]) -> list[Any]:
        import numpy as np

        from llava.model.scene_split.object_source import views_of
        from llava.model.scene_split.parts import SplitParts
        from llava.scene.detections import Detections
        from llava.scene.draw import Scene

        pictures = [np.asarray(picture.convert("RGB")) for medium in media for picture in medium.pictures]
        parts, spec = SplitParts.of(self.model, force=True), self.model.visual_spec
        views = views_of([picture.shape[:2] for picture in pictures], spec)
        if len(pictures) > 1 and spec.aspect_mode == "dynamic":
            spec = replace(spec, aspect_mode="resize")
        detector = self.detector or self.model.scene_detector
        sources = _sources(media) if self.options.detector == "precomputed" else None
        found = [Detections.of(*picture.shape[:2]) for picture in pictures]
        if detector is not None:
            found = detector.detect(pictures, sources)
        hits: list[list[Any]] = [[] for _ in pictures]
        for (number, _), each in zip(views, report.pictures, strict=True):
            hits[number].append(each.hit_map)
        given = zip(pictures, found, hits, strict=True)
        rule = parts.patch_rule
        return [Scene(picture=p, found=f, spec=spec, rule=rule, hit_map=np.stack(h)) for p, f, h in given]

    def _detector(self) -> Any:
        if not self.options.detector:
            return None
        from llava.scene.detector import GuardedDetector, build_detector
        from llava.scene.options import read_background

        settings = read_background(read_settings(self.options.detector_options))
        return GuardedDetector(build_detector(self.options.detector, **settings))

    def _cache(self) -> Any:
        folder = self.options.background_cache
        if folder is None:
            return None
        from llava.scene.token_cache import BackgroundTokenCache, CacheConfig, SimilarityConfig

        disk = {"disk_folder": folder, "disk_bytes": DISK_BYTES, "write_through": True} if folder else {}
        device, noise = self.model.get_input_embeddings().weight.device, self.options.noise
        similarity = None if noise is None else SimilarityConfig(noise=noise)
        config = CacheConfig(device_bytes=DEVICE_BYTES, device=device, similarity=similarity, **disk)
        return BackgroundTokenCache(config)


def _sources(media: Sequence[Any]) -> list[str]:
    """The file of every picture."""
    clips = [medium.path for medium in media if medium.kind != "picture"]
    if clips:
        raise ValueError(f"--detector precomputed looks up files of pictures, {clips[0]} is a clip; use motion")
    return [medium.path for medium in media]


def print_profile(reports: Sequence[SceneReport]) -> None:
    """One line of times per request, and one about each picture, on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title="ms", title_justify="left", padding=(0, 2))
    for name in ("request", *COLUMNS, "tokens", "saved"):
        table.add_column(name.replace("_", " "), justify="right")
    for number, report in enumerate(reports, start=1):
        times = [f"{1000 * report.seconds.get(name, 0.0):.1f}" for name in COLUMNS]
        table.add_row(str(number), *times, str(report.computed_tokens), str(sum(report.cached_tokens)))
    console = Console(file=sys.stderr, width=120, highlight=False)
    console.print(table)
    for number, report in enumerate(reports, start=1):
        for place, picture in enumerate(report.pictures, start=1):
            console.print(f"  request {number}, picture {place}: {told_picture(picture)}")


def told_picture(picture: Any) -> str:
    where = f" ({picture.tier})" if picture.tier else ""
    ran = ", detector ran" if picture.detector_ran else ""
    if picture.detector_failure is not None:
        ran = f", the detector failed and the whole picture was read as one object: {picture.detector_failure}"
    return (
        f"background {picture.background}{where}, {picture.num_background} tokens; objects {picture.objects}, "
        f"{picture.num_objects} tokens; {picture.saved_tokens} tokens saved{ran}"
    )
