"""LLaVATrainer: transformers' Trainer for models of several parts, with exact sampling, checkpoints and resumption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import autoregressive
from llava.model.checkpoints.adapter import AdapterOnBase, read_over, write_adapter
from llava.train import checkpointing
from llava.train.args import TrainingArguments
from llava.train.meter import TrainingMeter
from llava.train.parts import PartRow, optimizer_groups, parts_table
from llava.train.reconstruction import KeepClipsOnHost, ReconstructionMonitor, with_clips
from llava.train.samplers import BatchPlan, LengthGroupedBatches, Mixture, PackedBatches, Shard, ShuffledBatches
from llava.train.schedule import TimeBudgetSchedule, TrainClock
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

SAMPLERS = ("shuffle", "length", "modality_length")


class TrainLoader(DataLoader):
    """A DataLoader that hands the epoch to its batch plan; ranks are dealt by the plan, nothing else shards it."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class LLaVATrainer(Trainer):
    """Trainer whose loss is the model's own and whose checkpoints are the model's own folders.

    The model's `forward` must return named `loss_terms` and take `num_items_in_batch`; with it the loss of an
    optimizer step is a mean over all supervised tokens of all micro-batches and ranks.

    Args:
        lengths: [n] tokens per sample, for packing and length grouping.
        modalities: [n] 0 = text only, 1 = with pictures, for `--sampler modality_length`.
        mixture: parts of the train data and their weights; default: all of it, once per epoch.
        clock: where the training time is counted, with the budget of `--max_train_seconds`.
        restored_from: checkpoint from which `model` was already read, so that resuming does not read it again.
        adapter: what the weights are a change to, for a model with adapters; folders then hold that change only.
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
        restored_from: Path | None = None,
        adapter: AdapterOnBase | None = None,
        **kwargs: Any,
    ) -> None:
        args.disable_tqdm = True
        self.meter = TrainingMeter()
        self.clock = clock or TrainClock(args.max_train_seconds if args.max_train_seconds > 0 else None)
        self.lengths, self.modalities, self.mixture = lengths, modalities, mixture
        self.restored_from, self.adapter = restored_from, adapter
        self._staging: Path | None = None
        super().__init__(model, args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self._num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        predictor = getattr(model, "autoregressive_reconstruction", None)
        self.reconstruction = None if predictor is None else ReconstructionMonitor(predictor.config)
        self._num_reconstruction_items: Tensor | int = 0
        self._is_first_of_step = False

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        return TrainLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batch_plan(),
            collate_fn=KeepClipsOnHost(self.data_collator),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
            persistent_workers=workers > 0,
            prefetch_factor=(self.args.dataloader_prefetch_factor or 4) if workers else None,
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def batch_plan(self) -> BatchPlan:
        """The sampler that the arguments ask for."""
        args: TrainingArguments = self.args  # type: ignore[assignment]
        common = {
            "mixture": self.mixture or Mixture(sizes=(len(self.train_dataset),)),  # type: ignore[arg-type]
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "shard": Shard(rank=args.process_index, world_size=args.world_size),
        }
        if args.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler '{args.sampler}'{suggest(args.sampler, list(SAMPLERS))}")
        if args.packing:
            budget = (
                args.tokens_per_batch if args.tokens_per_batch > 0 else args.model_max_length * self._train_batch_size
            )
            return PackedBatches(**common, lengths=self._need_lengths("--packing True"), tokens_per_batch=budget)
        if args.sampler == "shuffle":
            return ShuffledBatches(**common, batch_size=self._train_batch_size)
        return LengthGroupedBatches(
            **common,
            lengths=self._need_lengths(f"--sampler {args.sampler}"),
            batch_size=self._train_batch_size,
            modalities=self.modalities if args.sampler == "modality_length" else None,
        )

    def _need_lengths(self, why: str):
        if self.lengths is None:
            raise ValueError(f"{why} needs the length of every sample; pass lengths= to {type(self).__name__}")
        return self.lengths

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        start = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        wait = time.perf_counter() - start
        if batches:
            self.meter.add_step(tokens=sum(_count_tokens(batch) for batch in batches), wait=wait)
        if self.reconstruction is not None:
            self._num_reconstruction_items = self._over_ranks(self.reconstruction.count(batches), device)
            self._is_first_of_step = True
        return batches, num_items.clamp(min=1) if isinstance(num_items, Tensor) else num_items

    def _over_ranks(self, count: int, device: torch.device) -> Tensor | int:
        """As transformers counts the tokens of a step."""
        if not self.args.average_tokens_across_devices or self.args.world_size == 1:
            return count
        counts: Any = self.accelerator.gather(torch.tensor(count, device=device))
        return counts.sum()

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
        self._watch_reconstruction(model, outputs, sample_ids)
        averaged = self.args.average_tokens_across_devices and num_items_in_batch is not None
        scale = self.accelerator.num_processes if averaged else 1  # ranks are averaged, but each holds only its share
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
        if self._is_first_of_step and monitor.is_due(self.state.global_step):
            monitor.measure(outputs.loss, term, model, engine_watches=self.is_deepspeed_enabled)
        self._is_first_of_step = False

    @property
    def progress(self) -> float:
        """Share of the training that is done, by time where there is a budget, else by steps."""
        if self.clock.budget is not None:
            return self.clock.fraction
        return self.state.global_step / max(self.state.max_steps, 1)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        return 6 * inputs["input_ids"].numel() * self._num_trainable

    # ---- optimizer and schedule ----

    @property
    def part_rates(self) -> dict[str, float | None]:
        """Parts with a learning rate of their own."""
        args: TrainingArguments = self.args  # type: ignore[assignment]
        return {
            "mm_projector": args.mm_projector_lr,
            "vision_tower": args.vision_tower_lr,
            "autoregressive": args.autoregressive_lr,
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

    # ---- logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.meter.read())
            if self.reconstruction is not None:
                logs.update(self.reconstruction.read(logs, self.progress))
            logs["elapsed"] = round(self.clock.elapsed, 3)
            if not math.isfinite(logs["loss"]) and not self.args.logging_nan_inf_filter:
                raise FloatingPointError(
                    f"loss is {logs['loss']} at step {self.state.global_step}, expected a finite number; lower "
                    f"--learning_rate (now {self.args.learning_rate:g}) or go on from an earlier checkpoint"
                )
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` under a hidden folder, mark it complete, then give it its name in one rename."""
        output_dir = Path(self.args.output_dir or ".")
        name = f"checkpoint-{self.state.global_step}"
        self._staging = output_dir / checkpointing.STAGING
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(output_dir, name)
        self.accelerator.wait_for_everyone()

    def _publish(self, output_dir: Path, name: str) -> None:
        staged = output_dir / checkpointing.STAGING / name
        best = self._best_checkpoint(output_dir)
        if best is not None:
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        facts = {"step": self.state.global_step, "elapsed": self.clock.elapsed, "tokens": self.meter.total_tokens}
        if self.reconstruction is not None:
            facts["autoregressive_weight"] = self.reconstruction.state()
        checkpointing.mark_complete(staged, facts)
        checkpointing.publish(staged, output_dir / name)
        checkpointing.clear_staging(output_dir)
        checkpointing.remove_old(output_dir, self.args.save_total_limit, protect=best)

    def _best_checkpoint(self, output_dir: Path) -> Path | None:
        step = self.state.best_global_step
        return output_dir / f"checkpoint-{step}" if step else None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            model: Any = self.accelerator.unwrap_model(self.model)
            folder = str(output_dir or self.args.output_dir)
            if self.adapter is not None:
                write_adapter(model, folder, self.adapter, state_dict)
            else:
                model.save_pretrained(folder, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.restored_from is not None and Path(resume_from_checkpoint) == self.restored_from:
            return
        target: Any = model or self.model
        if self.adapter is not None:
            read_over(target, Path(resume_from_checkpoint))
            return
        _, source, *_ = load_pretrained_model(str(resume_from_checkpoint), device="cpu", dtype=target.dtype)
        beside = {n: v for n, v in target.state_dict().items() if autoregressive.is_of_predictor(n)}
        target.load_state_dict({**source.state_dict(), **beside})
        if target.autoregressive_reconstruction is not None:
            autoregressive.read_into(target.autoregressive_reconstruction, resume_from_checkpoint)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):  # type: ignore[override]
        marker = Path(str(resume_from_checkpoint)) / checkpointing.MARKER
        facts = checkpointing.read_json(marker) if resume_from_checkpoint and marker.is_file() else {}
        self.meter.restart(int(facts.get("tokens", 0)))
        self.clock.start(already=float(facts.get("elapsed", 0.0)))
        if self.reconstruction is not None and "autoregressive_weight" in facts:
            self.reconstruction.restore(facts["autoregressive_weight"])
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


def _count_tokens(batch: Mapping[str, Any]) -> int:
    """Real tokens of a batch that is still in host memory."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())
