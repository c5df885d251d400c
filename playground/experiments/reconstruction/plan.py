"""From a setting to phases: one data set, one aligned checkpoint per seed, then every arm from there.

data ──> align, seed 0 ──┬──> streaming, baseline ──┬──> walks
                         │                          └──> held-out loss and probes
                         ├──> streaming, + actions ──> ...
                         └──> streaming, + actions, as long as the baseline ──> ...
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from playground.demo.phases import Command, Phase
from playground.demo.plan import ALIGN, FORMATS, Format
from playground.demo.progress import log_progress
from playground.experiments.common import package_version, training_phase
from playground.experiments.reconstruction.arms import ARMS, Run
from playground.experiments.reconstruction.settings import COST_OF_LOSS, Setting

TASK = "navigation-embedded"
FORMAT = {form.name: form for form in FORMATS}
PACKAGE = "playground.experiments.reconstruction"
NO_CLIPPING = ("--max_grad_norm", "0")
"""Of every arm. The norm is taken over all weights together: a predictor with a strong loss would shorten the main step
(measured: norm 2 without, 10 to 40 with a gradient share of 5 %), and the arm would differ in that as well."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things stand below a run folder."""

    run_dir: Path

    @property
    def data(self) -> Path:
        return self.run_dir / "data"

    @property
    def depth(self) -> Path:
        """The same world with the depth of every frame beside it."""
        return self.run_dir / "data_depth"

    def training_data(self, run: Run) -> Path:
        return self.depth if run.arm.needs_depth else self.data

    def aligned(self, seed: int) -> Path:
        return self.run_dir / "models" / f"align-s{seed}"

    def model(self, run: Run) -> Path:
        return self.run_dir / "models" / run.name

    def walks(self, run: Run) -> Path:
        return self.run_dir / "eval" / run.name

    def walk_results(self, run: Run) -> Path:
        return self.walks(run) / TASK / "results.json"

    def measured(self, run: Run) -> Path:
        return self.run_dir / "heldout" / f"{run.name}.json"

    def log(self, phase: str) -> Path:
        return self.run_dir / "logs" / f"{phase}.log"


def make_plan(setting: Setting, run_dir: Path, *, cores: int) -> tuple[Phase, ...]:
    """All phases, each behind what it needs."""
    layout = Layout(run_dir=run_dir)
    phases = [_data(layout, setting, cores)]
    if any(run.arm.needs_depth for run in setting.runs()):
        phases.append(_depth(layout, setting, cores))
    seen: set[int] = set()
    for run in setting.runs():
        if run.seed not in seen:
            seen.add(run.seed)
            phases.append(_align(layout, setting, run.seed, cores))
        phases += [_training(layout, setting, run, cores), _walks(layout, setting, run), _heldout(layout, setting, run)]
    return tuple(phases)


def _data(layout: Layout, setting: Setting, cores: int) -> Phase:
    unseen = _houses(layout.data, setting, "val_unseen", setting.episodes, "--frames", "filmstrip")
    commands = (_training_houses(layout.data, setting), unseen)
    return _data_phase("data", "World and data", commands, layout, layout.data, setting, cores)


def _depth(layout: Layout, setting: Setting, cores: int) -> Phase:
    commands = (_training_houses(layout.depth, setting, "--depth"),)
    return _data_phase("depth_data", "The same world with depth", commands, layout, layout.depth, setting, cores)


def _training_houses(folder: Path, setting: Setting, *more: str) -> Command:
    detours = ("--detours", f"{setting.detours:g}") if setting.detours else ()
    return _houses(folder, setting, "train", setting.houses, "--oversample", *detours, *more)


def _houses(folder: Path, setting: Setting, split: str, count: int, *more: str) -> Command:
    size = ("--width", str(setting.image_size), "--height", str(setting.image_size))
    argv = ("vila-world", "write", "--out", str(folder), *size, "--threads", "2")  # threads: no matter for the result
    return Command(argv=(*argv, "--split", split, "--houses", str(count), "--noise", f"{setting.noise:g}", *more))


def _data_phase(
    name: str, title: str, commands: tuple[Command, ...], layout: Layout, folder: Path, setting: Setting, cores: int
) -> Phase:
    return Phase(
        name=name,
        title=title,
        commands=commands,
        outputs=(folder,),
        seconds=setting.data_seconds,
        threads=cores,
        settings=package_version(),
        progress=log_progress(layout.log(name)),
    )


def _align(layout: Layout, setting: Setting, seed: int, cores: int) -> Phase:
    output = layout.aligned(seed)
    flags = (*_flags(layout.data, setting, ALIGN.name, seed), "--max_steps", str(setting.align_steps))
    return training_phase(
        name=f"align-s{seed}",
        title=f"Align, seed {seed}: what all arms start from",
        command=Command(argv=_script(ALIGN, flags), env={"OUTPUT": str(output), "DATA_MIXTURE": ALIGN.mixture}),
        output=output,
        seconds=setting.align_steps * setting.step_seconds["align"] + setting.start_seconds,
        threads=min(setting.threads, cores),
        needs=("data",),
    )


def _training(layout: Layout, setting: Setting, run: Run, cores: int) -> Phase:
    form, output, steps = FORMAT[run.format], layout.model(run), setting.steps[run.format]
    mixture = form.mixture if run.arm.share == 1 else f"{form.mixture}*{run.arm.share:g}"
    env = {"MODEL": str(layout.aligned(run.seed)), "OUTPUT": str(output), "DATA_MIXTURE": mixture}
    meter = ("python", "-m", f"{PACKAGE}.metered", str(output), "--unit", setting.cost)
    needs: tuple[str, ...] = (f"align-s{run.seed}", *(("depth_data",) if run.arm.needs_depth else ()))
    flags = (*_flags(layout.training_data(run), setting, run.format, run.seed), *NO_CLIPPING, *_loss_flags(run))
    if run.budget == "cost":
        baseline, twin = _partners(run)
        meter += ("--as-long-as", str(layout.model(baseline)), "--one-step-like", str(layout.model(twin)))
        needs += (baseline.name, twin.name)
    else:
        flags += ("--max_steps", str(steps))
    seconds = steps * setting.step_seconds[run.format]
    seconds *= COST_OF_LOSS if run.arm.keys is not None and run.budget == "steps" else 1.0
    return training_phase(
        name=run.name,
        title=f"Training, {form.title}, {title_of(run)}, seed {run.seed}",
        command=Command(argv=(*meter, "--", *_script(form, flags)), env=env),
        output=output,
        seconds=seconds + setting.start_seconds,
        threads=min(setting.threads, cores),
        needs=needs,
    )


def title_of(run: Run) -> str:
    return run.arm.title if run.budget == "steps" else f"{run.arm.title}, equal time"


def _partners(run: Run) -> tuple[Run, Run]:
    """The baseline whose time is the budget, and the same arm at equal steps, whose steps cost as this one's will."""
    baseline = Run(arm=ARMS[run.arm.baseline], format=run.format, seed=run.seed)
    return baseline, Run(arm=run.arm, format=run.format, seed=run.seed)


def _script(form: Format, flags: Sequence[str]) -> tuple[str, ...]:
    return ("bash", f"scripts/train/{form.script}", *flags)


def _flags(data: Path, setting: Setting, stage: str, seed: int) -> tuple[str, ...]:
    """Steps decide, not the clock; the script's own budget of time is switched off."""
    common = (
        "--data_root",
        str(data),
        "--seed",
        str(seed),
        "--max_train_seconds",
        "-1",
        "--logging_steps",
        "10",
    )
    return (*common, "--report_to", "none", *setting.flags, *setting.stage_flags.get(stage, ()))


def _loss_flags(run: Run) -> tuple[str, ...]:
    if run.arm.keys is None:
        return ()
    return ("--enable_autoregressive", "True", "--autoregressive_config", json.dumps(dict(run.arm.keys)))


def _walks(layout: Layout, setting: Setting, run: Run) -> Phase:
    name = f"walk-{run.name}"
    argv = ("vila-eval", "-m", str(layout.model(run)), "-t", TASK, "--data-root", str(layout.data))
    argv += ("--output-dir", str(layout.walks(run)), "--episodes", str(setting.episodes), "--no-floors")
    argv += ("-o", f"max_steps={setting.max_moves}")
    return Phase(
        name=name,
        title=f"Walks, {run.name}",
        commands=(Command(argv=argv),),
        outputs=(layout.walk_results(run),),
        seconds=setting.evaluation_seconds,
        needs=("data", run.name),
        settings=package_version(),
        progress=log_progress(layout.log(name)),
    )


def _heldout(layout: Layout, setting: Setting, run: Run) -> Phase:
    name = f"heldout-{run.name}"
    argv = ("python", "-m", f"{PACKAGE}.measure", "--model", str(layout.model(run)), "--format", run.format)
    argv += ("--data-root", str(layout.data), "--episodes", str(setting.heldout))
    argv += ("--fit", f"{setting.probes_fit:g}", "--out", str(layout.measured(run)))
    return Phase(
        name=name,
        title=f"Held-out loss and probes, {run.name}",
        commands=(Command(argv=argv),),
        outputs=(layout.measured(run),),
        seconds=setting.measure_seconds,
        needs=("data", run.name),
        settings=package_version(),
        progress=log_progress(layout.log(name)),
    )
