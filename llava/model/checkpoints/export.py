"""Writing a model as transformers' own LLaVA, LLaVA-Next or LLaVA-OneVision (llava-hf), which other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
)

from llava.model.checkpoints.card import export_card, write_card
from llava.model.checkpoints.export_config import hf_config, hf_kind, require_expressible
from llava.model.checkpoints.export_processor import write_processor
from llava.model.checkpoints.three_folder import make_generation_config_valid

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

CLASSES: dict[str, Any] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}
PROJECTOR = {"layers.0.": "multi_modal_projector.linear_1.", "layers.2.": "multi_modal_projector.linear_2."}
ROWS = 64
"""Embedding tables that must grow grow to a multiple of this, as those of llava-hf do."""


def export_llava_hf(model: LlavaCausalLM, folder: str | Path, max_shard_size: int | str = "5GB") -> Path:
    """Writes config, weights, tokenizer, processor and model card; every tool that reads llava-hf reads the folder.

    Where the id of `<image>` lies beyond the embedding table, the table grows by rows with the mean of all rows.
    A README.md that is there already stays.

    Raises:
        ValueError: for a model that transformers' classes cannot express; names the part.
    """
    require_expressible(model)
    root = Path(folder)
    if root.is_dir() and model.name_or_path and root.resolve() == Path(model.name_or_path).resolve():
        raise ValueError(f"{root} is the folder that the model was read from; give another folder to write to")
    state = _state_dict(model)
    kind = CLASSES[hf_kind(model)]
    with torch.device("meta"):
        target = kind(hf_config(model, num_rows=len(state["lm_head.weight"])))
    target.load_state_dict(state, strict=True, assign=True)
    target.tie_weights()
    if model.llm.generation_config is not None:
        make_generation_config_valid(model.llm.generation_config)
        target.generation_config = model.llm.generation_config
    target.save_pretrained(str(root), max_shard_size=max_shard_size)
    write_processor(model, root)
    write_card(root, export_card(model, kind.__name__))
    return root


def _state_dict(model: LlavaCausalLM) -> dict[str, Tensor]:
    """Our weights under the names of transformers 5; they are shared, not copied, unless the table must grow."""
    state = {f"model.{_in_projector(name)}": value for name, value in model.mm_projector.state_dict().items()}
    for name, value in model.vision_tower.vision_tower.state_dict().items():
        state[f"model.vision_tower.{name}"] = value
    llm = dict(model.llm.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        llm[name] = _with_rows(llm[name], int(model.config.image_token_id or 0) + 1)
    for name, value in llm.items():
        inside = name.removeprefix("model.")
        state[name if inside == name else f"model.language_model.{inside}"] = value
    return state


def _in_projector(name: str) -> str:
    for ours, theirs in PROJECTOR.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    assert name == "image_newline", name
    return name


def _with_rows(table: Tensor, needed: int) -> Tensor:
    """[V, D], at least `needed` rows."""
    if len(table) >= needed:
        return table
    more = -(-needed // ROWS) * ROWS - len(table)
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(more, -1)])
