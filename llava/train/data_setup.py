"""Data of a run: the mixture as a data set, its collator, and what the samplers and the checkpoint need of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from llava.data.base import DataOptions
from llava.data.builder import build_dataset
from llava.data.collate import DataCollator
from llava.data.datasets_mixture import DataRegistry, Entry, load_registry
from llava.train.corpus import corpus
from llava.train.model_setup import EMBEDDED_TEMPLATE, PreparedModel
from llava.train.parse import RunArguments
from llava.train.reconstruction_setup import check_second_target, clip_options, reconstruction_settings
from llava.train.rows import packs_rows
from llava.train.samplers import Mixture, parse_weights
from llava.train.scene_split_setup import mask_options
from llava.utils.registry import Registry
from llava.utils.tokenizer import TokenizationCompat

logger = logging.getLogger(__name__)

EMBEDDED_PREFIX = "embedded_"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What the trainer reads, and what the checkpoint must remember of the data."""

    train: Dataset
    evaluation: Dataset | None
    collator: DataCollator
    mixture: Mixture
    lengths: np.ndarray
    modalities: np.ndarray
    stored: dict[str, Any]

    def store_in(self, config: Any) -> None:
        """Put prompt format, camera and tokenisation into the model's config; what the data does not say stays."""
        for name, value in self.stored.items():
            if value is not None:
                setattr(config, name, value)


def registry_of(args: RunArguments) -> DataRegistry:
    """The registry files of the run; `VILA_DATASETS` is read here, nothing below reads the environment."""
    if args.data.data_path:
        paths = {"data_path": Path(args.data.data_path), "media_dir": Path(args.data.image_folder or ".")}
        name = args.data.data_mixture
        return DataRegistry(entries={name: Entry(name=name, type="llava", paths=paths)}, mixtures={})
    sources = args.data.data_registry or os.environ.get("VILA_DATASETS")
    return load_registry(sources, data_root=args.data.data_root)


def text_of(args: RunArguments) -> Iterable[str]:
    """The text that trains the tokenizer of an embedded model."""
    registry = registry_of(args)
    mixture = args.data.tokenizer_mixture or args.data.data_mixture
    _check_embedded_data(registry, mixture)
    template = args.model.version if args.model.version != "auto" else EMBEDDED_TEMPLATE
    return corpus(registry, mixture, template)


def prepare_data(args: RunArguments, prepared: PreparedModel) -> PreparedData:
    """Build the mixture for a model: pictures in its size, text by its tokenizer and template."""
    registry = registry_of(args)
    _check_embedded_data(registry, args.data.data_mixture)
    _store_tokenization(args, prepared.model.config)
    full = _dataset(args.data.data_mixture, args, prepared, registry, "train")
    limit = args.data.max_samples
    kept = len(full) if limit < 0 else min(limit, len(full))
    weights = parse_weights(args.data.mixture_weights, full.names)
    if kept < len(full) and weights:
        raise ValueError("max_samples and mixture_weights exclude each other; use 'name*0.1' in data_mixture")
    evaluation = args.data.eval_data_mixture
    return PreparedData(
        train=full if kept == len(full) else Subset(full, range(kept)),
        evaluation=_dataset(evaluation, args, prepared, registry, "eval") if evaluation else None,
        collator=_collator(args, prepared, packs_rows(args, prepared.model, has_branches=_has_branches(full, args))),
        mixture=Mixture(sizes=tuple(full.sizes) if kept == len(full) else (kept,), weights=weights),
        lengths=np.minimum(full.lengths[:kept], args.training.model_max_length),
        modalities=np.fromiter((kind != "text" for kind in full.modality[:kept]), np.uint8, kept),
        stored=_stored(full),
    )


def _dataset(mixture: str, args: RunArguments, prepared: PreparedModel, registry: DataRegistry, split: str) -> Any:
    model: Any = prepared.model
    options = replace(data_options(args, model.config, model.vision_tower), object_masks=mask_options(model, args))
    dataset = build_dataset(
        mixture,
        registry=registry,
        tokenizer=prepared.tokenizer,
        spec=model.visual_spec,
        template=prepared.template,
        options=options,
        split=split,
    )
    check_second_target(dataset, options.clips)
    return dataset


def data_options(args: RunArguments, config: Any, tower: Any) -> DataOptions:
    """Choices of the data side: given flags, else what the checkpoint stores, else the defaults."""
    data, stored = args.data, getattr(config, "navigation_prompt", None) or {}
    chosen: dict[str, Any] = {
        "num_video_frames": getattr(config, "num_video_frames", None) or data.num_video_frames,
        "instruction": data.instruction or stored.get("instruction", "normalised"),
        "answers_visible": data.answers_visible or stored.get("answers_visible", False),
        "max_decisions": data.max_decisions,
        "grounding_questions": data.grounding_questions,
        "learn_decisions": data.learn_decisions,
        "turn_degrees": data.turn_degrees,
        "frame_per_action": data.frame_per_action,
        "names_place": data.names_place or stored.get("names_place", False),
        "tokenization_compat": getattr(config, "tokenization_compat", None),
        "clips": clip_options(reconstruction_settings(args), tower),
        "on_error": data.broken_samples,
        "seed": args.training.seed,
    }
    return DataOptions(**chosen)


TOKENIZATIONS = Registry[TokenizationCompat]("tokenization")
TOKENIZATIONS.register("navila")(TokenizationCompat.navila())
TOKENIZATIONS.register("plain")(TokenizationCompat())


def _store_tokenization(args: RunArguments, config: Any) -> None:
    if args.data.tokenization is not None:
        config.tokenization_compat = asdict(TOKENIZATIONS[args.data.tokenization])


def _has_branches(dataset: Any, args: RunArguments) -> bool:
    """Streaming episodes and grounding questions are the data with tokens that others of the sample do not see."""
    formats = {prompt["format"] for prompt in dataset.navigation_prompts.values()}
    return "streaming" in formats or args.data.grounding_questions > 0


def _collator(args: RunArguments, prepared: PreparedModel, packs: bool) -> DataCollator:
    tokenizer, model = prepared.tokenizer, prepared.model
    pad = tokenizer.pad_token_id
    return DataCollator(
        pad_token_id=int(tokenizer.eos_token_id if pad is None else pad),  # type: ignore[arg-type]
        max_length=args.training.model_max_length,
        mode="pack" if packs else "pad",
        rows="one",
        image_token_id=model.config.image_token_id,
    )


def _stored(dataset: Any) -> dict[str, Any]:
    camera = dataset.camera_profile
    return {
        "navigation_prompt": dataset.navigation_prompt,
        "camera_profile": camera.to_dict() if hasattr(camera, "to_dict") else camera,
    }


def _check_embedded_data(registry: DataRegistry, mixture: str) -> None:
    """The embedded data set is made by a command; say which when it is missing."""
    for part in registry.parts(mixture):
        path = registry.entries[part.name].paths.get("data_path")
        if part.name.startswith(EMBEDDED_PREFIX) and path is not None and not path.exists():
            raise FileNotFoundError(
                f"data set '{part.name}' is not at {path}; "
                f"`make demo` makes it, or: vila-world write --out {path.parent}"
            )
