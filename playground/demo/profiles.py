"""Sizes and budgets of a demo as rows of a table. Budgets are wall seconds: a faster machine takes more steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llava.utils.registry import Registry, suggest


@dataclass(frozen=True, kw_only=True)
class Level:
    """One kind of house: what is trained and measured on it.

    Attributes:
        name: level of the embedded world.
        title: how the report calls it.
        houses: training houses, one episode each.
        noise: share of random moves in the demonstrations; the labels stay the planner's.
        detours: share of demonstrations that are led to a wrong object for a while; the labels likewise.
        align_seconds: budget of the stage before both formats; 0 = none (later levels start from the first's models).
        train_seconds: budget of each format.
        episodes: evaluated houses that no training saw.
        max_steps: low-level actions after which an episode is over.
    """

    name: str
    title: str
    houses: int
    noise: float = 0.15
    detours: float = 0.0
    align_seconds: float = 0.0
    train_seconds: float = 0.0
    episodes: int = 200
    max_steps: int = 150

    def __post_init__(self) -> None:
        for name in ("houses", "episodes", "max_steps", "train_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"level '{self.name}': {name} is {getattr(self, name)}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A whole demo.

    Attributes:
        levels: the first is trained from nothing.
        image_size: pictures of the world are square.
        flags: added to every training command.
        side_by_side: True trains both formats at once, one core each; False one after the other on all cores.
        detector_seconds, detector_pictures: budget and data of the object detector.
        data_seconds, evaluation_seconds: expected, for the time left.
    """

    name: str
    run_dir: str
    levels: tuple[Level, ...]
    image_size: int = 64
    seed: int = 0
    flags: tuple[str, ...] = ()
    stage_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    side_by_side: bool = True
    detector_seconds: float = 45.0
    detector_pictures: int = 1500
    pictures: int = 6
    data_seconds: float = 60.0
    evaluation_seconds: float = 60.0


PROFILES: Registry[Profile] = Registry("demo profile")

PROFILES.register("demo")(
    Profile(
        name="demo",
        run_dir="runs/demo",
        levels=(Level(name="one_room", title="one room", houses=4500, align_seconds=180, train_seconds=310),),
        evaluation_seconds=40.0,
    )
)

PROFILES.register("full")(
    Profile(
        name="full",
        run_dir="runs/demo-full",
        levels=(
            Level(
                name="one_room",
                title="one room",
                houses=12_000,
                detours=0.35,
                align_seconds=300,
                train_seconds=1200,
                episodes=1200,  # one percentage point of standard error
            ),
            Level(
                name="multi_room", title="several rooms", houses=6000, train_seconds=600, episodes=200, max_steps=400
            ),
        ),
        data_seconds=180.0,
        evaluation_seconds=120.0,
    )
)

PROFILES.register("gpu")(
    Profile(
        name="gpu",
        run_dir="runs/demo-gpu",
        levels=(
            Level(
                name="multi_room",
                title="several rooms",
                houses=20_000,
                align_seconds=120,
                train_seconds=420,
                episodes=400,
                max_steps=400,
            ),
        ),
        image_size=128,
        flags=("--embedded_size", "gpu", "--bf16", "True", "--tf32", "True"),
        stage_flags={
            "align": ("--tokens_per_batch", "8192"),
            "streaming": ("--tokens_per_batch", "8192"),
            "8frames": ("--tokens_per_batch", "16384"),
        },
        side_by_side=False,
        data_seconds=240.0,
        evaluation_seconds=120.0,
    )
)


def shortened(profile: Profile, seconds: float, *, houses: int = 200, episodes: int = 16) -> Profile:
    """The same flow with tiny budgets (`seconds` per training phase): a quick check, not a result."""
    levels = tuple(
        replace(
            level,
            houses=min(houses, level.houses),
            episodes=min(episodes, level.episodes),
            align_seconds=min(seconds, level.align_seconds),
            train_seconds=min(seconds, level.train_seconds),
        )
        for level in profile.levels
    )
    run_dir = f"{profile.run_dir}-quick"
    detector = {"detector_seconds": min(seconds, profile.detector_seconds), "detector_pictures": 64}
    name = f"{profile.name} (quick check)"
    return replace(profile, name=name, run_dir=run_dir, levels=levels, data_seconds=10.0, **detector)


def with_overrides(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """Replace budgets of the first level or fields of the profile by name.

    Raises:
        ValueError: an unknown name; the nearest is suggested.
    """
    of_profile = {f.name for f in fields(Profile)} - {"levels", "name", "stage_flags"}
    of_level = {f.name for f in fields(Level)} - {"name", "title"}
    for name in overrides:
        if name not in of_profile | of_level:
            raise ValueError(f"unknown setting '{name}'{suggest(name, sorted(of_profile | of_level))}")
    first = replace(profile.levels[0], **{k: v for k, v in overrides.items() if k in of_level})
    mine = {k: v for k, v in overrides.items() if k in of_profile}
    return replace(profile, levels=(first, *profile.levels[1:]), **mine)
