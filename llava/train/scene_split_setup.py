"""The background/object split of a run: settings of the command line, modules beside the model, masks for the data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llava.data.object_masks import ObjectMaskOptions
from llava.model.multimodal_encoder.families import square_side
from llava.model.scene_split.config import GROUPS, SceneSplitConfig
from llava.model.scene_split.module import PARTS
from llava.train.model_setup import zero_init_off
from llava.train.parse import RunArguments
from llava.train.reconstruction_setup import read_keys
from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

SWITCHES = ("scene_split", "image_cache")
"""The name, and the one under which older scripts know it."""
NEED_SPLIT = (
    "scene_split_groups",
    "scene_split_config",
    "object_masks",
    *(f"tune_{part}" for part in PARTS),
    *(f"{part}_lr" for part in PARTS),
)


def split_keys(args: RunArguments) -> dict[str, Any] | None:
    """The keys of `--scene_split_config`; None where no split is asked for.

    Raises:
        ValueError: switches that contradict each other, and keys that are none.
    """
    values = {name: getattr(args.model, name) for name in SWITCHES}
    given = [name for name in SWITCHES if name in args.given]
    if len(given) == len(SWITCHES) and len(set(values.values())) > 1:
        raise ValueError(
            f"--scene_split is {values['scene_split']} and --image_cache {values['image_cache']}, which are two names "
            "of one switch; give one of them"
        )
    if not any(values.values()):
        return None
    keys = read_keys(args.model.scene_split_config, "scene_split_config")
    SceneSplitConfig.read(keys)
    if args.training.enable_autoregressive:
        raise ValueError(
            "--scene_split True and --enable_autoregressive True exclude each other: the next-frame loss reads the "
            "slots of a frame in the order of its grid, which the split changes; train them one after the other"
        )
    return keys


def attach_split(model: Any, args: RunArguments) -> None:
    """Adds the split to a model before anything else is done to it, or changes the settings of one that has it.

    Raises:
        ValueError: flags of the split for a model without it, and the other way round.
    """
    keys = split_keys(args)
    groups = args.model.scene_split_groups
    if groups not in GROUPS:
        raise ValueError(
            f"--scene_split_groups is '{groups}', expected {', '.join(GROUPS)}{suggest(groups, [*GROUPS])}"
        )
    if keys is None:
        _check_unasked(model, args)
    elif model.scene_split is None:
        with zero_init_off(args):  # copies are made of whole weights
            model.initialize_scene_split(keys)
    else:
        model.scene_split.reconfigure(keys)
        model.config.scene_split = model.scene_split.config.to_dict()
    if model.scene_split is not None:
        model.scene_split.groups = groups


def _check_unasked(model: Any, args: RunArguments) -> None:
    given = [name for name in SWITCHES if name in args.given]
    if model.scene_split is not None and given:
        raise ValueError(
            f"--{given[0]} False was given and {model.name_or_path or 'the model'} was trained with the split; leave "
            "the flag out, or start from a model without it"
        )
    useless = [name for name in NEED_SPLIT if name in args.given]
    if model.scene_split is None and useless:
        raise ValueError(f"--{useless[0]} is read with --scene_split True only; add it, or leave the flag out")
    if model.scene_split is not None and "scene_split_config" in args.given:
        raise ValueError("--scene_split_config is read with --scene_split True; add it")


def tuned_parts(args: RunArguments) -> dict[str, bool | None]:
    """Part of the split -> whether it is trained; None = as the part that it began as a copy of."""
    return {part: getattr(args.training, f"tune_{part}") for part in PARTS if f"tune_{part}" in args.given}


def tune_last_layers(model: Any, args: RunArguments) -> None:
    """Freezes all of the language model but its last layers and the norm behind them.

    Raises:
        ValueError: no language model is trained, or it has fewer layers.
    """
    count = args.training.tune_last_layers
    if count is None:
        return
    decoder = model.llm.get_decoder()
    total = len(decoder.layers)
    if not args.training.tune_language_model or not 1 <= count <= total:
        raise ValueError(
            f"--tune_last_layers is {count} and --tune_language_model {args.training.tune_language_model}, expected 1 "
            f"to {total} layers of a language model that is trained; add --tune_language_model True"
        )
    model.llm.requires_grad_(False)
    for part in (*decoder.layers[-count:], decoder.norm):
        part.requires_grad_(True)


def mask_options(model: Any, args: RunArguments) -> ObjectMaskOptions | None:
    """What the data side must bring along; None for a model whose pictures are not split."""
    if model.scene_split is None:
        return None
    config: SceneSplitConfig = model.scene_split.config
    tower, options = model.vision_tower, dict(config.detector_options)
    folder = args.data.object_masks or (options.get("file") if config.detector == "precomputed" else None)
    return ObjectMaskOptions(
        rule=config.patch_rule(
            square_side(tower.config.patch_size, "patch_size"), cell=model.mm_projector.downsample_rate
        ),
        grid_side=tower.grid_side,
        folder=None if folder is None else Path(folder).expanduser(),
        missing=config.missing_masks,
        motion_options=options if config.detector == "motion" else None,
        shares_background=config.background_per == "clip",
    )
