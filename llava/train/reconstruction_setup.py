"""The next-frame loss of a run: settings from the command line, modules beside the model, its teacher on resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from llava.data.clips import ClipOptions
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.checkpoints import autoregressive
from llava.train.parse import RunArguments

logger = logging.getLogger(__name__)


def reconstruction_settings(args: RunArguments) -> ReconstructionConfig | None:
    """What `--autoregressive_config` says; None where the loss is not asked for.

    The width of the features is the tower's unless it is given.
    """
    training = args.training
    if not training.enable_autoregressive:
        if "autoregressive_config" in args.given or "autoregressive_lr" in args.given:
            raise ValueError(
                "--autoregressive_config and --autoregressive_lr are read with --enable_autoregressive True; add it"
            )
        return None
    return ReconstructionConfig.read({"embedding_dim": None, **read_keys(training.autoregressive_config)})


def read_keys(source: str | None) -> dict[str, Any]:
    """Keys from JSON text, or from a JSON or YAML file.

    Raises:
        ValueError: it is neither, or holds no mapping.
    """
    if not source:
        return {}
    text = source.strip()
    try:
        if text.startswith("{"):
            keys = json.loads(text)
        elif Path(text).is_file():
            keys = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        else:
            raise ValueError("no such file")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"autoregressive_config is {source!r} ({error}), expected '{{\"num_hist\": 3}}' or a YAML or JSON file"
        ) from error
    if keys is not None and not isinstance(keys, dict):
        raise ValueError(f"autoregressive_config {source!r} holds a {type(keys).__name__}, expected keys and values")
    return keys or {}


def clip_options(config: ReconstructionConfig | None) -> ClipOptions | None:
    """What the data side must bring along."""
    if config is None:
        return None
    return ClipOptions(answer_targets="answer" in config.sites)


def attach_reconstruction(
    model: Any, config: ReconstructionConfig | None, checkpoint: Path | None, first_model: Callable[[], Any]
) -> None:
    """Adds the modules, once it is known what is trained; a resumed run gets its own predictor and teacher back.

    Args:
        checkpoint: from which the run goes on; None at its first start.
        first_model: the model as it was at the first start, whose tower a copied teacher was taken from.

    Raises:
        ValueError: the checkpoint was trained without it, or with another teacher.
    """
    model.config.reconstruction = None
    if config is None:
        return
    module = model.initialize_continuous_autoregressive_modules(config)
    if checkpoint is not None:
        autoregressive.read_into(module, checkpoint)
        if not module.teacher.is_shared:
            module.teacher.replace(first_model().vision_tower)
        autoregressive.check_teacher(module, checkpoint)
        return
    module.teacher.fingerprint()  # now: an engine may spread the weights over ranks
    source = Path(model.name_or_path or "")
    if autoregressive.is_there(source):
        try:
            autoregressive.read_into(module, source)
        except ValueError as error:
            logger.warning("the predictor starts fresh: %s", error)
        else:
            logger.info("the predictor goes on from %s", source / autoregressive.FOLDER)
