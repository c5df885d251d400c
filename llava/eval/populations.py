"""Which episodes are walked, and in which simulator: rows of a table that tasks name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.eval.expert_policy import ExpertPolicy
from llava.eval.floors import ReplayPolicy
from llava.eval.lanes import EmbeddedLanes, WorldLanes
from llava.eval.navigation_loop import Lanes
from llava.eval.policies import Policy
from llava.navigation.worlds.base import CameraProfile, Episode
from llava.utils.registry import Registry, suggest

if TYPE_CHECKING:
    from llava.eval.navigation_task import NavigationOptions


@dataclass(frozen=True, kw_only=True)
class Population:
    """Episodes and how to walk them.

    Attributes:
        description: for the protocol card: data set, version, level, split, filters.
        make_lanes: a simulator with that many lanes.
        camera: of the simulator; None where only the simulator knows it.
        oracles: makers of the policies that know the way: "oracle" and, where objects are known, "any object".
    """

    episodes: Sequence[Episode]
    description: str
    make_lanes: Callable[[int], Lanes]
    camera: Mapping[str, Any] | None = None
    oracles: Mapping[str, Callable[[], Policy]]

    def __post_init__(self) -> None:
        if not self.episodes:
            raise ValueError(f"there are zero episodes in '{self.description}'; check the data folder and the split")

    def part(self, part: slice) -> Population:
        """The same with a share of the episodes."""
        whole = len(self.episodes)
        if len(self.episodes[part]) == whole:
            return self
        words = f"{self.description}, episodes {part.start}..{part.stop - 1} of {whole}"
        return replace(self, episodes=self.episodes[part], description=words)


PopulationMaker = Callable[["NavigationOptions", "Path | None", "Mapping[str, Any] | None"], Population]
POPULATIONS: Registry[PopulationMaker] = Registry("population")


@POPULATIONS.register("embedded")
def embedded_population(
    options: NavigationOptions, data_root: Path | None, camera: Mapping[str, Any] | None
) -> Population:
    """Houses of the embedded world: episode files below `data_root` where they exist, else made from seeds.

    Made episodes are seen through the camera of the checkpoint, stored ones through their own.
    """
    file = find_episode_file(data_root, options)
    if file is not None:
        from llava.navigation.worlds.episode_files import read_episodes

        episodes = read_episodes(file)
        words = f"embedded/{options.level} {options.split} from {file}"
    else:
        from llava.navigation.worlds.dataset_writer import SPLIT_SEEDS
        from llava.navigation.worlds.episodes import make_episodes

        if options.split not in SPLIT_SEEDS:
            raise ValueError(f"unknown split '{options.split}'{suggest(options.split, list(SPLIT_SEEDS))}")
        first, count = SPLIT_SEEDS[options.split] + options.seed, options.episodes or 200
        profile = CameraProfile.from_dict(camera) if camera else CameraProfile()
        episodes = make_episodes(options.level, np.arange(first, first + count), profile)
        words = f"embedded/{options.level}, houses {options.seed}..{options.seed + count - 1} of {options.split}"
    episodes = episodes[: options.episodes]
    used = episodes[0].camera or CameraProfile()
    return Population(
        episodes=episodes,
        description=words,
        make_lanes=lambda count: EmbeddedLanes(used),
        camera=used.to_dict(),
        oracles={"any object": lambda: ExpertPolicy("any object", seed=0), "oracle": lambda: ExpertPolicy("oracle")},
    )


def find_episode_file(data_root: Path | None, options: NavigationOptions) -> Path | None:
    """`<split>[_<role>].json.gz` in the task's data folder, in `data_root` or in its folder of the level, or None.

    Raises:
        FileNotFoundError: a root was given and holds none.
    """
    if data_root is None and options.data is None:
        return None
    root = Path(options.data) if options.data is not None else Path(data_root or ".")
    places = [root, root / options.level, root / options.dataset]
    name = f"{options.split}_{options.role}.json.gz" if options.role else f"{options.split}.json.gz"
    for folder in places:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"no {name} in {', '.join(map(str, places))}; give --data-root the folder that holds it, or "
        "leave it out to evaluate on houses made from seeds"
    )


@POPULATIONS.register("habitat")
def habitat_population(
    options: NavigationOptions, data_root: Path | None, camera: Mapping[str, Any] | None
) -> Population:
    """R2R-CE or RxR-CE episode files, walked in the user's Habitat."""
    file = find_episode_file(data_root, options)
    if file is None:
        raise FileNotFoundError(
            f"{options.dataset} needs its episode files; give --data-root a folder with those of {options.split}"
        )
    from llava.navigation.worlds.episode_files import read_episodes

    episodes = in_languages(read_episodes(file), options.languages)[: options.episodes]

    def make_world() -> Any:
        from llava.navigation.worlds.habitat import HabitatWorld

        return HabitatWorld(config_path=options.config)

    plans = {episode.episode_id: episode.actions for episode in episodes if episode.actions}
    known = len(plans) == len(episodes)
    return Population(
        episodes=episodes,
        description=f"{options.dataset} {options.split} from {file}"
        + (f", instructions in {options.languages}" if options.languages else ""),
        make_lanes=lambda count: WorldLanes(make_world, count),
        oracles={"oracle": lambda: ReplayPolicy("oracle", plans)} if known else {},
    )


def in_languages(episodes: list[Episode], languages: str) -> list[Episode]:
    """Those whose instruction is in one of the comma-separated languages; all of them for "".

    Raises:
        ValueError: there are none; says which languages there are.
    """
    wanted = {language.strip() for language in languages.split(",") if language.strip()}
    kept = [episode for episode in episodes if not wanted or episode.language in wanted]
    if not kept:
        found = sorted({episode.language for episode in episodes})
        raise ValueError(f"languages is '{languages}', but the episodes are in {', '.join(found)}")
    return kept
