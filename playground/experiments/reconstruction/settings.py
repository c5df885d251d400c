"""Sizes of the experiment as rows of a table. Training is counted in steps: a loaded machine changes no result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llava.utils.registry import Registry
from playground.experiments.reconstruction.arms import ARMS, Run

FORMATS = ("streaming", "8frames")
COST_OF_LOSS = 1.5
"""Expected cost of a step with the loss / without, for the time left only."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A whole experiment.

    Attributes:
        arms: format -> arms that get as many steps as the baseline.
        equal_cost: format -> arms that are trained a second time, for as long as the baseline took.
        cost: "cpu" counts the seconds of computing of the training process, "wall" those that pass (one GPU, one run).
        steps: of a training per format; align_steps: of the stage before, which all arms of a seed share.
        houses: training houses; episodes: unseen houses walked in; heldout: of those, in how many the cross-entropy and
            the probes are measured, along the expert's way.
        max_moves: low-level actions after which an episode is over.
        probes_fit: share of the held-out houses on which probes are fitted; the rest tests them.
        flags: added to every training command; stage_flags: by stage.
        threads: cores per training; step_seconds: of a baseline step per stage, for the time left.
    """

    name: str
    run_dir: str
    arms: Mapping[str, tuple[str, ...]]
    equal_cost: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cost: str = "cpu"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: Mapping[str, int]
    align_steps: int
    houses: int
    noise: float = 0.15
    detours: float = 0.0
    image_size: int = 64
    episodes: int = 200
    heldout: int = 120
    probes_fit: float = 0.6
    max_moves: int = 150
    flags: tuple[str, ...] = ()
    stage_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    threads: int = 1
    step_seconds: Mapping[str, float]
    data_seconds: float = 60.0
    start_seconds: float = 20.0
    evaluation_seconds: float = 20.0
    measure_seconds: float = 20.0

    def __post_init__(self) -> None:
        for table in (self.arms, self.equal_cost):
            for form, names in table.items():
                if form not in FORMATS:
                    raise ValueError(f"format '{form}' is unknown, expected one of {FORMATS}")
                for name in names:
                    _ = ARMS[name]
        if self.cost not in ("cpu", "wall"):
            raise ValueError(f"cost is '{self.cost}', expected 'cpu' or 'wall'")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds are {self.seeds}, expected at least one, each once")
        if not 2 <= self.heldout <= self.episodes:
            raise ValueError(f"heldout is {self.heldout}, expected 2 to {self.episodes}, the number of unseen houses")

    def runs(self) -> tuple[Run, ...]:
        """All trainings: seed by seed, so that an interrupted experiment has whole seeds; baselines first."""
        rows: list[Run] = []
        for seed in self.seeds:
            for form, names in self.arms.items():
                rows += [Run(arm=ARMS[name], format=form, seed=seed) for name in with_baselines(names)]
            for form, names in self.equal_cost.items():
                rows += [Run(arm=ARMS[name], format=form, seed=seed, budget="cost") for name in names]
        return tuple(rows)


def with_baselines(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each after the baseline that it is compared with."""
    ordered = [part for name in names for part in (ARMS[name].baseline, name)]
    return tuple(dict.fromkeys(ordered))


ALL_ARMS = tuple(ARMS)

TWO_CLIPS = ("--tokens_per_batch", "512")
"""With 384 tokens, the script's own, 6 of 432 batches hold a single episode, and `other_clip` needs two."""

SETTINGS: Registry[Setting] = Registry("setting")

SETTINGS.register("small")(
    Setting(
        name="small",
        run_dir="runs/reconstruction-small",
        arms={
            "streaming": ("baseline", "actions", "share_5", "other_clip"),
            "8frames": ("baseline", "share_5"),
        },
        equal_cost={"streaming": ("share_5",)},
        steps={"streaming": 600, "8frames": 250},
        align_steps=600,
        houses=3000,
        stage_flags={"streaming": TWO_CLIPS},
        step_seconds={"align": 0.17, "streaming": 0.19, "8frames": 0.28},
    )
)

SETTINGS.register("controls")(
    replace(
        SETTINGS["small"],  # and its folder: what `small` has finished is reused
        name="controls",
        arms={
            "streaming": tuple(name for name in ARMS if name not in ("weight_tiny", "share_0")),  # twins of weight_zero
            "8frames": SETTINGS["small"].arms["8frames"],
        },
    )
)

SETTINGS.register("large")(
    Setting(
        name="large",
        run_dir="runs/reconstruction-large",
        arms={"streaming": ALL_ARMS, "8frames": ALL_ARMS},
        equal_cost=dict.fromkeys(FORMATS, ("full", "actions", "share_5")),
        cost="wall",
        seeds=(0, 1, 2, 3, 4),
        steps={"streaming": 4000, "8frames": 4000},
        align_steps=2000,
        houses=20_000,
        detours=0.35,
        image_size=128,
        episodes=1000,
        heldout=500,
        flags=("--embedded_size", "gpu", "--bf16", "True", "--tf32", "True"),
        stage_flags={
            "align": ("--tokens_per_batch", "8192"),
            "streaming": ("--tokens_per_batch", "8192"),
            "8frames": ("--tokens_per_batch", "16384"),
        },
        threads=1_000,  # one training at a time, whatever the machine has
        step_seconds={"align": 0.12, "streaming": 0.12, "8frames": 0.15},
        data_seconds=240.0,
        evaluation_seconds=90.0,
        measure_seconds=60.0,
    )
)

SETTINGS.register("quick")(
    Setting(
        name="quick",
        run_dir="runs/reconstruction-quick",
        arms={"streaming": ("baseline", "actions"), "8frames": ("baseline", "actions")},
        equal_cost={"streaming": ("actions",)},
        seeds=(0,),
        steps={"streaming": 12, "8frames": 12},
        align_steps=12,
        houses=40,
        episodes=8,
        heldout=6,
        max_moves=20,
        flags=("--logging_steps", "2", *TWO_CLIPS),
        step_seconds={"align": 0.2, "streaming": 0.2, "8frames": 0.3},
        data_seconds=15.0,
        evaluation_seconds=15.0,
        measure_seconds=15.0,
    )
)


def narrowed(
    setting: Setting,
    *,
    seeds: tuple[int, ...] | None = None,
    formats: tuple[str, ...] | None = None,
    arms: tuple[str, ...] | None = None,
    equal_cost: tuple[str, ...] | None = None,
) -> Setting:
    """Other seeds, formats or arms; what is not given stays.

    Arms that are given replace those of every format; then only those of them that the setting trains again at equal
    cost stay in that comparison, unless `equal_cost` says which.
    """
    forms = formats or tuple(setting.arms)
    table = {form: arms or setting.arms.get(form, next(iter(setting.arms.values()))) for form in forms}
    twice = {form: names for form, names in setting.equal_cost.items() if form in forms}
    if arms is not None:
        twice = {form: tuple(name for name in names if name in arms) for form, names in twice.items()}
    if equal_cost is not None:
        twice = dict.fromkeys(forms, equal_cost)
        table = {form: tuple(dict.fromkeys((*names, *equal_cost))) for form, names in table.items()}
    return replace(setting, arms=table, equal_cost={f: n for f, n in twice.items() if n}, seeds=seeds or setting.seeds)
