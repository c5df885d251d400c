"""From a profile to phases: every phase is a list of documented commands, which are printed and can be copied.

data ──> align ──┬──> streaming ──> evaluation ──┬──> report
                 ├──> 8 frames  ──> evaluation ──┤
      object detector ──> background and objects ┘
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import llava
from playground.demo.phases import Command, Phase
from playground.demo.profiles import Level, Profile
from playground.demo.progress import log_progress, training_progress
from playground.demo.scene_phases import scene_phases

START_SECONDS = 20.0
"""A training spends so much more than its budget: imports, tokenizer, first step, the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to put the job to a model."""

    name: str
    title: str
    script: str
    mixture: str


FORMATS = (
    Format(name="streaming", title="streaming", script="sft_episodes.sh", mixture="embedded_streaming"),
    Format(name="8frames", title="8 frames", script="sft_8frames.sh", mixture="embedded_navigation"),
)
ALIGN = Format(name="align", title="align", script="align.sh", mixture="embedded_streaming")
TASKS = {"one_room": "navigation-embedded", "multi_room": "navigation-embedded-rooms"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things stand below a run folder; the first level has the short names."""

    run_dir: Path
    profile: Profile

    def _suffix(self, level: Level) -> str:
        return "" if level == self.profile.levels[0] else f"-{level.name}"

    def data(self, level: Level) -> Path:
        return self.run_dir / f"data{self._suffix(level)}"

    def model(self, stage: str, level: Level) -> Path:
        return self.run_dir / "models" / f"{stage}{self._suffix(level)}"

    def evaluation(self, stage: str, level: Level) -> Path:
        return self.run_dir / "eval" / f"{stage}{self._suffix(level)}"

    def results(self, stage: str, level: Level) -> Path:
        return self.evaluation(stage, level) / TASKS[level.name]

    def phase(self, kind: str, level: Level) -> str:
        return f"{kind}{self._suffix(level)}"

    def log(self, phase: str) -> Path:
        return self.run_dir / "logs" / f"{phase}.log"


def make_plan(profile: Profile, run_dir: Path, *, cores: int) -> tuple[Phase, ...]:
    """All phases in an order in which each stands after what it needs."""
    layout = Layout(run_dir=run_dir, profile=profile)
    phases: list[Phase] = []
    for level in profile.levels:
        phases.append(_data(layout, level, cores))
        if level.align_seconds > 0:
            phases.append(_training(layout, level, ALIGN, cores, cores=cores))
        share = max(1, cores // 2) if profile.side_by_side else cores
        phases += [_training(layout, level, form, share, cores=cores) for form in FORMATS]
        if level == profile.levels[0]:  # here it takes one core while the evaluations take the other, one by one
            phases += scene_phases(profile, run_dir, level, _versions())
        phases += [_evaluation(layout, level, form, share) for form in FORMATS]
    phases.append(_report(layout, phases))
    return tuple(phases)


def _seconds_or_default(level: Level, form: Format) -> float:
    return level.align_seconds if form is ALIGN else level.train_seconds


def _data(layout: Layout, level: Level, threads: int) -> Phase:
    profile, folder, name = layout.profile, layout.data(level), layout.phase("data", level)
    camera = ("--width", str(profile.image_size), "--height", str(profile.image_size))
    common = ("--level", level.name, "--out", str(folder), *camera, "--threads", str(threads))
    train = ("vila-world", "write", *common, "--split", "train", "--houses", str(level.houses))
    train += ("--seed", str(profile.seed * level.houses), "--noise", f"{level.noise:g}", "--oversample")
    train += ("--detours", f"{level.detours:g}") if level.detours else ()
    unseen = ("vila-world", "write", *common, "--split", "val_unseen", "--houses", str(level.episodes), "--noise", "0")
    return Phase(
        name=name,
        title=f"World and data, {level.title}",
        commands=(Command(argv=train), Command(argv=unseen)),
        outputs=(folder,),
        seconds=profile.data_seconds,
        threads=threads,
        settings=_versions(),
        progress=log_progress(layout.log(name)),
    )


def _training(layout: Layout, level: Level, form: Format, threads: int, *, cores: int) -> Phase:
    profile, name = layout.profile, layout.phase(form.name, level)
    output, seconds = layout.model(form.name, level), _seconds_or_default(level, form)
    start, needs = _starting_point(layout, level, form)
    flags = ("--data_root", str(layout.data(level)), "--max_train_seconds", f"{seconds:g}", "--seed", str(profile.seed))
    stage = profile.stage_flags.get(form.name, ())
    env = {"OUTPUT": str(output), "DATA_MIXTURE": form.mixture}
    if start is not None:
        env["MODEL"] = str(start)
    title = "Align: what both formats start from" if form is ALIGN else f"Training, {form.title}, {level.title}"
    return Phase(
        name=name,
        title=title,
        commands=(Command(argv=("bash", f"scripts/train/{form.script}", *flags, *profile.flags, *stage), env=env),),
        outputs=(output,),
        seconds=seconds + START_SECONDS,
        threads=threads,
        needs=(layout.phase("data", level), *needs),
        settings=_versions() | {"threads": threads},
        progress=training_progress(output),
    )


def _starting_point(layout: Layout, level: Level, form: Format) -> tuple[Path | None, tuple[str, ...]]:
    """The checkpoint a stage starts from, and the phase that makes it."""
    first = layout.profile.levels[0]
    if form is ALIGN:
        return None, ()
    if level.align_seconds > 0:
        return layout.model(ALIGN.name, level), (layout.phase(ALIGN.name, level),)
    if level != first:
        return layout.model(form.name, first), (layout.phase(form.name, first),)
    return None, ()


def _evaluation(layout: Layout, level: Level, form: Format, threads: int) -> Phase:
    name = layout.phase(f"eval-{form.name}", level)
    argv = ("vila-eval", "-m", str(layout.model(form.name, level)), "-t", TASKS[level.name])
    argv += ("--data-root", str(layout.data(level)), "--output-dir", str(layout.evaluation(form.name, level)))
    argv += ("--episodes", str(level.episodes), "-o", f"max_steps={level.max_steps}")
    argv += ("--pictures", str(layout.profile.pictures))
    if form is not FORMATS[0]:
        argv += ("--no-floors",)  # the floors know no model: the first format has measured them on the same episodes
    return Phase(
        name=name,
        title=f"Evaluation, {form.title}, {level.title}",
        commands=(Command(argv=argv),),
        outputs=(layout.results(form.name, level) / "results.json",),
        seconds=layout.profile.evaluation_seconds,
        threads=threads,
        needs=(layout.phase("data", level), layout.phase(form.name, level)),
        settings=_versions(),
        progress=log_progress(layout.log(name)),
    )


def _report(layout: Layout, phases: Sequence[Phase]) -> Phase:
    page = layout.run_dir / "report.html"
    argv = ("python", "-m", "playground.demo.report", str(layout.run_dir))
    return Phase(
        name="report",
        title="Report",
        commands=(Command(argv=argv),),
        outputs=(page,),
        seconds=5.0,
        needs=tuple(phase.name for phase in phases),
        settings=_versions(),
    )


def _versions() -> dict[str, str]:
    """A new version of the package may write other data and other models."""
    return {"llava": llava.__version__}


def available_cores() -> int:
    """Cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
