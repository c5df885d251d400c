"""The next-frame loss of a run: settings from the command line, modules beside the model, its teacher on resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from llava.data.builder import MixtureDataset
from llava.data.clips import ClipOptions
from llava.data.geometry import DEPTH, GeometryOptions, path_key
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.targets import grid_side_of
from llava.model.checkpoints import autoregressive
from llava.train.parse import RunArguments

logger = logging.getLogger(__name__)


ONLY_WITH_IT = frozenset(
    {"autoregressive_config", "autoregressive_lr", "autoregressive_depth", "turn_degrees", "frame_per_action"}
)
"""Flags that nothing else reads."""


def reconstruction_settings(args: RunArguments) -> ReconstructionConfig | None:
    """What `--autoregressive_config` says; None where the loss is not asked for.

    The width of the features is the tower's unless it is given.
    """
    training = args.training
    if not training.enable_autoregressive:
        if alone := sorted(ONLY_WITH_IT & args.given):
            raise ValueError(f"--{alone[0]} is read with --enable_autoregressive True; add it, or leave it out")
        return None
    keys = read_keys(training.autoregressive_config)
    if training.autoregressive_depth:
        keys = _with_depth(keys)
    return ReconstructionConfig.read({"embedding_dim": None, **keys})


def _with_depth(keys: dict[str, Any]) -> dict[str, Any]:
    """What `--autoregressive_depth True` stands for."""
    depth = {"geometry_dim": 1, "geometry_origin": DEPTH}
    for name, value in depth.items():
        if keys.get(name) not in (None, value):
            raise ValueError(
                f"--autoregressive_depth True and {name} {keys[name]!r} in --autoregressive_config, expected "
                f"{value!r}; leave one of them out: there is one second target"
            )
    return {**keys, **depth}


def read_keys(source: str | None, flag: str = "autoregressive_config") -> dict[str, Any]:
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
            f"{flag} is {source!r} ({error}), expected keys and values as '{{\"key\": 3}}', or a YAML or JSON file"
        ) from error
    if keys is not None and not isinstance(keys, dict):
        raise ValueError(f"{flag} {source!r} holds a {type(keys).__name__}, expected keys and values")
    return keys or {}


def clip_options(config: ReconstructionConfig | None, tower: Any) -> ClipOptions | None:
    """What the data side must bring along.

    Args:
        tower: vision tower of the model, on whose grid of patches the second target is wanted.
    """
    if config is None:
        return None
    geometry = None
    if config.geometry_dim is not None:
        geometry = GeometryOptions(
            origin=config.geometry_origin,
            width=config.geometry_dim,
            side=grid_side_of(tower.num_patches),
            pool=config.target_pool,
        )
    return ClipOptions(answer_targets="answer" in config.sites, geometry=geometry)


def check_second_target(dataset: MixtureDataset, clips: ClipOptions | None) -> None:
    """Raises ValueError: a second target is asked for and no part of the mixture has any."""
    if clips is None or clips.geometry is None:
        return
    known = [part.dataset.geometry for part in dataset.parts]
    if not any(geometry is not None and geometry.root is not None for geometry in known):
        key = path_key(clips.geometry.origin)
        raise ValueError(
            f"geometry_dim is {clips.geometry.width} and no data set of {dataset.names} has a {key}, expected one at "
            "least; add it to its registry entry, or leave the second target out"
        )


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
