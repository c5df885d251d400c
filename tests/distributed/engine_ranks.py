"""One rank of a training under an engine: `torchrun engine_ranks.py ENGINE FOLDER SETTINGS`.

SETTINGS is JSON: training arguments, and `logit_scale`, a factor on the language model's head; `kill_at`, a step at
whose end rank 0 gets SIGKILL; `fail_at`, one before which the last rank raises. The data is one third text, one third
single pictures, one third clips, so that ranks often differ in what they have. Goes on from the newest checkpoint,
writes the log of each rank, the samples that it saw, and the model before and after. Exits with 124 where a signal or
a time limit stopped it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from transformers import TrainerCallback

from llava.batch import Sample
from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollator
from llava.model.builder import load_pretrained_model
from llava.train import checkpointing
from llava.train.args import TrainingArguments
from llava.train.callbacks import AutoResumeCallback
from llava.train.llava_trainer import LLaVATrainer
from tests.unit.train.toy import IMAGE_TOKEN, toy_model

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
ENGINES: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": {"ddp_find_unused_parameters": False},
    "zero2": {"deepspeed": str(SCRIPTS / "zero2.json")},
    "zero3": {"deepspeed": str(SCRIPTS / "zero3.json")},
    "zero3_offload": {"deepspeed": str(SCRIPTS / "zero3_offload.json")},
    "fsdp2": {"fsdp": "full_shard auto_wrap",
              "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}},
}  # fmt: skip
WRITTEN_AS = {"one": "plain", "ddp": "plain", "zero3_offload": "zero3"}
"""Names of these engines in a checkpoint, where they differ."""


class MixedData(Dataset[Sample]):
    """Sample i holds i % 3 = 0: no picture, 1: one, 2: three; each picture is 4 slots, then come random tokens."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        random = torch.Generator().manual_seed(index)
        count = (0, 1, 3)[index % 3]
        text = torch.randint(0, IMAGE_TOKEN, (5 + index % 7,), generator=random)
        slots = torch.full((4 * count,), IMAGE_TOKEN)
        sample = Sample(
            input_ids=torch.cat([slots, text]),
            labels=torch.cat([torch.full_like(slots, IGNORE_INDEX), text]),
            sample_id=str(index),
        )
        if count:
            sample["images"] = torch.randint(0, 256, (count, 3, 16, 16), generator=random, dtype=torch.uint8)
        return sample


class SampleRecorder(DataCollator):
    """Notes which samples it was given."""

    def __call__(self, samples):
        SEEN.append([sample["sample_id"] for sample in samples])
        return super().__call__(samples)


SEEN: list[list[str]] = []


class Accident(TrainerCallback):
    """What a test wants to happen at the end of a step, on one rank."""

    def __init__(self, rank: int, *, kill_at: int | None, fail_at: int | None) -> None:
        self.rank, self.kill_at, self.fail_at = rank, kill_at, fail_at

    def on_step_end(self, args, state, control, **kwargs):
        if self.rank == 0:
            print(f"step {state.global_step}", flush=True)
        if state.global_step == self.kill_at and self.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if state.global_step == self.fail_at and self.rank == args.world_size - 1:
            raise RuntimeError("this rank has an accident")


def main(engine: str, folder: Path, settings: dict[str, Any]) -> int:
    if "deepspeed" in ENGINES[engine]:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    accidents = {name: settings.pop(name, None) for name in ("kill_at", "fail_at")}
    limit = settings.pop("limit", None)
    checkpoint = checkpointing.newest_checkpoint(folder / "run")
    # before the arguments, which would have ZeRO-3 split every weight at birth
    model = toy_model() if checkpoint is None else load_pretrained_model(str(checkpoint), device="cpu")[1].train()
    model.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    with torch.no_grad():
        model.llm.lm_head.weight.mul_(settings.pop("logit_scale", 1.0))
    args = TrainingArguments(
        output_dir=str(folder / "run"), use_cpu=True, report_to="none", lr_scheduler_type="constant", logging_steps=1,
        **{"save_strategy": "no", "learning_rate": 1e-2, "adam_epsilon": 1e-3, "seed": 3, **settings},
        **ENGINES[engine],
    )  # fmt: skip
    if args.process_index == 0:
        torch.save({name: weight.clone() for name, weight in toy_state(model).items()}, folder / "before.pt")
    collator = SampleRecorder(pad_token_id=0, max_length=64, mode="pad", image_token_id=IMAGE_TOKEN)
    stopper = AutoResumeCallback(limit, reserve=0.0)
    trainer = LLaVATrainer(
        model, args, train_dataset=MixedData(24), data_collator=collator, restored_from=checkpoint,
        callbacks=[stopper, Accident(args.process_index, **accidents)],
    )  # fmt: skip
    assert trainer.layout.engine == WRITTEN_AS.get(engine, engine), "another engine than the one that is tested"
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(folder / "model"))
    logs = [row for row in trainer.state.log_history if "loss" in row]
    (folder / f"log{args.process_index}.json").write_text(json.dumps(logs))
    (folder / f"seen{args.process_index}.json").write_text(json.dumps(SEEN))
    end = {"step": trainer.state.global_step, "because": stopper.stopped_because}
    (folder / f"end{args.process_index}.json").write_text(json.dumps(end))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 124 if stopper.stopped_because else 0


def toy_state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])))
