"""From a setting to phases: per task one data set, per seed one start, from which both arms train as many steps.

data ─────────────────┬──> start, seed 0 ──┬──> full  ──┬──> answers, curve of the guarded cache (questions)
an encoder that sees ─┘                    └──> split ──┴──> walks or drives (closed loop)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from playground.demo.phases import Command, Phase
from playground.demo.progress import log_progress
from playground.experiments.common import package_version, training_phase
from playground.experiments.scene_split.drawing import SIDE
from playground.experiments.scene_split.settings import LOOPS, TASKS, Setting
from playground.experiments.scene_split.sight import PROJECTOR, TOWER
from playground.experiments.scene_split.ways import TRAININGS, WAYS

PACKAGE = "playground.experiments.scene_split"
SCRIPT = "scripts/train/sft_8frames.sh"
REGISTRY = "playground/experiments/scene_split/registry.yaml"
START = "start"
MIXTURES = {"vqa": "scene_vqa", "robot": "scene_robot", "walk": "scene_walk"}
SPLIT_FLAGS = ("--scene_split", "True")
KEEP_SIGHT = ("--vision_tower_lr", "1e-4", "--mm_projector_lr", "1e-4")
"""Behind an encoder that sees already: at the language model's rate it forgets what it saw."""
NO_CLIPPING = ("--max_grad_norm", "0")
"""Of every training: the split's separators are new rows whose gradients would shorten the steps of the rest."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things stand below a run folder."""

    run_dir: Path

    @property
    def data(self) -> Path:
        return self.run_dir / "data"

    def model(self, task: str, training: str, seed: int) -> Path:
        return self.run_dir / "models" / f"{task}-{training}-s{seed}"

    def sight(self, task: str, seed: int) -> Path:
        return self.model(task, "sight", seed)

    def results(self, kind: str, seed: int) -> Path:
        """kind: `vqa`, `arrangements`, `curve`, or a closed loop."""
        return self.run_dir / "eval" / f"{kind}-s{seed}.json"

    def log(self, phase: str) -> Path:
        return self.run_dir / "logs" / f"{phase}.log"


def make_plan(setting: Setting, run_dir: Path, *, cores: int) -> tuple[Phase, ...]:
    """All phases, each behind what it needs; seed by seed, so that an interrupted experiment has whole seeds."""
    layout = Layout(run_dir=run_dir)
    phases = [_data(layout, setting, task) for task in setting.tasks]
    for seed in setting.seeds:
        for task in setting.tasks:
            phases.append(_sight(layout, setting, task, seed, cores))
            phases += [_training(layout, setting, task, name, seed, cores) for name in (START, *TRAININGS)]
            phases += [_loop(layout, setting, task, seed)] if task in LOOPS else _questions(layout, setting, seed)
    return tuple(phases)


def _data(layout: Layout, setting: Setting, task: str) -> Phase:
    name, count = f"data-{task}", str(setting.train_scenes[task])
    if task == "walk":
        argv = ("vila-world", "write", "--out", str(layout.data / task), "--split", "train", "--houses", count)
        argv += ("--width", str(SIDE), "--height", str(SIDE), "--noise", "0.15", "--oversample", "--object-masks")
    else:
        argv = ("python", "-m", f"{PACKAGE}.make_data", task, "--out", str(layout.data), "--train", count)
        argv += ("--per-scene", str(setting.per_scene[task]))
        argv += ("--test", str(setting.test_scenes)) if task == "vqa" else ()
    return Phase(
        name=name,
        title=f"Data: {TASKS[task]}",
        commands=(Command(argv=argv),),
        outputs=(layout.data / task,),
        seconds=setting.data_seconds,
        settings=package_version(),
        progress=log_progress(layout.log(name)),
    )


def _sight(layout: Layout, setting: Setting, task: str, seed: int, cores: int) -> Phase:
    output = layout.sight(task, seed)
    argv = ("python", "-m", f"{PACKAGE}.sight", task, "--out", str(output), "--embedded-size", setting.embedded_size)
    argv += ("--rooms", str(setting.train_scenes[task]), "--steps", str(setting.sight_steps), "--seed", str(seed))
    return Phase(
        name=output.name,
        title=f"An encoder that sees, {TASKS[task]}, seed {seed}",
        commands=(Command(argv=argv),),
        outputs=(output,),
        seconds=setting.sight_seconds,
        threads=min(setting.threads, cores),
        settings=package_version(),
        progress=log_progress(layout.log(output.name)),
    )


def _training(layout: Layout, setting: Setting, task: str, training: str, seed: int, cores: int) -> Phase:
    output, is_start = layout.model(task, training, seed), training == START
    steps = (setting.start_steps if is_start else setting.steps)[task]
    needs = (f"data-{task}",) if is_start else (layout.model(task, START, seed).name,)
    flags = ("--data_registry", REGISTRY, "--data_root", str(layout.data), "--tokenizer_mixture", MIXTURES[task])
    if is_start:
        sight = layout.sight(task, seed)
        needs += (sight.name,)
        flags += ("--embedded_size", setting.embedded_size)
        flags += ("--vision_tower", str(sight / TOWER), "--mm_projector", str(sight / PROJECTOR))
    flags += (*setting.flags, *KEEP_SIGHT)
    flags += ("--grounding_questions", "0", "--broken_samples", "raise", "--report_to", "none", *NO_CLIPPING)
    flags += ("--max_train_seconds", "-1", "--max_steps", str(steps), "--seed", str(seed))
    flags += SPLIT_FLAGS if training == "split" else ()
    env = {"OUTPUT": str(output), "DATA_MIXTURE": MIXTURES[task]}
    if not is_start:
        env["MODEL"] = str(layout.model(task, START, seed))
    return training_phase(
        name=output.name,
        title=f"Training, {TASKS[task]}, {training}, seed {seed}",
        command=Command(argv=("bash", SCRIPT, *flags), env=env),
        output=output,
        seconds=steps * setting.step_seconds[task] + setting.start_seconds,
        threads=min(setting.threads, cores),
        needs=needs,
    )


def _questions(layout: Layout, setting: Setting, seed: int) -> list[Phase]:
    """All ways on unseen scenes, both arms on new arrangements of known ones, and the curve of the guarded cache."""
    noise = ("--noise", f"{setting.noise:g}")
    ways = setting.ways["vqa"]
    curve = ("--ways", "split", "guarded", "--noise", *(f"{value:g}" for value in setting.noises), "--one-question")
    curve += ("--disturbances", *setting.disturbances)
    return [
        _evaluation(layout, setting, "vqa", seed, (*_models(layout, "vqa", ways, seed), "--ways", *ways, *noise)),
        _evaluation(
            layout, setting, "arrangements", seed,
            (*_models(layout, "vqa", ("full", "split"), seed), "--ways", "full", "split", "--test", "arrangements"),
        ),
        _evaluation(layout, setting, "curve", seed, (*_models(layout, "vqa", ("split",), seed), *curve)),
    ]  # fmt: skip


def _models(layout: Layout, task: str, ways: Sequence[str], seed: int) -> tuple[str, ...]:
    needed = [name for name in TRAININGS if any(WAYS[way].training == name for way in ways)]
    return tuple(part for name in needed for part in (f"--{name}", str(layout.model(task, name, seed))))


def _evaluation(layout: Layout, setting: Setting, kind: str, seed: int, flags: Sequence[str]) -> Phase:
    argv = ("python", "-m", f"{PACKAGE}.evaluate", "--data", str(layout.data / "vqa"), *flags)
    seconds = setting.evaluation_seconds["curve" if kind == "curve" else "vqa"] * (
        0.25 if kind == "arrangements" else 1
    )
    return _measured(layout, kind, "vqa", seed, argv, seconds)


def _loop(layout: Layout, setting: Setting, task: str, seed: int) -> Phase:
    ways = setting.ways[task]
    argv = ("python", "-m", f"{PACKAGE}.closed_loop", task, *_models(layout, task, ways, seed), "--ways", *ways)
    argv += ("--noise", f"{setting.noise:g}", "--episodes", str(setting.episodes[task]))
    argv += ("--max-moves", str(setting.max_moves[task]))
    return _measured(layout, task, task, seed, argv, setting.evaluation_seconds[task])


def _measured(layout: Layout, kind: str, task: str, seed: int, argv: tuple[str, ...], seconds: float) -> Phase:
    name, out = f"eval-{kind}-s{seed}", layout.results(kind, seed)
    return Phase(
        name=name,
        title=f"Evaluation, {kind}, seed {seed}",
        commands=(Command(argv=(*argv, "--out", str(out))),),
        outputs=(out,),
        seconds=seconds,
        needs=tuple(layout.model(task, training, seed).name for training in TRAININGS),
        settings=package_version(),
        progress=log_progress(layout.log(name)),
    )
