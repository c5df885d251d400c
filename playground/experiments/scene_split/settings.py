"""Sizes of the experiment as rows of a table. Training is counted in steps: a loaded machine changes no result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llava.utils.registry import Registry
from playground.experiments.scene_split.disturb import DISTURBANCES
from playground.experiments.scene_split.ways import WAYS

TASKS = {
    "vqa": "questions, camera stands still",
    "robot": "closed loop, camera stands still",
    "walk": "closed loop, camera walks",
}
LOOPS = ("robot", "walk")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A whole experiment. Tables by task hold what a task of `tasks` needs; others are not read.

    Attributes:
        ways: by task, of `WAYS`.
        embedded_size: of the models.
        sight_steps: of the encoder that a task starts from.
        start_steps: of the training without a split that both arms of a seed start from; steps: of each arm.
        train_scenes: cameras, rooms or houses of the training; per_scene: pictures of each.
        test_scenes: unseen cameras whose questions are asked; episodes: unseen rooms or houses, by task.
        max_moves: after which an episode is over.
        noises: grey levels that guarded caches of the curve allow; noise: of the one in the tables.
        disturbances: of the curve.
        seconds: expected for trainings (a step, by task) and evaluations, for the time left.
    """

    name: str
    run_dir: str
    tasks: tuple[str, ...] = tuple(TASKS)
    ways: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "vqa": tuple(WAYS),
            "robot": ("full", "split", "exact", "guarded", "untrained"),
            "walk": ("full", "split", "exact", "guarded"),
        }
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    embedded_size: str = "tiny"
    sight_steps: int
    start_steps: Mapping[str, int]
    steps: Mapping[str, int]
    train_scenes: Mapping[str, int]
    per_scene: Mapping[str, int] = field(default_factory=lambda: {"vqa": 8, "robot": 5})
    test_scenes: int
    episodes: Mapping[str, int]
    max_moves: Mapping[str, int] = field(default_factory=lambda: {"robot": 25, "walk": 80})
    noises: tuple[float, ...] = (0.5, 2.0, 4.0, 8.0, 16.0)
    noise: float = 2.0
    disturbances: tuple[str, ...] = (
        "none",
        "noise_2",
        "noise_6",
        "jpeg_85",
        "light_3",
        "light_20",
        "shake_1",
        "shake_4",
    )
    flags: tuple[str, ...] = ()
    threads: int = 1
    step_seconds: Mapping[str, float]
    sight_seconds: float
    start_seconds: float = 20.0
    data_seconds: float = 60.0
    evaluation_seconds: Mapping[str, float]

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"task '{task}' is unknown, expected some of {tuple(TASKS)}")
            names = self.ways[task]
            for name in names:
                missing = WAYS[name].reference not in names
                if missing:
                    raise ValueError(f"way '{name}' is compared with '{WAYS[name].reference}', which is not in {names}")
        for name in self.disturbances:
            _ = DISTURBANCES[name]
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds are {self.seeds}, expected at least one, each once")
        if self.noise not in self.noises:
            raise ValueError(f"noise is {self.noise}, expected one of noises {self.noises}, so that it is on the curve")


SETTINGS: Registry[Setting] = Registry("setting")

SETTINGS.register("small")(
    Setting(
        name="small",
        run_dir="runs/scene-split-small",
        sight_steps=400,
        start_steps={"vqa": 400, "robot": 500, "walk": 500},
        steps={"vqa": 1000, "robot": 300, "walk": 200},
        train_scenes={"vqa": 1000, "robot": 1200, "walk": 1000},
        test_scenes=32,
        episodes={"robot": 64, "walk": 40},
        max_moves={"robot": 20, "walk": 60},
        noises=(0.5, 2.0, 6.0, 16.0),
        disturbances=("none", "noise_2", "jpeg_85", "light_3", "light_20", "shake_1"),
        step_seconds={"vqa": 0.3, "robot": 0.3, "walk": 0.47},
        sight_seconds=80.0,
        evaluation_seconds={"vqa": 150.0, "curve": 140.0, "robot": 90.0, "walk": 180.0},
    )
)

SETTINGS.register("large")(
    Setting(
        name="large",
        run_dir="runs/scene-split-large",
        embedded_size="gpu",
        sight_steps=2000,
        seeds=(0, 1, 2, 3, 4),
        start_steps={"vqa": 4000, "robot": 3000, "walk": 4000},
        steps={"vqa": 3000, "robot": 2000, "walk": 3000},
        train_scenes={"vqa": 12_000, "robot": 12_000, "walk": 12_000},
        test_scenes=300,
        episodes={"robot": 500, "walk": 500},
        max_moves={"robot": 25, "walk": 150},
        flags=("--bf16", "True", "--tf32", "True", "--tokens_per_batch", "8192"),
        threads=1_000,  # one training at a time, whatever the machine has
        step_seconds={"vqa": 0.12, "robot": 0.12, "walk": 0.2},
        sight_seconds=600.0,
        data_seconds=900.0,
        evaluation_seconds={"vqa": 600.0, "curve": 600.0, "robot": 300.0, "walk": 900.0},
    )
)

SETTINGS.register("quick")(
    Setting(
        name="quick",
        run_dir="runs/scene-split-quick",
        sight_steps=3,
        ways={"vqa": tuple(WAYS), "robot": ("full", "split", "exact", "guarded"), "walk": ("full", "split", "exact")},
        seeds=(0,),
        start_steps={"vqa": 4, "robot": 4, "walk": 4},
        steps={"vqa": 3, "robot": 3, "walk": 3},
        train_scenes={"vqa": 24, "robot": 24, "walk": 24},
        per_scene={"vqa": 4, "robot": 5},
        test_scenes=3,
        episodes={"robot": 3, "walk": 2},
        max_moves={"robot": 3, "walk": 3},
        noises=(2.0, 8.0),
        disturbances=("none", "noise_2"),
        flags=("--logging_steps", "1", "--tokens_per_batch", "1024"),
        start_seconds=12.0,
        step_seconds={"vqa": 0.3, "robot": 0.3, "walk": 0.5},
        sight_seconds=20.0,
        data_seconds=6.0,
        evaluation_seconds={"vqa": 15.0, "curve": 12.0, "robot": 12.0, "walk": 12.0},
    )
)


def narrowed(
    setting: Setting, *, seeds: tuple[int, ...] | None = None, tasks: tuple[str, ...] | None = None
) -> Setting:
    """Other seeds or fewer tasks; what is not given stays."""
    return replace(setting, seeds=seeds or setting.seeds, tasks=tasks or setting.tasks)
