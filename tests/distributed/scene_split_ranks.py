"""One rank of a training with the split: `torchrun scene_split_ranks.py ENGINE FOLDER BATCH`.

The samples of a step differ by rank: text only, all background, with objects. Writes the log and this rank's weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from llava.data.collate import DataCollator
from llava.train.args import TrainingArguments
from llava.train.llava_trainer import LLaVATrainer
from tests.unit.model.scene_split.model_toy import make_model
from tests.unit.train.test_scene_split_setup import SplitToys

ROOT = Path(__file__).resolve().parents[2]
SPLIT = {"shared_projectors": False, "shared_encoder": False, "prefusion_layers": 1}
ENGINES = {
    "one": {},
    "ddp": {"ddp_find_unused_parameters": False},
    "zero3": {"deepspeed": str(ROOT / "scripts" / "zero3.json")},
}


def main(engine: str, folder: Path, batch: int) -> None:
    if "deepspeed" in ENGINES[engine]:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    model = make_model()  # before the arguments, which would have ZeRO-3 split every weight at birth
    model.initialize_scene_split(SPLIT)
    model.set_trainable(language_model=True, vision_tower=False, mm_projector=True, object_tower=True)
    args = TrainingArguments(
        output_dir=str(folder / "run"), use_cpu=True, report_to="none", lr_scheduler_type="constant", logging_steps=1,
        save_strategy="no", learning_rate=1e-2, max_steps=4, per_device_train_batch_size=batch, adam_epsilon=1e-3,
        seed=3, **ENGINES[engine],
    )  # fmt: skip
    data = SplitToys(model)
    collator = DataCollator(pad_token_id=0, max_length=64, mode="pad", image_token_id=model.image_token_id)
    trainer = LLaVATrainer(model, args, train_dataset=data, data_collator=collator, lengths=data.lengths)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    logs = [row for row in trainer.state.log_history if "loss" in row]
    (folder / f"log{trainer.args.process_index}.json").write_text(json.dumps(logs))
    if engine != "zero3":  # there a rank holds a part of the weights
        torch.save(model.state_dict(), folder / f"weights{trainer.args.process_index}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
