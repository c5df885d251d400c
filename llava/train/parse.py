"""Command line -> the three argument groups, plus the set of flags that were really given.

Knowing what was given matters twice: a default never overwrites a setting that a checkpoint stores, and a flag that
cannot have an effect is answered with a warning (or an error, where ignoring it would train something else).
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import HfArgumentParser

from llava.train.adapter_flags import adapter_settings, quantisation
from llava.train.args import DataArguments, ModelArguments, TrainingArguments
from llava.train.published_flags import RENAMED as RENAMED_BY_OTHERS
from llava.train.published_flags import refuse_published, spell_out_parts
from llava.train.stages import STAGES
from llava.utils.distributed import is_distributed
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

TRAINING_FIELDS = frozenset(f.name for f in dataclasses.fields(TrainingArguments))

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "mm_projector_type": "mm_projector",
    "pretrain_mm_mlp_adapter": "mlp_path",
    "vision_tower_name": "vision_tower",
    **RENAMED_BY_OTHERS,
}
# transformers 5.2x renamed gradient checkpointing; both spellings work here with either release.
_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
RENAMED |= (
    {old + tail: new + tail for tail in ("", "_kwargs") for new, old in [_CHECKPOINTING]}
    if "activation_checkpointing" in TRAINING_FIELDS
    else {new + tail: old + tail for tail in ("", "_kwargs") for new, old in [_CHECKPOINTING]}
)

REMOVED = {
    "overwrite_output_dir": "a finished folder is never overwritten; choose another --output_dir or delete it",
    "save_safetensors": "weights are always written as safetensors",
    "past_index": "transformers no longer has it",
    "fp16_opt_level": "transformers no longer has it",
    "fp16_backend": "transformers no longer has it",
    "half_precision_backend": "transformers no longer has it",
    "torchdynamo": "use --torch_compile",
    "freeze_backbone": "use --tune_language_model",
}
"""Flags of old scripts that no longer exist anywhere, and what to do instead."""

WITHOUT_EFFECT: Mapping[str, tuple[Any, str]] = {
    "lazy_preprocess": (True, "samples are always built when they are read"),
    "is_multimodal": (True, "it follows from the records"),
    "mpt_attn_impl": (None, "MPT is not among the language models; use --attn_implementation"),
    "downsample_video": (False, "use --num_video_frames or --fps"),
    "navila_video_sampler": (False, "the navigation data sets always sample as navigation does"),
    "navila_video_sampler_v2": (False, "the navigation data sets always sample as navigation does"),
    "debug_e2e": (False, "nothing reads it"),
    "train_sampling_strategy": (None, "use --sampler"),
    "length_column_name": (None, "lengths come from the data sets"),
    "remove_unused_columns": (False, "samples are not table rows"),
    "auto_find_batch_size": (False, "use --tokens_per_batch"),
    "dataloader_drop_last": (False, "every sample is used: the batches of an epoch differ by at most one sample"),
    "dataloader_persistent_workers": (True, "workers always live as long as the run"),
    "longvila_sampler": (None, "the shuffled sampler is used (the published one forgot to shuffle)"),
}
"""flag -> (the only value that needs no remark, why the flag does nothing)."""

NOT_BUILT: Mapping[str, tuple[Any, str]] = {
    "dpo": (False, "start python -m llava.train.dpo, which trl does the work of"),
    "mm_use_im_start_end": (False, "leave it out"),
    "mm_use_im_patch_token": (False, "pass False"),
    "video_max_tiles": (1, "leave it out: frames of a video are not cut"),
    "max_num_images": (None, "leave it out, or shorten the records"),
    "num_time_tokens": (0, "leave it out"),
    "drop_path_rate": (0.0, "leave it out"),
    "use_liger_kernel": (False, "leave it out: the loss already works on supervised rows only"),
}
"""flag -> (the value that works, what to do instead); another value is an error, as it would train another model."""


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """The parsed command line. `given` holds the names (new spellings) of the flags that were typed."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    given: frozenset[str]


def parse_args(argv: Sequence[str], *, defaults: Mapping[str, Any] | None = None) -> RunArguments:
    """Parse a command line.

    Args:
        argv: the words after the program's name; old spellings are accepted.
        defaults: values that replace the published defaults (an entry point's own), weaker than a stage and than flags.

    Raises:
        ValueError: unknown flag (the nearest one is suggested), or a flag whose job is not built.
    """
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), allow_abbrev=False)  # type: ignore[arg-type]
    words = _drop_removed(spell_out_parts(_modern_words(list(argv))))
    refuse_published(words)
    given = frozenset(_given(words))
    preset = {RENAMED.get(name, name): value for name, value in {**(defaults or {}), **_stage_row(words)}.items()}
    words = [w for name, value in preset.items() if name not in given for w in (f"--{name}", str(value))] + words
    words = _fit_to_machine(words, given)
    *groups, unknown = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        known = sorted({a for action in parser._actions for a in action.option_strings if "-" not in a[2:]})
        raise ValueError(f"unknown argument '{unknown[0]}'{suggest(unknown[0].split('=')[0], known)}")
    args = RunArguments(model=groups[0], data=groups[1], training=groups[2], given=given)
    _check(args)
    return args


def _modern_words(argv: list[str]) -> list[str]:
    """Old spellings -> today's names, `--a-b` -> `--a_b`, `--name=value` -> two words."""
    words: list[str] = []
    for word in argv:
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        words.append(f"--{RENAMED.get(name, name)}")
        words += [value] if equals else []
    words = _warmup_ratio(words)
    return (
        ["--sampler", "length", *_without(words, "group_by_length")]
        if _value(words, "group_by_length") == "True"
        else words
    )


def _warmup_ratio(words: list[str]) -> list[str]:
    """`--warmup_ratio r` -> `--warmup_steps r`, read as a share when below 1; steps above 0 win, as they always did."""
    ratio = _value(words, "warmup_ratio")
    if ratio is None:
        return words
    words = _without(words, "warmup_ratio")
    steps = _value(words, "warmup_steps")
    if steps is not None and float(steps) > 0:
        return words
    return [*_without(words, "warmup_steps"), "--warmup_steps", ratio]


def _value(words: list[str], name: str) -> str | None:
    """Last value of a flag, 'True' for a bare switch, None when absent."""
    value = None
    for i, word in enumerate(words):
        if word == f"--{name}":
            following = words[i + 1] if i + 1 < len(words) else "--"
            value = "True" if following.startswith("--") else following
    return value


def _without(words: list[str], name: str) -> list[str]:
    """The command line without one flag and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if word.startswith("--"):
            skip = word == f"--{name}"
        if not skip:
            kept.append(word)
    return kept


def _drop_removed(words: list[str]) -> list[str]:
    for name, why in REMOVED.items():
        if f"--{name}" in words:
            logger.warning("--%s has no effect: %s", name, why)
            words = _without(words, name)
    return words


def _given(words: list[str]) -> list[str]:
    return [w[2:] for w in words if w.startswith("--")]


def _stage_row(words: list[str]) -> Mapping[str, Any]:
    stage = _value(words, "stage")
    return STAGES[stage].settings if stage else {}


def _fit_to_machine(words: list[str], given: frozenset[str]) -> list[str]:
    """What a machine without a GPU cannot do is left out with a word about it."""
    if _value(words, "deepspeed") in ("none", ""):
        words = _without(words, "deepspeed")
    if _value(words, "deepspeed") and not find_spec("deepspeed"):
        raise ValueError("--deepspeed needs a package that is not installed: pip install deepspeed, or leave it out")
    if torch.cuda.is_available():
        return words
    if _value(words, "tf32") == "True":
        logger.warning("--tf32 True has no effect: no CUDA device here")
        words = _without(words, "tf32")
    if "use_cpu" not in given and not torch.accelerator.is_available():
        words = ["--use_cpu", "True", *words]
    if "ddp_backend" not in given and is_distributed():
        words = ["--ddp_backend", "gloo", *words]
    return words


def _check(args: RunArguments) -> None:
    values = {**vars(args.model), **vars(args.data), **vars(args.training)}
    for name, (works, instead) in NOT_BUILT.items():
        if name in args.given and values[name] != works:
            raise ValueError(f"--{name} {values[name]} is not available in this version, expected {works}; {instead}")
    for name, (silent, why) in WITHOUT_EFFECT.items():
        if name in args.given and (silent is None or values[name] != silent):
            logger.warning("--%s %s has no effect: %s", name, values[name], why)
    _check_tiles(args)
    quantisation(args, adapter_settings(args))
    training = args.training
    if training.group_by_modality_length and "sampler" not in args.given:
        training.sampler = "modality_length"
    _check_batches(args)
    _check_time_limit(args)
    if training.max_train_seconds > 0 and {"max_steps", "num_train_epochs"} & args.given:
        logger.warning(
            "--max_train_seconds %.0f may end the run before max_steps or num_train_epochs do",
            training.max_train_seconds,
        )


def _check_batches(args: RunArguments) -> None:
    """Two ways to say how large a batch is exclude each other; the one that does not hold is named."""
    training = args.training
    if training.tokens_per_batch <= 0:
        return
    if training.packing == "False":
        logger.warning("--tokens_per_batch %d has no effect with --packing False", training.tokens_per_batch)
        training.tokens_per_batch = -1
        return
    if "per_device_train_batch_size" in args.given:
        logger.warning(
            "--per_device_train_batch_size %d has no effect with --tokens_per_batch %d",
            training.per_device_train_batch_size, training.tokens_per_batch,
        )  # fmt: skip
    if training.sampler != "shuffle":
        logger.warning(
            "--sampler %s has no effect with --tokens_per_batch, whose batches hold samples of all lengths",
            training.sampler,
        )


def _check_time_limit(args: RunArguments) -> None:
    """Minutes are left to train before a run saves; the published ten before the limit are too many for a short one."""
    limit, reserve = args.training.total_time_limit, args.training.pre_terminate_time
    if limit <= 0 or 0 <= reserve < limit:
        return
    if "pre_terminate_time" in args.given:
        raise ValueError(
            f"--pre_terminate_time is {reserve:g} minutes, expected 0 or more and less than --total_time_limit "
            f"({limit:g}): every start would save and stop at its first step"
        )
    args.training.pre_terminate_time = limit / 5
    logger.info("the run saves %.2g minutes before --total_time_limit %g", limit / 5, limit)


def _check_tiles(args: RunArguments) -> None:
    """Flags about tiles and scales that the image mode or the tower does not read."""
    mode, model = args.data.image_aspect_ratio, args.model
    readers = {"min_tiles": ("dynamic",), "max_tiles": ("dynamic", "dynamic_s2")}
    for name, modes in readers.items():
        if name in args.given and mode not in modes:
            logger.warning("--%s has no effect without --image_aspect_ratio %s", name, " or ".join(modes))
    scales = {"s2_scales", "s2_max_split_size", "s2_resize_output_to_scale_idx"} & args.given
    if scales and not (model.s2 or model.dynamic_s2):
        logger.warning("--%s has no effect without --s2 True or --dynamic_s2 True", min(scales))
    if model.dynamic_s2 and mode != "dynamic_s2":
        logger.warning("--dynamic_s2 True without --image_aspect_ratio dynamic_s2: every picture stays one tile")
