"""One rank of a training with the next-frame loss: `torchrun reconstruction_ranks.py ENGINE FOLDER BATCH`.

Every other sample has no clip, so that ranks often differ in what they have. Writes the log and this rank's weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from llava.data.collate import DataCollator
from llava.train.args import TrainingArguments
from llava.train.autoregressive_trainer import AutoregressiveTrainer
from tests.unit.train.toy import IMAGE_TOKEN, ToyClips, toy_model

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"embedding_dim": None, "predictor_dim": 16, "num_heads": 2, "num_layers": 1, "loss_weight": 0.5}
ENGINES = {
    "one": {},
    "ddp": {"ddp_find_unused_parameters": False},
    "zero2": {"deepspeed": str(ROOT / "scripts" / "zero2.json")},
    "zero3": {"deepspeed": str(ROOT / "scripts" / "zero3.json")},
    "fsdp2": {
        "fsdp": "full_shard auto_wrap",
        "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer", "PredictorLayer"]},
    },
}


def main(engine: str, folder: Path, batch: int) -> None:
    if "deepspeed" in ENGINES[engine]:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    model = toy_model()  # before the arguments, which would have ZeRO-3 split every weight at birth
    model.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    torch.manual_seed(7)
    module = model.initialize_continuous_autoregressive_modules(SETTINGS)
    torch.nn.init.normal_(module.predictor.output_projection.weight, std=0.1)
    args = TrainingArguments(
        output_dir=str(folder / "run"), use_cpu=True, report_to="none", lr_scheduler_type="constant", logging_steps=1,
        save_strategy="no", learning_rate=1e-2, max_steps=5, per_device_train_batch_size=batch, adam_epsilon=1e-3,
        seed=3, **ENGINES[engine],
    )  # fmt: skip
    data = ToyClips(24, blank=2)
    collator = DataCollator(pad_token_id=0, max_length=64, mode="pad", image_token_id=IMAGE_TOKEN)
    trainer = AutoregressiveTrainer(model, args, train_dataset=data, data_collator=collator, lengths=data.lengths)
    assert trainer.is_fsdp2 == (engine == "fsdp2")
    trainer.train()
    trainer.save_model(str(folder / "model"))
    logs = [row for row in trainer.state.log_history if "loss" in row]
    (folder / f"log{trainer.args.process_index}.json").write_text(json.dumps(logs))
    if engine in ("one", "ddp", "zero2"):  # elsewhere a rank holds a part of the weights
        torch.save(model.state_dict(), folder / f"weights{trainer.args.process_index}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
