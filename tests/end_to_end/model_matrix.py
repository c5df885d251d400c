"""Every language model, encoder and projector through every operation, and the table of them in README.md.

    python -m tests.end_to_end.model_matrix    # runs all and writes the table

A combination that fails raises and is named; there is no row for things that do not work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import llava
from llava.model.builder import build_model
from tests.numerics.models import pictures, tiny_config

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- model matrix: begin -->", "<!-- model matrix: end -->"
COMMAND = "python -m tests.end_to_end.model_matrix"
OPERATIONS = ("load", "forward", "generate", "train step", "save", "reload")

LANGUAGE_MODELS = {
    "llama": "Llama",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "phi3": "Phi-3",
}
ENCODERS = {
    "siglip_vision_model": "SigLIP, SigLIP2 (fixed size)",
    "clip_vision_model": "CLIP",
    "siglip_stem": "SigLIP with a fine stem",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "internvl_vision": "InternViT",
    "radio": "RADIO",
}
SCALES: dict[str, dict[str, Any]] = {
    "one scale": {},
    "s2": {"s2": True, "s2_scales": "32,64"},
    "dynamic_s2": {
        "image_aspect_ratio": "dynamic_s2",
        "dynamic_s2": True,
        "s2_scales": "32,64",
        "s2_resize_output_to_scale_idx": -1,
    },
}
PROJECTORS = (
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
    "mlp2x_gelu",
    "linear",
    "identity",
)


@dataclass(frozen=True)
class Combination:
    """One model."""

    llm: str = "llama"
    encoder: str = "siglip_vision_model"
    scales: str = "one scale"
    projector: str = "mlp_downsample"

    def parts(self) -> tuple[str, str, str, str]:
        return self.llm, self.encoder, self.scales, self.projector


def combinations() -> list[Combination]:
    """Each part with the defaults of the others, then crosses, so that every two parts of different kinds meet."""
    chosen = [Combination(llm=llm) for llm in LANGUAGE_MODELS]
    chosen += [Combination(encoder=encoder, scales=scales) for encoder, scales in product(ENCODERS, SCALES)]
    chosen += [Combination(projector=projector) for projector in PROJECTORS]
    chosen = list(dict.fromkeys(chosen))
    met = {pair for combination in chosen for pair in pairs(combination)}
    everything = [Combination(*parts) for parts in product(LANGUAGE_MODELS, ENCODERS, SCALES, PROJECTORS)]
    while True:  # greedy: the combination in which most parts meet for the first time
        best = max(everything, key=lambda combination: len(pairs(combination) - met))
        if not pairs(best) - met:
            return chosen
        chosen.append(best)
        met |= pairs(best)


def pairs(combination: Combination) -> set[tuple[str, str]]:
    parts = combination.parts()
    return {(first, second) for k, first in enumerate(parts) for second in parts[k + 1 :]}


def run(combination: Combination, folder: Path) -> list[str]:
    """The operations that one tiny model goes through, each checked.

    Raises:
        AssertionError: an operation that does not do what it promises.
    """
    return [*_operations(combination, folder)]


def _operations(combination: Combination, folder: Path) -> Iterator[str]:
    torch.manual_seed(0)
    fresh = build_model(_config(combination))
    fresh.save_pretrained(folder / "first")
    model: Any = llava.load(folder / "first")
    inputs = _inputs(model, seed=1)
    assert torch.equal(_logits(model, inputs), _logits(fresh.eval(), inputs))
    yield "load"
    assert _logits(model, inputs).isfinite().all()
    assert not torch.equal(_logits(model, inputs), _logits(model, _inputs(model, seed=2)))
    yield "forward"
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=3, eos_token_id=None)
    assert answer.shape == (1, 3)
    yield "generate"
    before = _train_step(model, inputs)
    assert _loss(model, inputs) < before
    yield "train step"
    model.save_pretrained(folder / "second")
    assert {path.name for path in (folder / "second").iterdir()} >= {"llm", "vision_tower", "mm_projector"}
    yield "save"
    assert torch.equal(_logits(llava.load(folder / "second"), inputs), _logits(model, inputs))
    yield "reload"


def _config(combination: Combination) -> dict[str, Any]:
    scales = SCALES[combination.scales]
    config = tiny_config(combination.llm, combination.encoder, mm_projector_cfg=combination.projector, **scales)
    if combination.projector == "identity":
        config["llm_cfg"]["hidden_size"] = config["vision_tower_cfg"]["hidden_size"] * (2 if scales else 1)
    return config


def _inputs(model: Any, seed: int) -> dict[str, Any]:
    """A question about one picture: 64 x 64 pixels cut at two scales, or one that is not cut."""
    ids, spec = torch.tensor([[1, -200, 5, 9, 3, 7]]), model.visual_spec
    if spec.dynamic_s2 is None:
        return {"input_ids": ids, "images": pictures(1, seed, spec.image_size)}
    num_tiles = spec.dynamic_s2.layout(64, 64).num_tiles
    return {"input_ids": ids, "images": pictures(num_tiles, seed), "image_sizes": torch.tensor([[64, 64]])}


def _logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def _loss(model: Any, inputs: dict[str, Any]) -> float:
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < 0, -100)
    with torch.no_grad():
        return float(model(**inputs, labels=labels).loss)


def _train_step(model: Any, inputs: dict[str, Any]) -> float:
    """The loss before it; every part must have got a gradient."""
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < 0, -100)
    model.train()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    for part in (model.llm, model.vision_tower, model.mm_projector):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in gradients) or not [*part.parameters()], type(part).__name__
    torch.optim.SGD(model.parameters(), lr=0.02).step()
    model.zero_grad()
    model.eval()
    return float(loss.detach())


def compute() -> dict[Combination, list[str]]:
    """What every combination went through."""
    done = {}
    for combination in combinations():
        with tempfile.TemporaryDirectory() as folder:
            try:
                done[combination] = run(combination, Path(folder))
            except Exception as error:
                raise RuntimeError(f"combination {combination.parts()} fails") from error
    return done


def table(done: dict[Combination, list[str]]) -> str:
    """The table as it stands in README.md."""
    kinds = {
        "language model": LANGUAGE_MODELS,
        "encoder": ENCODERS,
        "scales": {name: name for name in SCALES},
        "projector": {name: f"`{name}`" for name in PROJECTORS},
    }
    lines = [f"| part | models | {' | '.join(OPERATIONS)} |", f"|---|---|{'---|' * len(OPERATIONS)}"]
    for index, (kind, names) in enumerate(kinds.items()):
        lines.append(f"| **{kind}** | {'| ' * (len(OPERATIONS) + 1)}".rstrip())
        for name, shown in names.items():
            rows = [passed for combination, passed in done.items() if combination.parts()[index] == name]
            cells = ["yes" if all(operation in passed for passed in rows) else "no" for operation in OPERATIONS]
            lines.append(f"| {shown} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def stored_table(text: str) -> str:
    """What stands between the two marks of README.md."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs the lines {BEGIN} and {END} once each, the table goes between them")
    return text.split(BEGIN)[1].split(END)[0].strip()


def write(new_table: str) -> None:
    text = README.read_text(encoding="utf-8")
    stored_table(text)
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{new_table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    write(table(compute()))
