"""Writes demonstrations of the embedded world as a NaVILA data set folder with R2R-CE episode files beside it.

<root>/annotations.json            one record per decision: video_id, q, a, frames
<root>/train/<episode>/            filmstrip.png|jpg + filmstrip.json, or frame_<i>.jpg
<root>/depth/train/<episode>.npz   depth of its frames, where asked for: see `save_depth`
<root>/train/<episode>/*.objects.png   instance numbers beside each picture, where asked for: see `save_instances`
<root>/train/motions.json.gz       {episode: [action between frame i and i + 1]}
<root>/camera.json                 the nominal camera; cameras.json.gz {episode: camera} where it varies
<root>/grounding.json              questions about objects, on single frames
<root>/episode_grounding.json.gz   {episode: [per decision {object or "goal": [column, metres] | null}]}
<root>/<split>.json.gz, <split>_gt.json.gz, world_<split>.json (settings and counts, written last)
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava.navigation.actions import Action, ActionKind, SentenceFormat
from llava.navigation.worlds.base import STOP, CameraProfile, Episode
from llava.navigation.worlds.dataset_files import (
    JsonListWriter,
    save_depth,
    save_filmstrip,
    save_frames,
    save_instances,
)
from llava.navigation.worlds.demonstrations import Demonstrations, walk
from llava.navigation.worlds.episode_files import write_episodes, write_json
from llava.navigation.worlds.episodes import episodes_of
from llava.navigation.worlds.expert import plan_tasks
from llava.navigation.worlds.grounding import ObjectTable, tabulate_objects
from llava.navigation.worlds.house import generate_houses, random_pool
from llava.navigation.worlds.renderer import Frames
from llava.navigation.worlds.tables import COLOUR_NAMES, SHAPE_NAMES
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

SPLIT_SEEDS = {"train": 0, "val_unseen": 1 << 40, "test": 1 << 41}
"""First house seed of each split: no house is in two splits."""

CAMERA_STREAM, GROUNDING_STREAM = 1 << 22, 1 << 23
WALK_BLOCK = 512  # episodes walked in lockstep
PICTURE_BYTES = 1 << 26  # rendered at once
MAX_JPEG_SIDE = 65_500  # pixels; taller strips become PNG
OVERSAMPLING = {"stop": 3, "wide turn": 2}  # copies in the published R2R annotations; wide = 30 or 45 degrees

Progress = Callable[[int, int], None]
"""(episodes done, episodes in all)"""


@dataclass(frozen=True, kw_only=True)
class CameraRange:
    """Cameras drawn per episode: height in whole centimetres, pitch and field of view in whole degrees."""

    height_m: tuple[float, float] = (0.6, 1.5)
    pitch_deg: tuple[int, int] = (-15, 5)
    hfov_deg: tuple[int, int] = (70, 100)

    def __post_init__(self) -> None:
        for name in ("height_m", "pitch_deg", "hfov_deg"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is ({low}, {high}), expected (lowest, highest)")

    def draw(self, camera: CameraProfile, uniform: np.ndarray) -> CameraProfile:
        low, high = (round(value * 100) for value in self.height_m)
        return CameraProfile(
            height_m=(low + int(uniform[0] * (high - low + 1))) / 100,
            pitch_deg=float(self.pitch_deg[0] + int(uniform[1] * (self.pitch_deg[1] - self.pitch_deg[0] + 1))),
            hfov_deg=float(self.hfov_deg[0] + int(uniform[2] * (self.hfov_deg[1] - self.hfov_deg[0] + 1))),
            width=camera.width,
            height=camera.height,
        )


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What is written.

    Attributes:
        split: decides the house seeds; frames and annotations are written for "train" unless `frames` says otherwise.
        seed: offset of the house seeds inside the split.
        noise: probability that a decision is executed as a random move; the annotated answer stays the oracle's.
        detours: share of the episodes in which the robot is led to a wrong object for a while; answers likewise.
        frames: "filmstrip" (one picture per episode), "files" (one JPEG per frame), "none" (episode files only).
        picture_format: of filmstrips; "auto" = png up to 128 pixels, jpg above.
        oversample: copy stops three times and turns of 30 and 45 degrees twice, as the published annotations do.
        grounding_frames: pictures per episode with questions in grounding.json.
        depth: write the depth of every frame too.
        object_masks: write which object every pixel shows too.
        camera_range: draw a camera per episode instead of using `camera` for all.
        threads: that write pictures.
    """

    level: str
    num_episodes: int
    split: str = "train"
    seed: int = 0
    camera: CameraProfile = field(default_factory=CameraProfile)
    camera_range: CameraRange | None = None
    noise: float = 0.15
    detours: float = 0.0
    frames: str | None = None
    picture_format: str = "auto"
    oversample: bool = False
    grounding_frames: int = 2
    depth: bool = False
    object_masks: bool = False
    threads: int = 2

    def __post_init__(self) -> None:
        if self.num_episodes < 1:
            raise ValueError(f"num_episodes is {self.num_episodes}, expected at least 1")
        if self.split not in SPLIT_SEEDS:
            raise ValueError(f"unknown split '{self.split}'{suggest(self.split, list(SPLIT_SEEDS))}")
        if not 0 <= self.seed < (1 << 40) - self.num_episodes:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2^40 less the number of episodes")
        if self.frames not in (None, "filmstrip", "files", "none"):
            raise ValueError(f"frames is '{self.frames}'{suggest(str(self.frames), ['filmstrip', 'files', 'none'])}")
        if self.depth and self.frame_layout == "none":
            raise ValueError(
                f"depth is True and no frames are written for split '{self.split}'; set frames to 'filmstrip' or "
                "'files'"
            )
        if self.picture_format not in ("auto", "png", "jpg"):
            raise ValueError(f"picture_format is '{self.picture_format}', expected auto, png or jpg")

    @property
    def frame_layout(self) -> str:
        return self.frames or ("filmstrip" if self.split == "train" else "none")

    @property
    def strip_suffix(self) -> str:
        small = max(self.camera.width, self.camera.height) <= 128
        return {"auto": ".png" if small else ".jpg", "png": ".png", "jpg": ".jpg"}[self.picture_format]


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What was written; `answers` counts the records by answer, copies included. reused: it was there already."""

    num_episodes: int
    num_frames: int
    num_records: int
    answers: dict[str, int]
    seconds: float
    reused: bool = False


def write_dataset(
    root: str | Path, level: str, num_episodes: int, *, progress: Progress | None = None, **options: Any
) -> DatasetSummary:
    """Writes one split below `root`; options are those of `DatasetOptions`.

    The same options twice: the first result is kept and returned with `reused`.
    """
    chosen = DatasetOptions(level=level, num_episodes=num_episodes, **options)
    root = Path(root)
    before = _finished(root, chosen)
    if before is not None:
        logger.info("%s already holds %d episodes of %s with the same settings; kept", root, num_episodes, chosen.split)
        return before
    return _Writer(root, chosen).write(progress or (lambda done, total: None))


def _marker(root: Path, split: str) -> Path:
    return root / f"world_{split}.json"


def _settings(options: DatasetOptions) -> dict[str, Any]:
    """What decides the content; without `depth` and `object_masks` as data sets were marked before there were any."""
    settings = json.loads(json.dumps(asdict(options)))
    del settings["threads"]
    for addition in ("depth", "object_masks"):
        if not settings[addition]:
            del settings[addition]
    return settings


def _finished(root: Path, options: DatasetOptions) -> DatasetSummary | None:
    try:
        content = json.loads(_marker(root, options.split).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if content.get("settings") != _settings(options):
        return None
    return DatasetSummary(**{**content["summary"], "reused": True})


class _Writer:
    """Collects what belongs into one file each while blocks of episodes pass by."""

    def __init__(self, root: Path, options: DatasetOptions) -> None:
        self.root, self.options = root, options
        self.first_seed = SPLIT_SEEDS[options.split] + options.seed
        self.pictures = options.frame_layout != "none"
        self.episodes: list[Episode] = []
        self.motions: dict[str, list[int]] = {}
        self.objects: dict[str, list[dict[str, Any]]] = {}
        self.answers: Counter[str] = Counter()
        self.num_frames = 0

    def path(self, name: str) -> Path:
        """The published names for "train", a name with the split in it for others."""
        stem, dot, suffix = name.partition(".")
        return self.root / (name if self.options.split == "train" else f"{stem}_{self.options.split}{dot}{suffix}")

    def write(self, progress: Progress) -> DatasetSummary:
        begin = time.perf_counter()
        self.root.mkdir(parents=True, exist_ok=True)
        _marker(self.root, self.options.split).unlink(missing_ok=True)
        if self.pictures:
            with (
                JsonListWriter(self.path("annotations.json")) as annotations,
                JsonListWriter(self.path("grounding.json")) as grounding,
                ThreadPoolExecutor(max(1, self.options.threads)) as pool,
            ):
                for walks, cameras in self._blocks(progress):
                    self._write_block(walks, cameras, annotations, grounding, pool)
        else:
            for _ in self._blocks(progress):
                pass
        self._write_small_files()
        summary = DatasetSummary(
            num_episodes=len(self.episodes),
            num_frames=self.num_frames,
            num_records=sum(self.answers.values()),
            answers=dict(sorted(self.answers.items())),
            seconds=round(time.perf_counter() - begin, 3),
        )
        marker = {"settings": _settings(self.options), "summary": asdict(summary)}
        write_json(_marker(self.root, self.options.split), marker)
        return summary

    def _blocks(self, progress: Progress) -> Iterator[tuple[Demonstrations, list[CameraProfile]]]:
        """Walks of blocks of episodes. The episode files get the clean oracle's way, the pictures the disturbed one."""
        options, total = self.options, self.options.num_episodes
        for begin in range(0, total, WALK_BLOCK):
            count = min(WALK_BLOCK, total - begin)
            tasks = plan_tasks(generate_houses(options.level, self.first_seed + begin + np.arange(count)))
            cameras = self._cameras(tasks.houses.seeds)
            clean = walk(tasks, cameras)
            if not clean.stopped.all():
                logger.warning("%d of %d oracle walks ran out of steps", int((~clean.stopped).sum()), count)
            self.episodes += episodes_of(clean, cameras, first_id=begin)
            walks = clean
            if self.pictures and (options.noise or options.detours):
                walks = walk(tasks, cameras, noise=options.noise, detours=options.detours)
            yield walks, cameras
            progress(begin + count, total)

    def _cameras(self, seeds: np.ndarray) -> list[CameraProfile]:
        if self.options.camera_range is None:
            return [self.options.camera] * len(seeds)
        pool = random_pool(seeds, CAMERA_STREAM, 3)
        return [self.options.camera_range.draw(self.options.camera, uniform) for uniform in pool]

    def _write_block(
        self,
        walks: Demonstrations,
        cameras: list[CameraProfile],
        annotations: JsonListWriter,
        grounding: JsonListWriter,
        pool: ThreadPoolExecutor,
    ) -> None:
        first = len(self.episodes) - len(walks)
        asked = random_pool(walks.houses.seeds, GROUNDING_STREAM, 16 * max(1, self.options.grounding_frames))
        before: list[Future[None]] = []
        for part in self._parts(walks):
            frames, tables = self._render(walks, part, cameras)  # while the pictures before are being written
            saved = []
            for e in part:
                begin, end = int(walks.frame_start[e]), int(walks.frame_start[e + 1])
                offset = int(walks.frame_start[part[0]])
                own, name = slice(begin - offset, end - offset), str(first + e)
                saved.append(pool.submit(self._save, name, frames, own))
                annotations.extend(self._annotate(walks, e, name))
                grounding.extend(self._ask(walks, e, name, tables[e], asked[e]))
                self.motions[name] = walks.action[begin : end - 1].tolist()
                self.objects[name] = self._locate(walks, e, tables[e])
            _wait(before)
            before = saved
            self.num_frames += len(frames.rgb)
        _wait(before)

    def _parts(self, walks: Demonstrations) -> Iterator[list[int]]:
        """Episodes whose pictures are rendered together: all the same camera, bounded memory."""
        camera = self.options.camera
        limit = max(1, PICTURE_BYTES // (8 * camera.width * camera.height))
        part: list[int] = []
        for e in range(len(walks)):
            frames = int(walks.frame_start[e + 1] - walks.frame_start[part[0] if part else e])
            if part and (frames > limit or self.options.camera_range is not None):
                yield part
                part = []
            part.append(e)
        yield part

    def _render(
        self, walks: Demonstrations, part: list[int], cameras: list[CameraProfile]
    ) -> tuple[Frames, dict[int, ObjectTable]]:
        """Pictures of the episodes, and what is in view at each decision of each."""
        begin, end = int(walks.frame_start[part[0]]), int(walks.frame_start[part[-1] + 1])
        frames = walks.render(np.arange(begin, end), cameras[part[0]])
        tables = {}
        for e in part:
            at = walks.decision_frame[walks.decision_start[e] : walks.decision_start[e + 1]] - begin
            count = int(walks.houses.num_objects[e])
            tables[e] = tabulate_objects(frames.instance_ids[at], frames.depth[at], count)
        return frames, tables

    def _save(self, name: str, rendered: Frames, own: slice) -> None:
        """Pictures of one episode, and what else of its views was asked for."""
        if self.options.depth:
            save_depth(self.root / "depth" / self.options.split / f"{name}.npz", rendered.depth[own])
        frames = rendered.rgb[own]
        folder = self.root / self.options.split / name
        suffix = None
        if self.options.frame_layout == "files":
            save_frames(folder, frames)
        else:
            tall = len(frames) * frames.shape[1] > MAX_JPEG_SIDE
            suffix = ".png" if tall else self.options.strip_suffix
            save_filmstrip(folder, frames, suffix)
        if self.options.object_masks:
            save_instances(folder, rendered.instance_ids[own], suffix)

    def _annotate(self, walks: Demonstrations, e: int, name: str) -> Iterator[dict[str, Any]]:
        sentence, instruction = SentenceFormat(), self.episodes[int(name)].instruction
        begin = int(walks.frame_start[e])
        num_frames = int(walks.frame_start[e + 1]) - begin
        paths = [f"{name}/frame_{i}.jpg" for i in range(num_frames)]
        for d in range(int(walks.decision_start[e]), int(walks.decision_start[e + 1])):
            kind, steps = int(walks.label_kind[d]), int(walks.label_steps[d])
            step = int(walks.decision_frame[d]) - begin
            answer = sentence.write(Action(ActionKind(kind), steps))
            copies = self._copies(kind, steps)
            self.answers[answer] += copies
            record = {"video_id": f"{name}-{step}", "q": instruction, "a": answer, "frames": paths[: step + 1]}
            for _ in range(copies):
                yield record

    def _copies(self, kind: int, steps: int) -> int:
        if not self.options.oversample:
            return 1
        if kind == STOP:
            return OVERSAMPLING["stop"]
        return OVERSAMPLING["wide turn"] if kind in (ActionKind.LEFT, ActionKind.RIGHT) and steps > 1 else 1

    def _locate(self, walks: Demonstrations, e: int, table: ObjectTable) -> list[dict[str, Any]]:
        """Per decision where every object is; the one that the instruction means stands under "goal" too."""
        names, goal = walks.houses.object_names(e), int(walks.houses.goal_object[e])
        located = [
            [[int(column), int(metres)] if column else None for column, metres in zip(*row, strict=True)]
            for row in zip(table.column, table.distance_m, strict=True)
        ]
        return [{**dict(zip(names, places, strict=True)), "goal": places[goal]} for places in located]

    def _ask(
        self, walks: Demonstrations, e: int, name: str, table: ObjectTable, uniform: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """Where is each object, and one that is not there, in some pictures of the episode?"""
        names = walks.houses.object_names(e)
        decisions, wanted = len(table.column), min(len(table.column), self.options.grounding_frames)
        for number in range(wanted):  # one decision from each of `wanted` equal parts of the episode
            draw = uniform[16 * number : 16 * number + 16]
            d = int((number + draw[13]) * decisions / wanted)
            order = np.argsort(draw[: len(names)], kind="stable")
            asked = [(names[k], int(table.column[d, k]), int(table.distance_m[d, k])) for k in order]
            asked.insert(int(draw[14] * (len(asked) + 1)), (_absent(names, draw[15]), 0, 0))
            frame = int(walks.decision_frame[int(walks.decision_start[e]) + d] - walks.frame_start[e])
            yield {
                "id": f"{name}-{frame}",
                "image": f"{self.options.split}/{name}/frame_{frame}.jpg",
                "conversations": _dialogue(asked),
            }

    def _write_small_files(self) -> None:
        write_episodes(self.root / f"{self.options.split}.json.gz", self.episodes)
        write_json(self.root / "camera.json", self.options.camera.to_dict())
        if self.options.camera_range is not None:
            profiles = {e.episode_id: e.camera.to_dict() for e in self.episodes if e.camera is not None}
            write_json(self.path("cameras.json.gz"), profiles)
        if self.pictures:
            write_json(self.root / self.options.split / "motions.json.gz", self.motions)
            write_json(self.path("episode_grounding.json.gz"), self.objects)


def _wait(jobs: list[Future[None]]) -> None:
    """Raises what a writing thread raised."""
    for job in jobs:
        job.result()


def _absent(names: tuple[str, ...], uniform: float) -> str:
    """Name of an object that the house does not have."""
    every = [f"{colour} {shape}" for colour in COLOUR_NAMES for shape in SHAPE_NAMES]
    others = [name for name in every if name not in names]
    return others[int(uniform * len(others))]


def _dialogue(asked: list[tuple[str, int, int]]) -> list[dict[str, str]]:
    turns = []
    for number, (name, column, metres) in enumerate(asked):
        answer = f"Column {column}, {metres} m." if column else "It is not in view."
        turns.append({"from": "human", "value": ("" if number else "<image>\n") + f"Where is the {name}?"})
        turns.append({"from": "gpt", "value": answer})
    return turns
