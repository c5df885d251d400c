"""LoRA and DoRA folders: an adapter on a base, merged into it when it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions
from llava.model.checkpoints.base_and_change import name_in_model, read_on_base, require_base
from llava.model.checkpoints.names import explain_buffer, locate_original
from llava.model.checkpoints.plan import Part, Plan
from llava.model.checkpoints.stored import (
    StoredTensor,
    open_tensors,
    read_config,
    read_headers,
    read_json,
)

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHERS = "non_lora_trainables.bin"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(\.weight)?")


def recognises(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def adapter_file(folder: Path) -> Path:
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir()))
    raise FileNotFoundError(f"{folder} has no adapter weights: expected {' or '.join(ADAPTER_FILES)}, found {found}")


def other_trainables(folder: Path) -> dict[str, StoredTensor]:
    """Weights that were trained as a whole (the projector), by the names that they have without the adapter."""
    if not (folder / OTHERS).is_file():
        return {}
    stored = read_headers([folder / OTHERS])
    return {re.sub(r"^base_model\.(model\.(?=model\.|mm_projector|vision_tower|llm\.|lm_head))?", "", name): tensor
            for name, tensor in stored.items()}  # fmt: skip


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    if find_spec("peft") is None:
        raise ImportError(f"{folder} holds an adapter, which needs peft: pip install peft")
    if options.quantization_config is not None:
        raise ValueError(f"{folder}: an adapter is merged into its base, which must not be quantised; load it without")
    settings = read_json(folder / "adapter_config.json")
    base = require_base(folder, options, settings.get("base_model_name_or_path"))
    model = read_on_base(folder, base, read_config(folder), other_trainables(folder), options)
    adapted = with_adapter(model, folder, settings)
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    merged.name_or_path = str(folder)
    return merged.eval()


def with_adapter(model: LlavaCausalLM, folder: Path, settings: Mapping[str, Any]) -> Any:
    """The model with the adapter beside its weights (peft's, not merged)."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{folder}/adapter_config.json: peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    stored = read_headers([adapter_file(folder)])
    tensors, modules = _in_our_names(model, stored)
    known = set(LoraConfig.__dataclass_fields__)
    chosen = {key: value for key, value in settings.items() if key in known and value is not None}
    chosen |= {"target_modules": modules, "inference_mode": True, "task_type": None, "modules_to_save": None}
    for key in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        chosen.pop(key, None)  # the modules are listed one by one
    adapted = PeftModel(model, LoraConfig(**chosen))  # pyright: ignore[reportArgumentType]
    values = {name: value[...] for name, value in open_tensors(tensors).items()}
    result = set_peft_model_state_dict(adapted, values)
    lost = [key for key in result.missing_keys if "lora_" in key] + list(result.unexpected_keys)
    if lost:
        raise ValueError(f"{adapter_file(folder)}: {lost[0]} does not fit adapter_config.json; copy both again")
    return adapted.eval()


def _in_our_names(
    model: LlavaCausalLM, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """(peft's names for our model -> tensors, adapted modules), each checked against the model's shapes."""
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors: dict[str, StoredTensor] = {}
    modules: set[str] = set()
    for name, tensor in stored.items():
        match = _KEY.fullmatch(name)
        weight = name_in_model(f"{match[1]}.weight") if match else None
        if match is None or weight not in weights:
            raise ValueError(
                f"{tensor.file}: the base has no module for {name}; the adapter belongs to another model: "
                "give the base that it was trained on as model_base"
            )
        _require_fit(tensor, match[2], weights[weight])
        module = weight.removesuffix(".weight")
        modules.add(module)
        tensors[f"base_model.model.{module}.{match[2]}{match[3] or ''}"] = tensor
    return tensors, sorted(modules)


def _require_fit(tensor: StoredTensor, kind: str, weight: tuple[int, ...]) -> None:
    found, wanted = (tensor.shape[1], weight[1]) if kind == "lora_A" else (tensor.shape[0], weight[0])
    if found != wanted:
        raise ValueError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, the base's weight {list(weight)} wants "
            f"{wanted} where it has {found}; the adapter belongs to another model: give the base that it was trained on"
        )


def make_plan(folder: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    """Describes the adapter alone; its base is another checkpoint."""
    settings = read_json(folder / "adapter_config.json")
    plan = Plan(layout="lora", folder=folder, config=read_config(folder))
    plan.parts = {"adapter": Part(tensors=read_headers([adapter_file(folder)]))}
    plan.parts |= {part: Part() for part in ("llm", "vision_tower", "mm_projector")}
    plan.distribute(other_trainables(folder), locate_original, explain_buffer)
    plan.parts = {name: part for name, part in plan.parts.items() if part.tensors}
    named = settings.get("base_model_name_or_path")
    kind = "DoRA" if settings.get("use_dora") else "LoRA"
    plan.needs.append(f"peft, and model_base: the {kind} of rank {settings.get('r')} was trained on {named!r}")
    return plan


LAYOUTS.register("lora")(
    Layout(recognises=recognises, read=read, plan=make_plan, holds="adapter_config.json and adapter_model.*")
)
