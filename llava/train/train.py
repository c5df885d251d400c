"""One training run, from the command line to a finished checkpoint: `python -m llava.train.train --flags`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistNetworkError
from transformers import TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from llava.model.checkpoints.adapter import ADAPTER_CONFIG
from llava.train import callbacks, checkpointing
from llava.train.adapter_flags import adapter_settings
from llava.train.adapters import prepare_adapted_model
from llava.train.data_setup import PreparedData, prepare_data, text_of
from llava.train.llava_trainer import LLaVATrainer
from llava.train.model_setup import PreparedModel, prepare_model
from llava.train.parse import RunArguments, parse_args
from llava.train.parts import TABLE_FILE, print_table, save_table, set_trainable
from llava.train.reconstruction_setup import attach_reconstruction, reconstruction_settings
from llava.train.report.record import ObservedRun, observed_run
from llava.train.scene_split_setup import attach_split, split_keys, tune_last_layers, tuned_parts
from llava.train.schedule import TrainClock
from llava.train.sequence_parallel import attach_sequence_parallel, sequence_parallel_settings
from llava.utils.distributed import barrier, gather_objects, is_distributed, is_main, rank
from llava.utils.logging import setup_logging

logger = logging.getLogger(__name__)

ENDLESS_EPOCHS = 1_000_000
STOPPED_EARLY = 124
"""Exit status of a run that saved and stopped before its end; a launcher starts it again."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run left behind. `stopped_because` is None at its end; then `output_dir` is the trained model."""

    output_dir: Path
    step: int
    stopped_because: str | None = None
    was_finished: bool = False


def train(
    argv: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    extra_callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train, or go on from the newest whole checkpoint in `--output_dir`, or report that the run is finished.

    Args:
        argv: command line without the program's name; default: this process's.
        defaults: an entry point's own defaults, weaker than any flag.
        extra_callbacks: called after those of the command line.
    """
    began = time.monotonic()
    setup_logging("INFO")
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv, defaults=defaults)
    _set_up_process(args)
    output_dir = Path(args.training.output_dir or ".")
    finished = checkpointing.finished_run(output_dir)
    if finished is not None:
        return _reuse(output_dir, finished, args)
    checkpointing.require_writable(output_dir)
    with observed_run(output_dir, args, argv) as run:
        result = _train(args, output_dir, extra_callbacks, run, began)
        run.stopped_because = result.stopped_because
    return result


def _train(
    args: RunArguments,
    output_dir: Path,
    extra_callbacks: Sequence[TrainerCallback],
    run: ObservedRun,
    began: float,
) -> TrainResult:
    checkpoint = _resume_from(args, output_dir)
    set_seed(args.training.seed)
    split_keys(args)
    reconstruction_settings(args)  # a mistake in them is said before anything is read
    sequence_parallel_settings(args)
    prepared = _prepare(args, checkpoint)
    data = prepare_data(args, prepared)
    data.store_in(prepared.model.config)
    trainer = build_trainer(args, prepared, data, restored_from=checkpoint, began=began)
    log = callbacks.RankLogCallback(output_dir, trainer.meter, with_sample_ids=args.training.log_sample_ids)
    run.closing.append(log.flush)
    for callback in (log, *extra_callbacks):
        trainer.add_callback(callback)
    trainer.require_room_for_model()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return _finish(trainer, args, output_dir)


def _prepare(args: RunArguments, checkpoint: Path | None) -> PreparedModel:
    """The model, with adapters beside it where the flags ask for them."""
    adapters = adapter_settings(args)
    if adapters is not None:
        return prepare_adapted_model(args, adapters, checkpoint=checkpoint, corpus=lambda: text_of(args))
    if checkpoint is not None and (checkpoint / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{checkpoint} holds adapters, found no --lora_enable True; give the flags that it was started with, "
            "or choose another --output_dir"
        )
    prepared = prepare_model(args, checkpoint=checkpoint, corpus=lambda: text_of(args))
    attach_split(prepared.model, args)
    return prepared


def _first_model(args: RunArguments) -> Any:
    """The model from which this run started; what is drawn for it leaves the run's random state alone."""
    with torch.random.fork_rng(devices=[]):
        set_seed(args.training.seed)
        return _prepare(args, None).model


def build_trainer(
    args: RunArguments,
    prepared: PreparedModel,
    data: PreparedData,
    *,
    restored_from: Path | None = None,
    began: float | None = None,
) -> LLaVATrainer:
    """The trainer with its callbacks; prints and saves the table of what is trained.

    Args:
        began: when `--total_time_limit` began to run (`time.monotonic`); default: now.
    """
    training, output_dir = args.training, Path(args.training.output_dir or ".")
    if prepared.adapter is None:
        names = ("language_model", "vision_tower", "mm_projector")
        tuned = {name: getattr(training, f"tune_{name}") for name in names}
        set_trainable(prepared.model, tuned, tuned_parts(args))
        tune_last_layers(prepared.model, args)
    attach_reconstruction(prepared.model, reconstruction_settings(args), restored_from, lambda: _first_model(args))
    attach_sequence_parallel(prepared.model, sequence_parallel_settings(args))
    clock = _clock(args)
    trainer = LLaVATrainer(
        model=prepared.model,
        args=training,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=data.collator,
        lengths=data.lengths,
        modalities=data.modalities,
        mixture=data.mixture,
        clock=clock,
        restored_from=restored_from,
        adapter=prepared.adapter,
        callbacks=_callbacks(args, output_dir, clock, began),
    )
    if trainer.is_world_process_zero():
        rows = trainer.parts_table()
        print_table(rows)
        save_table(rows, output_dir / TABLE_FILE)
    return trainer


def _clock(args: RunArguments) -> TrainClock:
    """The training clock; under a time budget the steps are unlimited unless a number was given."""
    training = args.training
    if training.max_train_seconds <= 0:
        return TrainClock()
    if not {"max_steps", "num_train_epochs"} & args.given:
        training.num_train_epochs = ENDLESS_EPOCHS
    return TrainClock(training.max_train_seconds)


def _callbacks(args: RunArguments, output_dir: Path, clock: TrainClock, began: float | None) -> list[Any]:
    training = args.training
    limit = training.total_time_limit * 60 if training.total_time_limit > 0 else None
    chosen: list[Any] = [
        callbacks.TimeBudgetCallback(clock, training.save_seconds if training.save_seconds > 0 else None),
        callbacks.AutoResumeCallback(limit, reserve=training.pre_terminate_time * 60, began=began),
        callbacks.ProgressCallback(output_dir, clock, every=training.progress_seconds),
        callbacks.LossCurveCallback(output_dir),
    ]
    if "tensorboard" in training.report_to:
        training.report_to = [name for name in training.report_to if name != "tensorboard"]
        chosen.append(callbacks.tensorboard(training.logging_dir or str(output_dir / "runs")))
    return chosen


def _set_up_process(args: RunArguments) -> None:
    training = args.training
    disable_progress_bar()  # one bar is enough: the trainer's
    if training.deepspeed:
        import deepspeed

        # before any weights are split: on the CPU only this call makes DeepSpeed see the other ranks
        deepspeed.init_distributed(dist_backend="gloo" if training.device.type == "cpu" else "nccl")
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # every trainable weight is reached in every forward pass
    if training.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible to one process, one is used; start one process per GPU with torchrun", training.n_gpu
        )
        training._n_gpu = 1


def _reuse(output_dir: Path, finished: dict[str, Any], args: RunArguments) -> TrainResult:
    """Answer for a run that ended before; an error when it was asked for with other settings."""
    before, now = finished.get("arguments", {}), identity(args)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        changes = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in changed)
        raise ValueError(
            f"{output_dir} holds a finished run with other settings ({changes}); choose another --output_dir, "
            f"or delete the folder to train it again"
        )
    logger.info("%s is finished (%s steps): nothing to train, reusing it", output_dir, finished["step"])
    return TrainResult(output_dir=output_dir, step=finished["step"], was_finished=True)


def _resume_from(args: RunArguments, output_dir: Path) -> Path | None:
    if is_main():
        checkpointing.clear_staging(output_dir)
    barrier()
    asked = args.training.resume_from_checkpoint
    if asked and asked not in ("True", "False"):
        return checkpointing.asked_for(Path(asked))
    checkpoint = None if asked == "False" else checkpointing.newest_checkpoint(output_dir)
    found = gather_objects(None if checkpoint is None else checkpoint.name)
    if len(set(found)) > 1:
        raise ValueError(
            f"the ranks find {found} in {output_dir}, expected the same; it must be one folder for all machines"
        )
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
    return checkpoint


RUN_ONLY = frozenset(
    {
        *(
            "output_dir",
            "logging_steps",
            "logging_dir",
            "logging_first_step",
            "log_sample_ids",
            "progress_seconds",
            "report_to",
            "run_name",
        ),
        *("save_steps", "save_seconds", "save_strategy", "save_total_limit", "save_async", "resume_from_checkpoint"),
        *("dataloader_num_workers", "dataloader_prefetch_factor", "total_time_limit", "pre_terminate_time"),
        *("deepspeed", "ddp_backend", "use_cpu", "local_rank", "disable_tqdm", "log_level", "cache_dir", "data_root"),
        *("seq_parallel_size", "seq_parallel_ring_size", "seq_parallel_ring_type"),
    }
)
"""Arguments that do not change what is learnt."""


def identity(args: RunArguments) -> dict[str, Any]:
    """The given arguments that decide the result, for comparing two command lines."""
    values = {**vars(args.model), **vars(args.data), **vars(args.training)}
    return {name: _plain(values[name]) for name in sorted(args.given & values.keys() - RUN_ONLY)}


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _finish(trainer: LLaVATrainer, args: RunArguments, output_dir: Path) -> TrainResult:
    step = trainer.state.global_step
    reason = next(
        (c.stopped_because for c in trainer.callback_handler.callbacks if isinstance(c, callbacks.AutoResumeCallback)),
        None,
    )
    if reason is not None:
        return TrainResult(output_dir=output_dir, step=step, stopped_because=reason)
    trainer.require_room_for_model()
    trainer.save_model()
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        facts = {
            "step": step,
            "tokens": trainer.meter.total_tokens,
            "elapsed": round(trainer.clock.elapsed, 2),
            "arguments": identity(args),
        }
        checkpointing.write_json(output_dir / checkpointing.FINISHED, facts)
    return TrainResult(output_dir=output_dir, step=step)


def main(argv: Sequence[str] | None = None, *, defaults: Mapping[str, Any] | None = None) -> int:
    """Entry point of the command line: the exit status, a caller's mistake as one line instead of a traceback."""
    try:
        result = train(argv, defaults=defaults)
    except (ValueError, KeyError, OSError, FloatingPointError, DistNetworkError) as error:
        if os.environ.get("LLAVA_TRACEBACK"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError:
        if is_distributed():  # what a rank says whose neighbour ended is not the cause
            logger.error(
                "rank %d ends; where another rank ended before it, the cause stands in that one's output", rank()
            )
        raise
    return STOPPED_EARLY if result.stopped_because else 0


def _one_line(error: Exception) -> Any:
    if isinstance(error, KeyError) and error.args:
        return error.args[0]
    if isinstance(error, DistNetworkError):
        return f"the ranks cannot meet ({error}); if the port is taken, set MASTER_PORT to a free one on all machines"
    return error


if __name__ == "__main__":
    sys.exit(main())
