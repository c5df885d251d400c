"""A model with adapters, ready for training: its base, the adapted layers, what is frozen, where it goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import set_seed

from llava.model.checkpoints import adapter as folders
from llava.model.checkpoints.adapter import AdapterOnBase, is_adapter_weight
from llava.model.checkpoints.lora import OWN_BASE, take_settings, take_tokenizer
from llava.model.checkpoints.stored import read_config
from llava.train.adapter_flags import ADAPTED_PARTS, AdapterSettings, quantisation
from llava.train.args import EMBEDDED
from llava.train.model_setup import (
    PreparedModel,
    is_vlm,
    prepare_model,
    read_model,
    require_no_new_tower,
    weights_dtype,
    with_given_settings,
    zero_init_off,
)
from llava.train.parse import RunArguments
from llava.train.parts import LANGUAGE_MODEL, part_of, set_trainable
from llava.train.scene_split_setup import attach_split, tuned_parts
from llava.utils.distributed import barrier

logger = logging.getLogger(__name__)


def prepare_adapted_model(
    args: RunArguments, settings: AdapterSettings, *, checkpoint: Path | None, corpus: Callable[[], Iterable[str]]
) -> PreparedModel:
    """The base with adapters beside it: new ones, those of `--lora_weight_path`, or those of a checkpoint."""
    base = base_folder(args, corpus)
    how = quantisation(args, settings)
    device = "cpu" if how is None else str(args.training.device)  # quantised weights are made where they are used
    prepared = read_model(base, args, weights_dtype(args), quantization_config=how, device=device)
    model: Any = prepared.model
    start = checkpoint or (Path(settings.weight_path).expanduser() if settings.weight_path else None)
    _split(model, args, start)
    if how is not None:
        _prepare_quantised(model)
    set_seed(args.training.seed)  # new adapters are the same whether the base was built just now or read
    may_cast = not args.training.deepspeed
    if start is None:
        folders.attach(model, _new_config(model, settings))
        set_trained(model, settings, may_cast=may_cast, split=tuned_parts(args))
        return replace(prepared, adapter=AdapterOnBase(base=base))
    modules = _modules_of(model, start, settings, is_resumed=checkpoint is not None)
    folders.attach(model, _stored_config(start, modules, settings))
    set_trained(model, settings, may_cast=may_cast, split=tuned_parts(args))  # first: whole weights are in float32
    changed = folders.read_over(model, start)
    take_settings(model, {key: value for key, value in read_config(start).items() if key != "scene_split"})
    take_tokenizer(model, start)
    prepared = with_given_settings(model, model.tokenizer, args)
    return replace(prepared, adapter=AdapterOnBase(base=base, changed=changed))


def _split(model: Any, args: RunArguments, start: Path | None) -> None:
    """The split that the flags ask for, or that the adapters to go on from were trained with."""
    stored = {} if start is None else read_config(start)
    if stored.get("scene_split") is not None and model.scene_split is None:
        with zero_init_off(args):
            model.initialize_scene_split(stored["scene_split"])
    attach_split(model, args)


# ---- the base ----


def base_folder(args: RunArguments, corpus: Callable[[], Iterable[str]]) -> str:
    """Folder or hub id of the base; one that exists only in memory is written to OUTPUT_DIR/adapter_base first.

    That is so for an embedded model, and for a language model that gains a tower and a projector here.
    """
    source = args.model.model_name_or_path
    own = Path(args.training.output_dir or ".").resolve() / OWN_BASE
    was_written = own.is_dir()
    barrier()  # every rank has looked before one writes
    if was_written:
        logger.info("the base of the adapters is %s, kept from an earlier start of this run", own)
        return str(own)
    if source != EMBEDDED and is_vlm(source, args.training.cache_dir):
        require_no_new_tower(args)
        return str(Path(source).expanduser().resolve()) if Path(source).expanduser().is_dir() else source
    prepared = prepare_model(args, checkpoint=None, corpus=corpus)
    if args.training.process_index == 0:
        staged = own.with_name(f".{OWN_BASE}.part")
        shutil.rmtree(staged, ignore_errors=True)
        prepared.model.save_pretrained(staged)
        staged.replace(own)
        logger.info("the base of the adapters is kept in %s", own)
    barrier()
    return str(own)


def _prepare_quantised(model: Any) -> None:
    """Norms and embeddings beside quantised layers become float32, nothing of the language model is trained."""
    from peft import prepare_model_for_kbit_training

    # recomputing activations is switched on by the trainer, for all parts alike
    prepare_model_for_kbit_training(model.llm, use_gradient_checkpointing=False)


# ---- where the adapters go ----


def adapted_layers(model: Any, parts: Iterable[str]) -> list[str]:
    """Names of the linear layers of some parts, without the language head and what a tower never runs."""
    roots = {LANGUAGE_MODEL: "llm", "vision_tower": "vision_tower"}
    left_out = _unused_weights(model) | {id(model.llm.get_output_embeddings().weight)}
    return [
        f"{roots[part]}.{name}"
        for part in parts
        for name, module in getattr(model, roots[part]).named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, NonDynamicallyQuantizableLinear)  # read by nn.MultiheadAttention, never called
        and id(module.weight) not in left_out
    ]


def _unused_weights(model: Any) -> set[int]:
    """Weights behind the selected layer of the tower: no gradient would ever reach an adapter there."""
    unused: set[int] = set()
    for part in model.vision_tower.unused():
        unused |= {id(weight) for weight in (part.parameters() if isinstance(part, nn.Module) else [part])}
    return unused


def _new_config(model: Any, settings: AdapterSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.use_dora,
        target_modules=adapted_layers(model, settings.parts),
        bias="none",  # freed by set_trained: peft would free the biases of every part
    )


# ---- what is trained ----


def set_trained(
    model: Any, settings: AdapterSettings, *, may_cast: bool, split: Mapping[str, bool | None] | None = None
) -> None:
    """Frees adapters, biases as asked, and parts that are trained whole; all else is frozen.

    Args:
        split: parts of `scene_split` that are trained or not; those that are not named follow the model's.
        may_cast: parts that are trained whole become float32, as their adapters are; DeepSpeed keeps its own copy.
    """
    frozen_for_good = _unused_weights(model)
    if settings.tuned.get(LANGUAGE_MODEL):
        set_trainable(model, settings.tuned, split)
    else:  # weights of 4 or 8 bits cannot even be asked
        vision = {part: settings.tuned[part] for part in ("vision_tower", "mm_projector")}
        model.set_vision_trainable(**vision, **(split or {}))
        for parameter in model.llm.parameters():
            parameter.requires_grad = False
    for name, parameter in model.named_parameters():
        if is_adapter_weight(name) or (_is_freed_bias(name, settings) and id(parameter) not in frozen_for_good):
            parameter.requires_grad = True
    for part, is_tuned in settings.tuned.items():
        if is_tuned and may_cast:
            getattr(model, "llm" if part == LANGUAGE_MODEL else part).float()
    for module in () if model.scene_split is None else model.scene_split.children():
        if may_cast and any(parameter.requires_grad for parameter in module.parameters()):
            module.float()
    if settings.bias != "none" and not any(_is_freed_bias(name, settings) for name, _ in model.named_parameters()):
        logger.warning("--lora_bias %s has no effect: there are no biases where it looks", settings.bias)


def _is_freed_bias(name: str, settings: AdapterSettings) -> bool:
    if settings.bias == "none" or part_of(name) not in settings.parts:
        return False
    return name.endswith(".base_layer.bias" if settings.bias == "lora_only" else ".bias")


# ---- where they go on from ----


def _modules_of(model: Any, start: Path, settings: AdapterSettings, *, is_resumed: bool) -> list[str]:
    """The adapted modules of a folder, whose adapters must be those that the flags describe."""
    if not (start / folders.ADAPTER_CONFIG).is_file():
        flag = "the checkpoint to go on from" if is_resumed else "lora_weight_path"
        raise ValueError(
            f"{flag} is {start}, where no {folders.ADAPTER_CONFIG} is; expected the folder of an adapter"
            + (": it was trained without --lora_enable; choose another --output_dir" if is_resumed else "")
        )
    folders.require_sampled_base(model, start)
    modules = folders.open_adapter(model, start).modules
    _require_same_flags(start, modules, settings)
    return modules


def _require_same_flags(start: Path, modules: list[str], settings: AdapterSettings) -> None:
    written = folders.read_settings(start)
    found = {"lora_r": written.get("r"), "lora_alpha": written.get("lora_alpha"),
             "use_dora": bool(written.get("use_dora"))}  # fmt: skip
    asked = {"lora_r": settings.rank, "lora_alpha": settings.alpha, "use_dora": settings.use_dora}
    parts = {part_of(name) for name in modules}
    for part, flag in ADAPTED_PARTS.items():
        found[flag], asked[flag] = part in parts, part in settings.parts
    for flag in sorted(settings.fixed):
        if found[flag] != asked[flag]:
            raise ValueError(
                f"--{flag} is {asked[flag]}, the adapters of {start} have {found[flag]}; leave the flag out to go on "
                "with them, or leave out --lora_weight_path for new ones"
            )
    if parts - set(settings.parts):
        needed = " ".join(f"--{ADAPTED_PARTS[part]} True" for part in sorted(parts))
        raise ValueError(
            f"the adapters of {start} lie in {' and '.join(sorted(parts))}, the flags name "
            f"{' and '.join(settings.parts)}; give {needed}"
        )


def _stored_config(start: Path, modules: list[str], settings: AdapterSettings) -> Any:
    """As the folder says; dropout is a matter of training and follows the flags."""
    written = folders.read_settings(start)
    return folders.config_for(written, modules, inference_mode=False, lora_dropout=settings.dropout)
