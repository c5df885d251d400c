"""Checkpoints that hold a change to a base: the base as a model, and named tensors written over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig

from llava.model.checkpoints import ReadOptions, find_layout, read_checkpoint, resolve_folder
from llava.model.checkpoints.names import locate_original
from llava.model.checkpoints.plan import Plan
from llava.model.checkpoints.stored import StoredTensor, folder_headers, open_tensors

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

WHERE = {"llm": "llm.", "vision_tower": "vision_tower.vision_tower.", "mm_projector": "mm_projector."}


def require_base(folder: Path, options: ReadOptions, named: Any = None) -> Path:
    """The folder of the base that the caller names; a path in the checkpoint is a path of another machine."""
    if options.model_base is None:
        hint = f" (it was trained on {named!r})" if named else ""
        raise ValueError(
            f"{folder} holds a change to a base model, found model_base=None{hint}; "
            "give the base: llava.load(path, model_base='folder of the base')"
        )
    return resolve_folder(options.model_base, options.cache_dir)


def read_on_base(
    folder: Path, base: Path, stored: Mapping[str, Any], change: Mapping[str, StoredTensor], options: ReadOptions
) -> LlavaCausalLM:
    """The base with `change` written over it.

    Args:
        base: a model of any layout, or a plain language model to which `change` brings the projector.
        stored: config of the change; needed for a plain language model only.
        change: names in the manner of LLaVA's code -> tensors.
    """
    if find_layout(base) is not None:
        model = read_checkpoint(base, replace(options, model_base=None))
        write_over(model, change)
        return model
    from llava.model.checkpoints.assemble import assemble

    plan = plan_on_language_model(folder, base, stored, change, options)
    return assemble(plan, options, base=base)


def plan_on_language_model(
    folder: Path,
    base: Path,
    stored: Mapping[str, Any],
    change: Mapping[str, StoredTensor],
    options: ReadOptions,
    fetch: bool = True,
) -> Plan:
    """The plan of a plain language model together with what a change brings to it."""
    from llava.model.checkpoints.original import plan_of

    if "mm_vision_tower" not in stored:
        raise ValueError(
            f"{folder} has no config.json that names mm_vision_tower, and {base} is a language model without vision; "
            "put the config.json of the training run beside the weights, or give a vision-language model as model_base"
        )
    changed = {locate_original(name) for name in change}
    kept = {name: tensor for name, tensor in folder_headers(base).items() if locate_original(name) not in changed}
    return plan_of(
        folder, stored, kept | dict(change), options, llm_config=AutoConfig.from_pretrained(str(base)), fetch=fetch
    )


def find_weight(name: str, weights: Mapping[str, Any]) -> str | None:
    """Name in our model of a weight that is stored under our name or under a published one; None = not in `weights`."""
    place = locate_original(name)
    published = None if place is None or place[0] not in WHERE else WHERE[place[0]] + place[1]
    return next((found for found in (name, published) if found in weights), None)


def weights_of(model: LlavaCausalLM) -> dict[str, Tensor]:
    """The model's weights under the names that they have without an adapter; the adapter's own are left out."""
    state = model.state_dict()
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


@torch.no_grad()
def write_over(model: LlavaCausalLM, change: Mapping[str, StoredTensor]) -> frozenset[str]:
    """Replaces weights of a model, with an adapter beside them or without; answers the names of those in it.

    Raises:
        ValueError: names file and key of a tensor that the model has no place of that shape for.
    """
    weights = weights_of(model)
    targets: dict[str, StoredTensor] = {}
    for name, tensor in change.items():
        target = find_weight(name, weights)
        if target is None:
            raise ValueError(
                f"{tensor.file}: the base has no weight for {tensor.name}; give the base that it was trained on"
            )
        if tuple(weights[target].shape) != tensor.shape:
            raise ValueError(
                f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, the base has "
                f"{list(weights[target].shape)}; give the base that it was trained on"
            )
        targets[target] = tensor
    for target, value in open_tensors(targets).items():
        weights[target].copy_(value[...])
    return frozenset(targets)
