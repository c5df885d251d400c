"""LoRA and DoRA folders: an adapter on a base, merged into it when it is read (unless the base is quantised)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions, resolve_folder, scene_split
from llava.model.checkpoints.adapter import (
    ADAPTER_CONFIG,
    adapter_file,
    attach,
    config_for,
    fill,
    open_adapter,
    other_trainables,
    read_settings,
    require_peft,
    require_sampled_base,
)
from llava.model.checkpoints.assemble import has_tokenizer, read_tokenizer
from llava.model.checkpoints.base_and_change import read_on_base, require_base
from llava.model.checkpoints.names import explain_buffer, locate_original
from llava.model.checkpoints.plan import Part, Plan
from llava.model.checkpoints.stored import read_config, read_headers, read_json

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

OWN_BASE = "adapter_base"
"""Sub-folder in which a training run keeps a base that existed nowhere else."""

SIZES = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "patch_size")
"""Settings of a part that an adapter and its base must share."""

NOT_SETTINGS = frozenset(
    {*("llm_cfg", "vision_tower_cfg", "mm_projector_cfg", "model_type", "architectures", "resume_path"),
     *("dtype", "torch_dtype", "transformers_version", "_name_or_path", "hidden_size", "image_token_id")}
)  # fmt: skip
"""Keys of config.json that describe the base, not how the adapter was trained."""


def recognises(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path, options: ReadOptions, named: Any) -> Path:
    """The base: what the caller names, else what the adapter names, where that is on this machine or a hub id."""
    if options.model_base is not None or not isinstance(named, str) or not named:
        return require_base(folder, options, named)
    found = base_on_disk(folder, named)
    if found is not None:
        return found
    is_path = Path(named).is_absolute() or named.startswith((".", "~")) or named.count("/") != 1
    return require_base(folder, options, named) if is_path else resolve_folder(named, options.cache_dir)


def base_on_disk(folder: Path, named: str) -> Path | None:
    """The folder that an adapter names; the base of a run that was moved lies in it, or beside its checkpoints."""
    if Path(named).expanduser().is_dir():
        return Path(named).expanduser()
    near = [folder / OWN_BASE, folder.parent / OWN_BASE] if Path(named).name == OWN_BASE else []
    return next((path for path in near if path.is_dir()), None)


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    """The adapted model; beside a quantised base the adapter stays unmerged, as it was in training."""
    require_peft(f"{folder} holds an adapter, which")
    settings, stored = read_settings(folder), read_config(folder)
    base = base_of(folder, options, settings.get("base_model_name_or_path"))
    require_sizes(folder, stored, base)
    model = read_on_base(folder, base, stored, other_trainables(folder), replace(options, model_base=None))
    if stored.get("scene_split") is not None:
        if model.scene_split is None:  # the base knows nothing of it: its separators begin without chance
            model.initialize_scene_split(stored["scene_split"])
        scene_split.read_into(model, folder)
    require_sampled_base(model, folder)
    take_settings(model, stored)
    take_tokenizer(model, folder)
    adapted = with_adapter(model, folder, settings)
    if options.quantization_config is None:
        adapted.merge_and_unload(safe_merge=True)
    model.name_or_path = str(folder)
    return model.eval()


def with_adapter(model: LlavaCausalLM, folder: Path, settings: Mapping[str, Any]) -> Any:
    """The model with the adapter beside its weights (peft's, not merged)."""
    stored = open_adapter(model, folder)
    adapted = attach(model, config_for(settings, stored.modules, inference_mode=True))
    fill(model, folder, stored)
    return adapted.eval()


def require_sizes(folder: Path, stored: Mapping[str, Any], base: Path) -> None:
    """Refuses a base whose parts are of another kind or size than those that the adapter's config.json describes."""
    found = read_config(base)
    for part in ("llm_cfg", "vision_tower_cfg"):
        ours, theirs = stored.get(part), found.get(part)
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            continue
        gains_tokens = stored.get("scene_split") is not None and found.get("scene_split") is None
        for key in SIZES:
            if key == "vocab_size" and gains_tokens:
                continue
            if key in ours and key in theirs and ours[key] != theirs[key]:
                raise ValueError(
                    f"{folder}: the adapter was trained on a base whose {part} has {key} {ours[key]!r}, {base} has "
                    f"{theirs[key]!r}; give the base that it was trained on as model_base"
                )


def take_settings(model: LlavaCausalLM, stored: Mapping[str, Any]) -> None:
    """Template, frames, prompt format and the like as the adapter was trained (LLaVA-1.5 stores none of these)."""
    if "llm_cfg" not in stored:
        return
    for key, value in stored.items():
        if key not in NOT_SETTINGS and value is not None:
            setattr(model.config, key, value)
    model.store_part_settings()  # what describes the parts stays true of those that were read


def take_tokenizer(model: LlavaCausalLM, folder: Path) -> None:
    """Tokenizer and generation settings of the adapter's folder, where it has them."""
    from transformers import GenerationConfig

    from llava.model.builder import attach_tokenizer

    if has_tokenizer(folder):
        attach_tokenizer(model, read_tokenizer(folder))
    if (folder / "generation_config.json").is_file():
        model.llm.generation_config = GenerationConfig.from_pretrained(str(folder))


def make_plan(folder: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    """Describes the adapter alone; its base is another checkpoint."""
    settings = read_json(folder / ADAPTER_CONFIG)
    plan = Plan(layout="lora", folder=folder, config=read_config(folder))
    plan.parts = {"adapter": Part(tensors=read_headers([adapter_file(folder)]))}
    plan.parts |= {part: Part() for part in ("llm", "vision_tower", "mm_projector")}
    plan.distribute(other_trainables(folder), locate_original, explain_buffer)
    plan.parts = {name: part for name, part in plan.parts.items() if part.tensors}
    named = settings.get("base_model_name_or_path")
    kind = "DoRA" if settings.get("use_dora") else "LoRA"
    here = base_on_disk(folder, named) if isinstance(named, str) and named else None
    base = "model_base" if here is None else f"its base {here}"
    plan.needs.append(f"peft, and {base}: the {kind} of rank {settings.get('r')} was trained on {named!r}")
    return plan


LAYOUTS.register("lora")(
    Layout(recognises=recognises, read=read, plan=make_plan, holds="adapter_config.json and adapter_model.*")
)
