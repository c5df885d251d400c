"""What DPO and GRPO share: flags, the model and its parts, checkpoints in the model's own folders."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from llava.model.builder import load_pretrained_model
from llava.navigation.prompt import NavilaFormat
from llava.train.checkpointing import require_writable
from llava.train.parts import TABLE_FILE, parts_table, print_table, save_table, set_trainable
from llava.train.trl_policy import Policy
from llava.train.trl_processor import PolicyProcessor
from llava.utils.logging import setup_logging
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PolicyArguments:
    """The model and the data; every other flag is one of trl's own configuration."""

    model_name_or_path: str = option("", "folder of a trained model of this package")
    data_path: str = option("", "JSON or JSONL of records; see llava/train/README.md")
    image_folder: str | None = option(None, "folder of the pictures that the records name")
    model_dtype: str = option("bfloat16", "dtype of the weights: bfloat16, float32 or float16")
    tune_language_model: bool = option(True, "train the language model")
    tune_vision_tower: bool = option(False, "train the vision tower")
    tune_mm_projector: bool = option(True, "train the projector")
    num_video_frames: int = option(8, "pictures of a NaVILA decision, the current one included")


@dataclass(frozen=True, kw_only=True)
class PolicySetup:
    """A run before its trainer."""

    policy: Policy
    processor: PolicyProcessor
    arguments: PolicyArguments
    config: Any

    @property
    def prompt(self) -> NavilaFormat:
        stored = self.policy.inner.config.navigation_prompt or {}
        return NavilaFormat(
            instruction=stored.get("instruction", "normalised"), num_frames=self.arguments.num_video_frames
        )


def set_up(argv: Sequence[str], config_class: Callable[..., Any], defaults: dict[str, Any]) -> PolicySetup:
    """Reads the command line and the model, and shows what is trained.

    Args:
        config_class: trl's configuration of the trainer.
        defaults: in place of trl's, weaker than flags.

    Raises:
        ValueError: an unknown or missing flag, or a model that cannot be trained this way.
    """
    setup_logging("INFO")
    arguments, config = parse(argv, config_class, defaults)
    require_writable(Path(config.output_dir))
    dtype = getattr(torch, arguments.model_dtype.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"model_dtype is '{arguments.model_dtype}', expected bfloat16, float32 or float16")
    _, model, *_ = load_pretrained_model(arguments.model_name_or_path, device="cpu", dtype=dtype)
    tuned = {part: getattr(arguments, f"tune_{part}") for part in ("language_model", "vision_tower", "mm_projector")}
    set_trainable(model, tuned)
    setup = PolicySetup(policy=Policy(model), processor=PolicyProcessor.of(model), arguments=arguments, config=config)
    if config.process_index == 0:
        rows = parts_table(model, learning_rate=config.learning_rate, part_rates={})
        print_table(rows)
        save_table(rows, Path(config.output_dir) / TABLE_FILE)
    return setup


def parse(argv: Sequence[str], config_class: Callable[..., Any], defaults: dict[str, Any]) -> tuple[Any, Any]:
    """(PolicyArguments, trl's configuration)."""
    parser = HfArgumentParser((PolicyArguments, config_class), allow_abbrev=False)  # type: ignore[arg-type]
    parser.set_defaults(**defaults)
    arguments, config, unknown = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        known = sorted({word for action in parser._actions for word in action.option_strings})
        raise ValueError(f"unknown argument '{unknown[0]}'{suggest(unknown[0].split('=')[0], known)}")
    for name in ("model_name_or_path", "data_path"):
        if not getattr(arguments, name):
            raise ValueError(f"--{name} is not given, expected a path")
    return arguments, config


class TrlMissing(ImportError):
    """trl is not installed; carries the command that installs it."""


class KeepsFolders:
    """Mixin of a trainer of trl: a checkpoint is read back from the folders that `Policy` writes."""

    model: Any

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = (model or self.model).inner
        _, source, *_ = load_pretrained_model(str(resume_from_checkpoint), device="cpu", dtype=target.dtype)
        target.load_state_dict(source.state_dict())


def run(build: Callable[[Sequence[str]], Any], argv: Sequence[str] | None) -> int:
    """Exit status of a command: trains what `build` gives and writes the model, a caller's mistake as one line."""
    try:
        trainer = build(sys.argv[1:] if argv is None else argv)
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
        trainer.save_model()
    except (ValueError, OSError, TrlMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def keeps_folders(trainer: type) -> type:
    """A trainer of trl whose checkpoints are the model's folders."""
    return type(f"Llava{trainer.__name__}", (KeepsFolders, trainer), {})


def require_trl() -> Any:
    """The package trl.

    Raises:
        TrlMissing: it is not installed.
    """
    try:
        import trl
    except ModuleNotFoundError as error:
        if error.name != "trl":  # installed, and one of its own needs is not: its message says which
            raise
        raise TrlMissing("preference and RL training need trl: pip install 'llava[rl]', or pip install trl") from error
    return trl
