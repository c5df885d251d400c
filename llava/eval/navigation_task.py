"""A navigation task from checkpoint to results.json: population, policy, loop, floors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llava.eval.floors import ForwardPolicy, RandomPolicy
from llava.eval.navigation_loop import MAX_STEPS, run_episodes
from llava.eval.policies import Policy
from llava.eval.populations import POPULATIONS, Population
from llava.eval.protocol import ProtocolCard, compare_cameras, episodes_hash
from llava.eval.results import ResultFile, episode_record, read_results, summarise, write_json
from llava.eval.tasks import Request, Task
from llava.navigation.metrics import chunk_slices
from llava.utils.registry import suggest

VERSIONED = ("llava", "torch", "transformers", "numpy")
OF_THE_SHARE = {"population", "data_hash", "num_episodes", "num_scenes"}
"""Fields of the protocol card that differ between a chunk and the whole."""


@dataclass(frozen=True, kw_only=True)
class NavigationOptions:
    """Options of a navigation row of the registry.

    Attributes:
        population: row of `POPULATIONS`; level, split, dataset and data say which episodes of it.
        episodes: how many at most; None = all.
        seed: offset of the houses' seeds within the split, where they are generated.
        role, languages: of RxR-CE: whose episode file, and which instructions of it, comma separated; "" = all.
        config: task configuration of the user's Habitat.
        batch_size: episodes that run side by side.
        radii: success radii in metres, the first one is the task's own.
    """

    population: str = "embedded"
    level: str = "one_room"
    dataset: str = "r2r"
    split: str = "val_unseen"
    data: str | None = None
    episodes: int | None = None
    seed: int = 0
    role: str = ""
    languages: str = ""
    config: str | None = None
    max_steps: int = MAX_STEPS
    batch_size: int = 50
    radii: Sequence[float | int] = (3.0, 1.0)
    dtw_backend: str = "exact"
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"there are {self.episodes} episodes to evaluate, expected at least 1; check --episodes")

    @classmethod
    def of(cls, task: Task, request: Request) -> NavigationOptions:
        values = {**task.options, **request.overrides}
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"task '{task.name}' has an unknown option '{name}'{suggest(name, known)}")
        options = cls(**values)
        return options if request.episodes is None else replace(options, episodes=request.episodes)


def evaluate(task: Task, request: Request) -> Path:
    """Measure a checkpoint on a task; returns the folder of its results.json. Finished episodes are not repeated."""
    from llava.eval.make_policy import make_policy

    options = NavigationOptions.of(task, request)
    model = request.model()
    trained_camera = model.config.camera_profile
    population = POPULATIONS[options.population](options, request.data_root, trained_camera)
    compare_cameras(trained_camera, population.camera, allow_mismatch=request.allow_camera_mismatch)
    population = population.part(chunk_slices(len(population.episodes), request.num_chunks)[request.chunk_index])
    policy = make_policy(model, conv_mode=request.conv_mode, max_new_tokens=options.max_new_tokens)
    card = protocol_card(task.name, options, population, policy, trained_camera, checkpoint=request.checkpoint)
    results = evaluate_policy(population, policy, card, options, request.folder, say=request.say)
    if request.floors:
        results.floors = measure_floors(population, options, request.folder.parent.parent / "floors", say=request.say)
        results.save()
    if request.pictures:
        from llava.eval.pictures import write_pictures

        write_pictures(population, results.episodes, request.folder / "pictures", count=request.pictures)
    return request.folder


def protocol_card(
    name: str,
    options: NavigationOptions,
    population: Population,
    policy: Policy,
    trained_camera: Mapping[str, Any] | None = None,
    *,
    checkpoint: Mapping[str, str] | None = None,
) -> ProtocolCard:
    episodes = population.episodes
    return ProtocolCard(
        task=name,
        population=population.description,
        data_hash=episodes_hash(episodes),
        num_episodes=len(episodes),
        num_scenes=len({episode.scene_id for episode in episodes}),
        policy={"name": policy.name, **(checkpoint or {}), **policy.describe()},
        camera=population.camera,
        trained_camera=dict(trained_camera) if trained_camera else None,
        max_steps=options.max_steps,
        success_radii_m=list(options.radii),
        dtw_backend=options.dtw_backend,
        versions=package_versions(),
    )


def package_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def evaluate_policy(
    population: Population,
    policy: Policy,
    card: ProtocolCard,
    options: NavigationOptions,
    folder: Path,
    *,
    say: Any = print,
) -> ResultFile:
    """Walk what is missing, write after every batch, sum up."""
    ids = [str(episode.episode_id) for episode in population.episodes]
    results = ResultFile(folder, card, episode_ids=ids)
    absorb_chunks(results, population)
    todo = set(results.todo)
    if len(todo) < len(ids):
        say(f"{len(ids) - len(todo)}/{len(ids)} episodes were finished before and are not repeated")
    missing = [episode for episode in population.episodes if str(episode.episode_id) in todo]
    begin = time.monotonic()
    if missing:
        batches = run_episodes(
            population.make_lanes, policy, missing, batch_size=options.batch_size, max_steps=options.max_steps
        )
        for walks in batches:
            results.add(
                {
                    str(walk.episode.episode_id): episode_record(
                        walk, dtw_backend=options.dtw_backend, radii=options.radii
                    )
                    for walk in walks
                }
            )
            say(_progress(results, len(todo), time.monotonic() - begin))
    results.save()
    return results


def _progress(results: ResultFile, asked: int, seconds: float) -> str:
    total, left = len(results.episode_ids), len(results.todo)
    rate = sum(row["success"] for row in results.episodes.values()) / len(results.episodes)
    time_left = seconds / max(asked - left, 1) * left
    return f"{total - left}/{total} episodes, SR {100 * rate:.0f} %, about {time_left:.0f} s left"


def absorb_chunks(results: ResultFile, population: Population) -> None:
    """Take over finished episodes of chunks (`chunk-<i>-of-<n>` below the result's folder) measured the same way."""
    wanted = set(results.todo)
    tasks = {str(e.episode_id): (e.scene_id, e.instruction) for e in population.episodes}
    for path in sorted(results.path.parent.glob("chunk-*-of-*/results.json")):
        content = read_results(path) or {}
        if set(results.card.differences(content.get("protocol", {}))) <= OF_THE_SHARE:
            for key, row in content["episodes"].items():
                if key in wanted and tasks[key] == (row["scene_id"], row["instruction"]):
                    results.episodes[key] = row


def measure_floors(
    population: Population, options: NavigationOptions, cache: Path, *, say: Any = print
) -> dict[str, dict[str, Any]]:
    """Summaries of the floor policies on the same episodes; kept in `cache`, since they know no checkpoint."""
    floors: dict[str, dict[str, Any]] = {}
    for name, make in floor_policies(population).items():
        file = cache / f"{_floor_key(population, options)}-{name.replace(' ', '-')}.json"
        content = read_results(file)
        if content is None:
            say(f"floor '{name}' on {len(population.episodes)} episodes")
            policy = make()
            rows = {}
            for walks in run_episodes(
                population.make_lanes,
                policy,
                population.episodes,
                batch_size=options.batch_size,
                max_steps=options.max_steps,
            ):
                for walk in walks:
                    record = episode_record(walk, dtw_backend=options.dtw_backend, radii=options.radii)
                    rows[str(walk.episode.episode_id)] = record
            content = {"policy": {"name": name, **policy.describe()}, "summary": summarise(rows), "episodes": rows}
            write_json(file, content)
        floors[name] = {"policy": content["policy"], "summary": content["summary"]}
    return floors


def _floor_key(population: Population, options: NavigationOptions) -> str:
    radii = "-".join(f"{radius:g}" for radius in options.radii)
    return f"{episodes_hash(population.episodes)}-{options.max_steps}-{radii}-{options.dtw_backend}"


def floor_policies(population: Population) -> dict[str, Callable[[], Policy]]:
    """Makers of the floor policies that this population can be walked with, by name."""
    return {"random": RandomPolicy, "forward": ForwardPolicy, **population.oracles}
