"""One rank of a comparison: `torchrun sequence_ranks.py REPORT SIZE:RING:TYPE ...`.

For every way to share a sequence and every kind of batch: the losses and the gradients of all ranks of a group, added
up, against those of the same model that computes the whole batch by itself. Writes the largest differences.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llava.data.collate import DataCollator
from llava.model.builder import build_model
from llava.model.sequence_parallel import SequenceParallelConfig, check_model, create_group
from tests.unit.train.toy import IMAGE_TOKEN, VOCABULARY, ToyClips, ToyData

PREDICTOR = {"embedding_dim": None, "predictor_dim": 16, "num_heads": 2, "num_layers": 1, "loss_weight": 0.5}


def make_model(kind: str = "llama", *, kv_heads: int = 2, **llm: Any) -> Any:
    """4 query heads of width 8 over `kv_heads`; one picture takes 4 tokens."""
    torch.manual_seed(0)
    return build_model(
        {
            "llm_cfg": {
                "model_type": kind, "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
                "max_position_embeddings": 256, "initializer_range": 0.3, **llm,
            },
            "vision_tower_cfg": {
                "model_type": "siglip_stem", "image_size": 16, "patch_size": 4, "stem_strides": [2, 2], "stem_width": 4,
                "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            },
            "mm_projector_cfg": "mlp_downsample",
            "image_token_id": IMAGE_TOKEN,
        }
    ).train()  # fmt: skip


def collate(samples: list[Any], mode: str) -> dict[str, Any]:
    collator = DataCollator(pad_token_id=0, max_length=256, mode=mode, rows="one", image_token_id=IMAGE_TOKEN)  # type: ignore[arg-type]
    batch = dict(collator(samples))
    batch.pop("sample_ids")
    return batch


def with_branches(batch: dict[str, Any]) -> dict[str, Any]:
    """Every fourth pair of text tokens becomes an aside that the rest of its sample does not see."""
    branches = torch.zeros_like(batch["input_ids"])
    branches[:, 7:9] = 1
    branches[:, 14:16] = 2
    batch.pop("position_ids", None)
    return {**batch, "branch_ids": branches.masked_fill(batch["input_ids"] == IMAGE_TOKEN, 0)}


def cases() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> model and batch."""
    data, clips = ToyData(12), ToyClips(8)
    padded, packed = collate([data[i] for i in (0, 8, 5)], "pad"), collate([data[i] for i in (3, 1, 8, 2)], "pack")
    text = {key: value for key, value in padded.items() if key != "images"}
    text["input_ids"] = text["input_ids"].masked_fill(text["input_ids"] == IMAGE_TOKEN, 3)
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, 6, 7]])}
    frozen = make_model()
    frozen.set_trainable(language_model=True, vision_tower=False, mm_projector=True)
    predicting = {"shared teacher": frozen, "own teacher": make_model()}
    for model in predicting.values():
        module = model.initialize_continuous_autoregressive_modules(PREDICTOR)
        torch.nn.init.normal_(module.predictor.output_projection.weight, std=0.1)
    recomputing = make_model()
    recomputing.llm.gradient_checkpointing_enable({"use_reentrant": False})
    window = make_model("mistral", sliding_window=5)
    return {
        "padded": (make_model(), padded),
        "packed": (make_model(), packed),
        "branches": (make_model(kv_heads=4), with_branches(packed)),
        "one key head": (make_model(kv_heads=1), packed),
        "sliding window": (window, packed),
        "window and branches": (window, with_branches(packed)),
        "text only": (make_model(), text),
        "shorter than the group": (make_model(), short),
        "activations recomputed": (recomputing, packed),
        "next frame, shared teacher": (predicting["shared teacher"], collate([clips[i] for i in (1, 2)], "pad")),
        "next frame, packed": (predicting["own teacher"], collate([clips[i] for i in (0, 2, 5)], "pack")),
    }


def run(model: Any, batch: dict[str, Any], group: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss terms and gradients; with a group those of its ranks added up."""
    model = copy.deepcopy(model)
    model.sequence_group = group
    output = model(**batch)
    output.loss.backward()
    terms = {name: term.clone() for name, term in {"loss": output.loss.detach(), **output.loss_terms}.items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in gradients.values()), "a weight without gradient leaves other ranks waiting"
    if group is not None:
        for tensor in [*terms.values(), *gradients.values()]:
            dist.all_reduce(tensor, group=group.everyone)
    return terms, gradients  # type: ignore[return-value]


def compare(expected: Any, found: Any) -> dict[str, float]:
    """Largest difference of a loss term; largest relative difference of a gradient that is not close to zero."""
    assert expected[0].keys() == found[0].keys() and expected[1].keys() == found[1].keys()
    norms = {name: float(grad.norm()) for name, grad in expected[1].items()}
    floor = 1e-3 * max(norms.values())
    return {
        "loss": max(float((expected[0][name] - found[0][name]).abs()) for name in expected[0]),
        "gradient": max(float((expected[1][n] - found[1][n]).norm()) / max(norms[n], floor) for n in norms),
        "size": float(expected[0]["loss"]),
    }


def main(report: Path, ways: list[str]) -> None:
    dist.init_process_group("gloo")
    known = cases()
    whole = {name: run(model, batch, None) for name, (model, batch) in known.items()}
    results: dict[str, dict[str, float]] = {}
    for way in ways:
        size, ring_size, ring_type = way.split(":")
        config = SequenceParallelConfig(size=int(size), ring_size=int(ring_size), ring_type=ring_type)
        group = create_group(config)
        for name, (model, batch) in known.items():
            check_model(model, config)
            results[f"{way} {name}"] = compare(whole[name], run(model, batch, group))
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, results)
    if dist.get_rank() == 0:
        report.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
