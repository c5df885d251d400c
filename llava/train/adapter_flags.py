"""Flags of adapters and of quantised bases: what they ask for, and which of them contradict each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from transformers import BitsAndBytesConfig

from llava.utils.registry import suggest

if TYPE_CHECKING:
    from llava.train.parse import RunArguments

logger = logging.getLogger(__name__)

BIASES = ("none", "all", "lora_only")
ADAPTED_PARTS: Mapping[str, str] = {"language_model": "lora_llm", "vision_tower": "lora_vt"}
"""Part that can carry adapters -> the flag that asks for them."""

_NEED_LORA = ("use_dora", "lora_llm", "lora_vt", "lora_weight_path")
_SHAPE = ("lora_r", "lora_alpha", "lora_dropout", "lora_bias")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Adapters of a run.

    Attributes:
        parts: "language_model", "vision_tower": the parts whose linear layers get an adapter.
        tuned: part -> True where it is trained as a whole; never a part of `parts`.
        bias: "none", "lora_only" (of layers with an adapter) or "all" (of parts with adapters).
        weight_path: folder of adapters to go on from, None for new ones.
        fixed: flags of this class that were given: a folder with other values is an error.
    """

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    bias: str = "none"
    use_dora: bool = False
    parts: tuple[str, ...] = ("language_model",)
    tuned: Mapping[str, bool]
    weight_path: str | None = None
    fixed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"lora_r is {self.rank} and lora_alpha {self.alpha}, expected 1 or more of each")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora_dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.bias not in BIASES:
            near = suggest(self.bias, list(BIASES))
            raise ValueError(f"lora_bias is '{self.bias}', expected {', '.join(BIASES)}{near}")


def adapter_settings(args: RunArguments) -> AdapterSettings | None:
    """The adapters that a command line asks for; None without `--lora_enable True`.

    Raises:
        ValueError: flags that contradict each other, or would silently do nothing.
    """
    training = args.training
    if not training.lora_enable:
        _refuse_without_lora(args)
        return None
    _require_package("peft", "--lora_enable True", "train")
    parts = _adapted_parts(args)
    settings = AdapterSettings(
        rank=training.lora_r,
        alpha=training.lora_alpha,
        dropout=training.lora_dropout,
        bias=training.lora_bias,
        use_dora=training.use_dora,
        parts=parts,
        tuned=_tuned_parts(args, parts),
        weight_path=training.lora_weight_path or None,
        fixed=frozenset(args.given & {"lora_r", "lora_alpha", "use_dora", *ADAPTED_PARTS.values()}),
    )
    if settings.bias != "none" and _half_precision(args):
        raise ValueError(
            f"--lora_bias {settings.bias} with --model_dtype {training.model_dtype} would train biases in half "
            "precision, which loses their updates; leave out --model_dtype, or take --lora_bias none"
        )
    return settings


def _refuse_without_lora(args: RunArguments) -> None:
    for name in _NEED_LORA:
        value = getattr(args.training, name)
        if name in args.given and value:
            raise ValueError(f"--{name} {value} needs adapters to act on; add --lora_enable True, or leave it out")
    for name in _SHAPE:
        if name in args.given:
            logger.warning("--%s has no effect without --lora_enable True", name)


def _adapted_parts(args: RunArguments) -> tuple[str, ...]:
    """What lora_llm and lora_vt name; the language model where neither was given."""
    asked = {part: getattr(args.training, flag) for part, flag in ADAPTED_PARTS.items()}
    if not args.given & set(ADAPTED_PARTS.values()):
        asked["language_model"] = True
    parts = tuple(part for part, is_asked in asked.items() if is_asked)
    if not parts:
        raise ValueError(
            "--lora_enable True with --lora_llm False and --lora_vt False leaves no part for adapters; "
            "give --lora_llm True or --lora_vt True, or leave out --lora_enable"
        )
    return parts


def _tuned_parts(args: RunArguments, adapted: tuple[str, ...]) -> dict[str, bool]:
    """Parts that are trained whole: as the tune flags (or the stage) say, but a part with adapters never.

    The projector has no adapters, so without any word about it it is trained.
    """
    tuned: dict[str, bool] = {}
    for part in ("language_model", "vision_tower", "mm_projector"):
        flag = f"tune_{part}"
        tuned[part] = getattr(args.training, flag)
        if part in adapted:
            if tuned[part] and flag in args.given:
                raise ValueError(
                    f"--{flag} True trains the whole part, --lora_enable True only adapters in it; leave out one of "
                    f"them (adapters elsewhere: {' or '.join(f'--{name} True' for name in ADAPTED_PARTS.values())})"
                )
            tuned[part] = False
    if "tune_mm_projector" not in args.given and args.training.stage is None:
        tuned["mm_projector"] = True
    return tuned


def _half_precision(args: RunArguments) -> bool:
    return "model_dtype" in args.given and "16" in args.training.model_dtype


def quantisation(args: RunArguments, adapters: AdapterSettings | None) -> BitsAndBytesConfig | None:
    """How the language model is quantised while it is read; None for 16 bits, which means: not at all.

    Raises:
        ValueError: another number of bits, nothing to train beside the quantised weights, or no bitsandbytes.
    """
    training = args.training
    if training.bits != 4:
        for name in ("double_quant", "quant_type"):
            if name in args.given:
                logger.warning("--%s has no effect without --bits 4", name)
    if training.bits == 16:
        return None
    _check_quantised(args, adapters)
    if training.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=training.double_quant,
        bnb_4bit_quant_type=training.quant_type,
    )


def _check_quantised(args: RunArguments, adapters: AdapterSettings | None) -> None:
    training = args.training
    if training.bits not in (4, 8):
        raise ValueError(f"bits is {training.bits}, expected 16, 8 or 4")
    if training.quant_type not in ("nf4", "fp4"):
        raise ValueError(f"quant_type is '{training.quant_type}', expected nf4 or fp4")
    if adapters is None:
        raise ValueError(
            f"--bits {training.bits} freezes the language model in {training.bits} bits; add --lora_enable True to "
            "train adapters beside it, or leave it out"
        )
    if adapters.tuned["language_model"]:
        raise ValueError(
            f"--bits {training.bits} leaves no weights of the language model that could be trained whole; "
            "give --tune_language_model False, or --lora_llm True for adapters beside them"
        )
    config = getattr(training, "hf_deepspeed_config", None)
    if config is not None and config.is_zero3():
        raise ValueError(f"--bits {training.bits} cannot be split by ZeRO-3; use --deepspeed scripts/zero2.json")
    _require_package("bitsandbytes", f"--bits {training.bits}", "quantised")


def _require_package(name: str, flag: str, extra: str) -> None:
    if find_spec(name) is None:
        raise ValueError(f'{flag} needs {name}, which is not installed: pip install "llava[{extra}]", or leave it out')
