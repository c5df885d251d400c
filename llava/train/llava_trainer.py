"""LLaVATrainer: transformers' Trainer for models of several parts, with exact sampling, checkpoints and resumption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback

from llava.train.args import TrainingArguments
from llava.train.batch_plans import DataPlan, build_plan
from llava.train.checkpoint_trainer import CheckpointTrainer
from llava.train.clipping import AUXILIARY_NORM, AUXILIARY_PART, clip_in_groups
from llava.train.data_position import check_position
from llava.train.flops import FlopCount, try_count_flops, work_of
from llava.train.gradient_norms import part_norms
from llava.train.loader import train_loader
from llava.train.loss_watch import BadBatch, LossWatch
from llava.train.meter import TrainingMeter
from llava.train.parts import (
    RATE_FLAGS,
    TABLE_FILE,
    PartRow,
    check_rates,
    optimizer_groups,
    part_of,
    parts_table,
    save_table,
)
from llava.train.peak import peak_flops
from llava.train.reconstruction import KeepClipsOnHost, ReconstructionMonitor, with_clips
from llava.train.samplers import BatchPlan, Mixture
from llava.train.schedule import TimeBudgetSchedule, TrainClock

logger = logging.getLogger(__name__)


class LLaVATrainer(CheckpointTrainer):
    """Trainer whose loss is the model's own and whose checkpoints are the model's own folders.

    The model's `forward` must return named `loss_terms` and take `num_items_in_batch`; with it the loss of an
    optimizer step is a mean over all supervised tokens of all micro-batches and ranks.

    Args:
        lengths: [n] tokens per sample, for packing and length grouping.
        modalities: [n] 0 = text only, 1 = with pictures, for `--sampler modality_length`.
        mixture: parts of the train data and their weights; default: all of it, once per epoch.
        clock: where the training time is counted, with the budget of `--max_train_seconds`.
        kwargs: of `CheckpointTrainer` and of transformers' Trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        lengths=None,
        modalities=None,
        mixture: Mixture | None = None,
        clock: TrainClock | None = None,
        **kwargs: Any,
    ) -> None:
        args.disable_tqdm = True
        self.meter = TrainingMeter()
        self.clock = clock or TrainClock(args.max_train_seconds if args.max_train_seconds > 0 else None)
        self.lengths, self.modalities, self.mixture = lengths, modalities, mixture
        super().__init__(model, args, **kwargs)
        check_rates(model, {flag: getattr(args, flag) for flag in RATE_FLAGS})
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self._flop_count: FlopCount | None = None
        self._part_norms: dict[str, Tensor] = {}
        self._trained_parts = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
        predictor = getattr(model, "autoregressive_reconstruction", None)
        self._sequence_group = getattr(model, "sequence_group", None)
        self._sequence_size = 1 if self._sequence_group is None else self._sequence_group.size
        self.reconstruction = None if predictor is None else ReconstructionMonitor(predictor.config)
        self._num_reconstruction_items: Tensor | int = 0
        self._is_first_of_step = False
        self._auxiliary_norm: Tensor | None = None
        self._loss_watch = LossWatch(Path(args.output_dir or "."))

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        if self._is_stream:
            if self._sequence_group is not None:
                raise ValueError(
                    f"--seq_parallel_size is {self._sequence_size} and the data is a stream, which is dealt to single "
                    "processes; expected data sets with an index, which can be dealt to groups"
                )
            return super().get_train_dataloader()
        return train_loader(
            self.train_dataset,  # type: ignore[arg-type]
            self.batch_plan(),
            collate=KeepClipsOnHost(self.data_collator),
            workers=self.args.dataloader_num_workers,
            prefetch=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
            seed=self.args.seed,
        )

    @property
    def _is_stream(self) -> bool:
        return isinstance(self.train_dataset, IterableDataset)

    def data_plan(self) -> DataPlan:
        """What the arguments ask for."""
        mixture = self.mixture or Mixture(sizes=(len(self.train_dataset),))  # type: ignore[arg-type]
        groups = self.args.world_size // self._sequence_size
        return DataPlan.of(self.args, mixture, batch_size=self._train_batch_size, groups=groups)  # type: ignore[arg-type]

    def batch_plan(self) -> BatchPlan:
        """The batches of this rank; the processes that share a sequence get the same ones."""
        plan = self.data_plan()
        if plan.tokens_per_batch <= 0:
            self._warn_of_small_data(plan)
        rank = self.args.process_index // self._sequence_size
        return build_plan(plan, rank=rank, lengths=self.lengths, modalities=self.modalities)

    def _warn_of_small_data(self, plan: DataPlan) -> None:
        samples = Mixture(sizes=plan.sizes, weights=plan.weights).draws
        if samples < plan.samples_per_step:
            text = "an epoch has %d samples, a global batch %d: every epoch is one smaller step with all of them"
            logger.warning(text, samples, plan.samples_per_step)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        start = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        wait = time.perf_counter() - start
        if isinstance(num_items, Tensor) and self._tells_all_ranks:
            num_items = num_items / self._sequence_size
        frames = 0 if self.reconstruction is None else self.reconstruction.count(batches)
        if batches:
            self._meter_step(batches, frames, wait)
        if self.reconstruction is not None:
            self._num_reconstruction_items = self._over_ranks(frames, device)
            self._is_first_of_step = True
        return batches, num_items.clamp(min=1) if isinstance(num_items, Tensor) else num_items

    def _meter_step(self, batches: Sequence[Mapping[str, Any]], frames: int, wait: float) -> None:
        """What this rank reads in a step, counted while it is in host memory."""
        works, counts = [work_of(batch) for batch in batches], self._flop_count
        reads = self._sequence_group is None or self._sequence_group.rank == 0  # of a shared batch one rank tells
        flops = sum(map(counts.of, works)) + counts.per_frame * frames if counts else 0.0
        self.meter.add_step(
            tokens=sum(work.tokens for work in works) if reads else 0,
            samples=sum(work.samples for work in works) if reads else 0,
            flops=flops / self._sequence_size,
            wait=wait,
            sample_ids=[name for batch in batches for name in batch.get("sample_ids", ())],
        )

    def _over_ranks(self, count: int, device: torch.device) -> Tensor | int:
        """As transformers counts the tokens of a step."""
        if not self._tells_all_ranks:
            return count
        counts: Any = self.accelerator.gather(torch.tensor(count, device=device))
        return counts.sum() / self._sequence_size

    @property
    def _tells_all_ranks(self) -> bool:
        """Whether what is counted in a step is added up over the ranks."""
        return self.args.average_tokens_across_devices and self.args.world_size > 1

    def get_total_train_batch_size(self, args: Any) -> int:
        return super().get_total_train_batch_size(args) // self._sequence_size

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return super()._prepare_inputs(with_clips(inputs, super()._prepare_inputs))

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        sample_ids = inputs.get("sample_ids", ())
        inputs = {key: value for key, value in inputs.items() if key != "sample_ids"}
        if self.reconstruction is not None and model.training:
            inputs["num_reconstruction_items"] = None if num_items_in_batch is None else self._num_reconstruction_items
            inputs["autoregressive_weight"] = self.reconstruction.weight(self.progress)
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._loss_watch.observe(outputs.loss, step=self.state.global_step, sample_ids=sample_ids)
        self._watch_reconstruction(model, outputs, sample_ids)
        averaged = self.args.average_tokens_across_devices and num_items_in_batch is not None
        shares = self._sequence_size if model.training else 1
        scale = self.accelerator.num_processes if averaged else shares  # ranks are averaged, each holds only its share
        if model.training:
            share = 1 if num_items_in_batch is not None else 1 / self.current_gradient_accumulation_steps
            self.meter.add_terms(outputs.loss_terms or {}, float(scale * share))
        loss = outputs.loss * scale
        return (loss, outputs) if return_outputs else loss

    def _watch_reconstruction(self, model: nn.Module, outputs: Any, sample_ids: Sequence[str]) -> None:
        monitor, term = self.reconstruction, getattr(outputs, "reconstruction", None)
        if monitor is None or term is None:
            return
        monitor.observe(term, step=self.state.global_step, sample_ids=sample_ids)
        is_whole = self._sequence_group is None  # else every rank has a part of each gradient
        if is_whole and self._is_first_of_step and monitor.is_due(self.state.global_step):
            monitor.measure(outputs.loss, term, model, engine_watches=self.is_deepspeed_enabled)
        self._is_first_of_step = False

    @property
    def progress(self) -> float:
        """Share of the training that is done, by time where there is a budget, else by steps."""
        if self.clock.budget is not None:
            return self.clock.fraction
        return self.state.global_step / max(self.state.max_steps, 1)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        return int(self.meter.step.flops / max(self.current_gradient_accumulation_steps, 1))

    # ---- optimizer and schedule ----

    @property
    def part_rates(self) -> dict[str, float | None]:
        """Parts with a learning rate of their own."""
        args: TrainingArguments = self.args  # type: ignore[assignment]
        return {
            "mm_projector": args.mm_projector_lr,
            "vision_tower": args.vision_tower_lr,
            "autoregressive": args.autoregressive_lr,
            "background_projector": args.background_projector_lr or args.mm_projector_lr,
            "object_projector": args.object_projector_lr or args.mm_projector_lr,
            "object_tower": args.object_tower_lr or args.vision_tower_lr,
            "prefusion": args.prefusion_lr,
        }

    def _trained_model(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def parts_table(self) -> list[PartRow]:
        return parts_table(self._trained_model(), learning_rate=self.args.learning_rate, part_rates=self.part_rates)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = optimizer_groups(
                model or self._trained_model(),
                weight_decay=self.args.weight_decay,
                learning_rate=self.args.learning_rate,
                part_rates=self.part_rates,
            )
            build, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
            self.optimizer = build(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.clock.budget is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = TimeBudgetSchedule(
                optimizer or self.optimizer,
                self.clock,
                name=str(self.args.lr_scheduler_type.value),  # type: ignore[union-attr]
                warmup=float(self.args.warmup_steps),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self._clips_in_groups:
            return super()._clip_grad_norm(model)
        return self._clip_in_groups(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Any:
        if grad_norm is None and self._clips_in_groups:
            grad_norm = self._clip_in_groups(model, math.inf)
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self._knows_one_norm and self._will_log():
            self._part_norms = part_norms(model, norm, without=(AUXILIARY_PART,) if self._clips_in_groups else ())
        return norm

    def _clip_in_groups(self, model: nn.Module, max_norm: float) -> Tensor:
        """The main weights' norm; what only the next-frame loss trains is clipped by a norm of its own."""
        self.accelerator.unscale_gradients()
        norm, self._auxiliary_norm = clip_in_groups(model, max_norm)
        return norm

    @property
    def _clips_in_groups(self) -> bool:
        """DeepSpeed clips in its own step, FSDP1 holds weights of several parts in one: both know one norm only."""
        return self.reconstruction is not None and not self._knows_one_norm

    @property
    def _knows_one_norm(self) -> bool:
        return self.is_deepspeed_enabled or (self.is_fsdp_enabled and not self.accelerator.is_fsdp2)

    def _will_log(self) -> bool:
        """Whether a log line is due at the end of this step; the same on every rank."""
        step, every = self.state.global_step + 1, max(int(self.state.logging_steps or 1), 1)
        return step % every == 0 or (step == 1 and self.args.logging_first_step)

    # ---- logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            bad = [] if math.isfinite(logs["loss"]) else self._loss_watch.check()
            self._loss_watch.clear()
            logs.update(self.meter.read() | self._learning_rates(logs.get("learning_rate", 0.0)))
            logs.update({name: float(norm) for name, norm in self._part_norms.items()})
            self._part_norms = {}
            if self.reconstruction is not None:
                logs.update(self.reconstruction.read(logs, self.progress))
                if self._auxiliary_norm is not None:
                    logs[AUXILIARY_NORM] = float(self._auxiliary_norm)
            logs["elapsed"] = round(self.clock.elapsed, 3)
            self._stop_at(bad)
        super().log(logs, start_time)

    def _stop_at(self, bad: Sequence[BadBatch]) -> None:
        if bad and not self.args.logging_nan_inf_filter:
            first = min(bad, key=lambda batch: batch.step)
            raise FloatingPointError(
                f"loss is {first.loss} at step {first.step + 1}, expected a finite number; samples "
                f"{list(first.sample_ids)}, of all ranks in {self._loss_watch.file}. Look at them, lower "
                f"--learning_rate (now {self.args.learning_rate:g}), or go on from an earlier checkpoint"
            )

    def _learning_rates(self, main: float) -> dict[str, float]:
        """Of parts with a rate of their own; a schedule multiplies all rates by the same factor."""
        if not self.args.learning_rate:
            return {}
        given = {part: rate for part, rate in self.part_rates.items() if rate and part in self._trained_parts}
        return {f"learning_rate_{part}": main * rate / self.args.learning_rate for part, rate in given.items()}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        if prediction_loss_only:  # the loss itself needs the logits of supervised rows only
            inputs = {**inputs, "logits_to_keep": 1}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.meter.paused():
            return super().evaluate(*args, **kwargs)

    # ---- checkpoints ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        self._stop_at(self._loss_watch.check())  # of the steps behind the last log line
        return result

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_at(self._loss_watch.check())  # weights that are no numbers replace no good checkpoint
        with self.meter.paused():
            super()._save_checkpoint(model, trial)

    def checkpoint_facts(self) -> dict[str, Any]:
        facts = {**super().checkpoint_facts(), "elapsed": self.clock.elapsed, "tokens": self.meter.total_tokens}
        if self.reconstruction is not None:
            facts["autoregressive_weight"] = self.reconstruction.state()
        if not self._is_stream:
            facts["data"] = self.data_plan().as_dict()
        return facts

    def restore_facts(self, facts: dict[str, Any]) -> None:
        if "data" in facts and not (self._is_stream or self.args.ignore_data_skip):
            plan_of = partial(build_plan, lengths=self.lengths, modalities=self.modalities)
            check_position(DataPlan.read(facts["data"]), self.data_plan(), step=facts["step"], plan_of=plan_of)
        self._count_flops()
        self.meter.restart(int(facts.get("tokens", 0)))
        self.clock.start(already=float(facts.get("elapsed", 0.0)))
        if self.reconstruction is not None and "autoregressive_weight" in facts:
            self.reconstruction.restore(facts["autoregressive_weight"])

    def _write_model(self, model: Any, folder: str, state_dict: dict | None) -> None:
        super()._write_model(model, folder, state_dict)
        save_table(self.parts_table(), Path(folder) / TABLE_FILE)

    def _count_flops(self) -> None:
        """Before an engine spreads the weights."""
        self._flop_count = try_count_flops(self._trained_model())
        if self._flop_count is not None:
            given = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
            dtype: Any = given or self._trained_model().dtype
            self.meter.peak = peak_flops(self.args.device, dtype)
            logger.info("mfu is told against %.4g TFLOP/s, %s", self.meter.peak.flops / 1e12, self.meter.peak.source)
