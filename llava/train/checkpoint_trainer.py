"""CheckpointTrainer: transformers' Trainer with checkpoints that are whole or not there, under every engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import autoregressive
from llava.model.checkpoints.adapter import AdapterOnBase, read_over, write_adapter
from llava.train import checkpointing, sharded_optimizer
from llava.train.background import BackgroundWriter, snapshot
from llava.train.disk_space import expected_size, model_size, require_space
from llava.train.fsdp_on_cpu import shard_on_cpu
from llava.train.resume import RunLayout, check_layout, engine_of, read_converted
from llava.utils.distributed import gather_objects

logger = logging.getLogger(__name__)

OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"


class CheckpointTrainer(Trainer):
    """Trainer whose checkpoints are the model's own folders.

    With `args.save_async` the training goes on while a checkpoint is written: weights and optimizer states are copied
    to the host, a thread writes the copy, and the marker of completeness comes last. One checkpoint is written at a
    time.

    Attributes:
        restored_from: checkpoint from which `model` was already read, so that resuming does not read it again.
        adapter: what the weights are a change to, for a model with adapters; folders then hold that change only.
    """

    def __init__(
        self, *args: Any, restored_from: Path | None = None, adapter: AdapterOnBase | None = None, **kwargs: Any
    ) -> None:
        self.restored_from, self.adapter = restored_from, adapter
        self._staging: Path | None = None
        self._later: list[Callable[[], Any]] | None = None
        self._writer = BackgroundWriter()
        self._host_group: Any = None
        super().__init__(*args, **kwargs)
        if self.save_async and not self._can_save_async:
            raise ValueError(
                f"--save_async works on one process, under DDP and FSDP2, found {self.layout.engine}; leave it out"
                + (", or choose a writer in the JSON of DeepSpeed" if self.is_deepspeed_enabled else "")
            )

    @property
    def save_async(self) -> bool:
        return bool(
            getattr(self.args, "save_async", False)
        )  # plain TrainingArguments of transformers have no such field

    # ---- engine ----

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if shard_on_cpu(self.accelerator, self.args.fsdp_plugin_args):
            self.is_fsdp_enabled = True

    @property
    def layout(self) -> RunLayout:
        """How this run is spread over processes."""
        sharing = max(1, getattr(self.args, "seq_parallel_size", 1))  # ranks that read the same samples
        return RunLayout(
            engine=engine_of(self._deepspeed_plugin, self.is_fsdp_enabled, is_fsdp2=self.is_fsdp2),
            world_size=self.args.world_size,
            batches_per_step=self.args.world_size // sharing * self.args.gradient_accumulation_steps,
            samples_per_batch=self._train_batch_size,
        )

    @property
    def _deepspeed_plugin(self) -> Any:
        return getattr(self.accelerator.state, "deepspeed_plugin", None) if self.is_deepspeed_enabled else None

    @property
    def is_fsdp2(self) -> bool:
        return self.is_fsdp_enabled and bool(self.accelerator.is_fsdp2)

    @property
    def _can_save_async(self) -> bool:
        return self.is_fsdp2 or not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    # ---- saving ----

    def checkpoint_facts(self) -> dict[str, Any]:
        """What the marker of a checkpoint says beside its files; a subclass adds what it needs to go on."""
        return {"step": self.state.global_step, "layout": self.layout.as_dict()}

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` under a hidden folder, mark it complete, then give it its name in one rename."""
        output_dir = Path(self.args.output_dir or ".")
        name = f"checkpoint-{self.state.global_step}"
        self.finish_saving()
        self._together(lambda: self._make_room(output_dir))
        self._staging = output_dir / checkpointing.STAGING
        self._later = [] if self.save_async else None
        try:
            super()._save_checkpoint(model, trial)
            work = self._rest_of_save(output_dir, name)
        finally:
            self._staging = self._later = None
        self.accelerator.wait_for_everyone()
        if self.save_async:
            self._writer.submit(work)
        else:
            work()
            self.accelerator.wait_for_everyone()

    def finish_saving(self) -> None:
        """Wait until the checkpoint that is being written is complete; raises what went wrong with it."""
        self._together(self._writer.wait)

    def _together(self, work: Callable[[], Any]) -> None:
        """Do it on every rank; an error of one rank ends all of them instead of leaving the others waiting."""
        problem: Exception | None = None
        try:
            work()
        except (OSError, RuntimeError, ValueError) as error:
            problem = error
        problems = gather_objects(None if problem is None else str(problem))
        if problem is not None:
            raise problem
        if any(problems):
            raise OSError(next(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text))

    def _make_room(self, output_dir: Path) -> None:
        if self.args.should_save:
            checkpointing.clear_staging(output_dir)
            require_space(output_dir, self._expected_size(output_dir))

    def _expected_size(self, output_dir: Path) -> int:
        model: Any = self.accelerator.unwrap_model(self.model)
        return expected_size(
            output_dir,
            model,
            trained_only=self.adapter is not None,
            engine_copies=int(self.is_deepspeed_enabled),
            moments=3 if self.is_deepspeed_enabled else 2,
        )

    def require_room_for_model(self) -> None:
        """Before a run, so that it is not for nothing, and before its end. Every rank must call it.

        Raises:
            OSError: the disk has no room for the trained model.
        """
        model: Any = self.accelerator.unwrap_model(self.model)

        def check() -> None:
            if self.args.should_save:
                needed = model_size(model, trained_only=self.adapter is not None)
                require_space(Path(self.args.output_dir or "."), needed, "the trained model")

        self._together(check)

    def _rest_of_save(self, output_dir: Path, name: str) -> Callable[[], None]:
        """What completes the checkpoint; it reads nothing that the training goes on changing."""
        staged, later = output_dir / checkpointing.STAGING / name, list(self._later or ())
        best = self._best_checkpoint(output_dir)
        if not self.args.should_save:
            return lambda: _run_all(later)
        if best is not None:
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        facts, keep = self.checkpoint_facts(), self.args.save_total_limit

        def complete() -> None:
            _run_all(later)
            checkpointing.mark_complete(staged, facts)
            checkpointing.publish(staged, output_dir / name)
            checkpointing.clear_staging(output_dir)
            checkpointing.remove_old(output_dir, keep, protect=best)

        return complete

    def _best_checkpoint(self, output_dir: Path) -> Path | None:
        step = self.state.best_global_step
        return output_dir / f"checkpoint-{step}" if step else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_fsdp2:  # transformers gathers the weights for one kind of state dict only
            gathered: Any = self.accelerator.get_state_dict(self.model)
            self._save(output_dir, {name: _arrived(weight) for name, weight in gathered.items()})
        else:
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        model: Any = self.accelerator.unwrap_model(self.model)
        folder = str(output_dir or self.args.output_dir)
        if self._later is not None:
            copy = self._copy_of_weights(model, state_dict)
            self._later.append(lambda: self._write_model(model, folder, copy))
        else:
            self._write_model(model, folder, state_dict)

    def _write_model(self, model: Any, folder: str, state_dict: dict | None) -> None:
        if self.adapter is not None:
            write_adapter(model, folder, self.adapter, state_dict)
        else:
            model.save_pretrained(folder, state_dict=state_dict)

    @staticmethod
    def _copy_of_weights(model: nn.Module, gathered: dict[str, Any] | None) -> dict[str, Any]:
        """Gathered weights may still be the model's own, where one rank holds all of them."""
        if gathered is not None:
            return snapshot(gathered)
        frozen = [p.data_ptr() for p in model.parameters() if not p.requires_grad]
        return snapshot(model.state_dict(), fixed=frozen)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp2 and self._later is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder = Path(output_dir)
        if self.is_fsdp2:
            self._save_shards(folder)
        elif self.args.should_save:
            optimizer: Any = self.optimizer
            states = snapshot(optimizer.state_dict())
            assert self._later is not None
            self._later.append(lambda: torch.save(states, folder / OPTIMIZER_FILE))
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(scheduler.state_dict(), folder / SCHEDULER_FILE)

    def _save_shards(self, folder: Path) -> None:
        model: Any = self.model
        if self._later is None:
            sharded_optimizer.save(model, self.optimizer, folder)
            return
        self._host_group = self._host_group or sharded_optimizer.host_group()
        self._later.append(sharded_optimizer.save_async(model, self.optimizer, folder, self._host_group).result)

    # ---- going on ----

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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp2:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        model: Any = self.model
        scheduler: Any = self.lr_scheduler
        sharded_optimizer.load(model, self.optimizer, Path(checkpoint))
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A run that was killed behind its last checkpoint has nothing left to train."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def restore_facts(self, facts: dict[str, Any]) -> None:
        """Take up what `checkpoint_facts` wrote; empty at a fresh start."""

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):  # type: ignore[override]
        checkpoint = Path(str(resume_from_checkpoint)) if resume_from_checkpoint else None
        marker = None if checkpoint is None else checkpoint / checkpointing.MARKER
        facts = checkpointing.read_json(marker) if marker is not None and marker.is_file() else {}
        if checkpoint is not None:
            check_layout(checkpoint, facts, self.layout, data_position_matters=not self.args.ignore_data_skip)
            if self._deepspeed_plugin is not None:
                read_converted(self._deepspeed_plugin, checkpoint, facts, self.args.world_size)
        self.restore_facts(facts)
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.finish_saving()
        return result


def _arrived(weight: torch.Tensor) -> torch.Tensor:
    """A plain tensor: what CPU ranks gather is one only after the first operation that waits for it."""
    return weight if type(weight) in (torch.Tensor, nn.Parameter) else weight.clone()


def _run_all(works: list[Callable[[], Any]]) -> None:
    for work in works:
        work()
