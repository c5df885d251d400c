"""The arguments by which `generate` and `generate_content` are told about objects and caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from llava.batch import VisualSpec
from llava.model.media_embedding import as_batch, count_pictures, unify_image_token
from llava.model.scene_split.cached_generation import SceneRequest, generate_from_scenes
from llava.model.scene_split.object_source import ObjectSource, detected, given_masks, given_patches
from llava.model.scene_split.parts import SplitParts
from llava.model.scene_split.report import FirstTokenClock, SceneAnswer, SceneReport, Stopwatch
from llava.model.scene_split.row_plan import SceneChoices
from llava.scene.detector import GuardedDetector, ObjectDetector
from llava.scene.token_cache import BackgroundTokenCache


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Keywords of `generate` beside transformers' own.

    Attributes:
        object_patches: bool [N, P] or [N, grid, grid], True = object, of the views in reading order.
        object_masks: pixel masks of the original pictures, or None for those without objects; `generate_content` only.
        detector: finds the objects where nobody told them and no known background matches; None = that of the model's
            configuration. Without one there are no objects, all is background, as in training.
        background_cache: None computes everything.
        cache_salt: tenant; entries of one are invisible to the others.
        picture_ids: the caller's names of the views, such as that of a camera. They say what is tried first.
        moved_patches: bool [N, P] or [N, grid, grid], True = a video codec moved the patch since the last frame: the
            first filter of similar backgrounds, see `scene.codec_motion`.
        picture_sources: files of the pictures, for detectors that look answers up; `generate_content` only.
        allow_guarded: False asks for exact answers although the cache allows similar ones.
        keep_objects: keep keys and values of objects too, for further questions about the same picture.
        keep_kv: False keeps tokens of backgrounds only: smaller entries, which are good behind any words.
        suffix_multiple: what follows the known prefixes is padded to a multiple of so many tokens, so that compiled
            kernels and captured graphs meet few shapes; not for models with sliding windows, which count padding.
        force_scene_split: split the pictures of a model that was trained without it.
        return_provenance: return a `SceneAnswer`.
    """

    object_patches: Any = None
    object_masks: Sequence[np.ndarray | None] | None = None
    detector: ObjectDetector | None = None
    background_cache: BackgroundTokenCache | None = None
    cache_salt: str = ""
    picture_ids: Sequence[str | None] | None = None
    moved_patches: Any = None
    picture_sources: Sequence[str | Path] | None = None
    allow_guarded: bool = True
    keep_objects: bool = True
    keep_kv: bool = True
    suffix_multiple: int = 1
    force_scene_split: bool = False
    return_provenance: bool = False

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> tuple[SceneOptions, dict[str, Any]]:
        """(what is said about scenes, everything else)."""
        names = {each.name for each in fields(cls)}
        own = {name: value for name, value in kwargs.items() if name in names}
        return cls(**own), {name: value for name, value in kwargs.items() if name not in names}

    @property
    def names_objects(self) -> bool:
        return any(each is not None for each in (self.object_patches, self.object_masks, self.detector))

    def are_for(self, model: Any, images: Any) -> bool:
        """Whether this request's pictures are split.

        Raises:
            ValueError: objects were told and there is no picture.
        """
        if not count_pictures(images):
            if self.names_objects:
                raise ValueError("objects or a detector were given and there are no pictures; leave them out")
            return False
        return model.scene_split is not None or self.background_cache is not None or self.names_objects

    @property
    def choices(self) -> SceneChoices:
        return SceneChoices(
            cache=self.background_cache,
            cache_salt=self.cache_salt,
            picture_ids=self.picture_ids,
            moved_patches=self.moved_patches,
            allow_guarded=self.allow_guarded,
            keep_objects=self.keep_objects,
            keep_kv=self.keep_kv,
            suffix_multiple=self.suffix_multiple,
        )


@dataclass(frozen=True, kw_only=True)
class Originals:
    """The pictures before they were resized, where somebody has them.

    Attributes:
        pictures: RGB pictures of PIL.
        watch: it runs since the pictures were handed over.
    """

    pictures: Sequence[Any]
    watch: Stopwatch


def generate_split(
    model: Any,
    options: SceneOptions,
    input_ids: Tensor,
    images: Any,
    attention_mask: Tensor | None,
    originals: Originals | None,
    **generation_kwargs: Any,
) -> Any:
    """`generate` for pictures that are split into background and objects."""
    watch = start_watch(model, options, originals)
    parts = SplitParts.of(model, force=options.force_scene_split)
    pixels = as_batch(images)
    with watch.stage("resize"):
        source = _source(parts, options, pixels, originals)
    request = SceneRequest(
        input_ids=unify_image_token(input_ids, parts.rule.image_token_id),
        is_real=torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool(),
        pixels=pixels,
        source=source,
        choices=options.choices,
    )
    answer = generate_from_scenes(parts, request, watch, **generation_kwargs)
    return answer if options.return_provenance else answer.output


def generate_whole(
    model: Any,
    options: SceneOptions,
    inputs: tuple[Tensor, Any, Tensor | None, Tensor | None],
    originals: Originals | None,
    **generation_kwargs: Any,
) -> SceneAnswer:
    """`generate` for pictures that are not split, with its times."""
    watch = start_watch(model, options, originals)
    ids, images, mask, sizes = inputs
    mask = torch.ones_like(ids) if mask is None else mask
    with watch.stage("encoder"):
        _, _, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
            ids, None, mask, None, None, images, padding_side="left", image_sizes=sizes
        )
    clock = StoppingCriteriaList([FirstTokenClock(watch), *generation_kwargs.pop("stopping_criteria", ())])
    output = model.llm.generate(
        inputs_embeds=embeds, attention_mask=mask.long(), stopping_criteria=clock, **generation_kwargs
    )
    watch.mark("total")
    lengths = tuple(mask.sum(dim=1).tolist())
    report = SceneReport(
        pictures=(), prompt_tokens=lengths, cached_tokens=(0,) * len(lengths), seconds=dict(watch.seconds)
    )
    return SceneAnswer(output=output, report=report)


def start_watch(model: Any, options: SceneOptions, originals: Originals | None = None) -> Stopwatch:
    if originals is not None:
        return originals.watch
    device = model.get_input_embeddings().weight.device
    return Stopwatch(device, waits_for_device=options.return_provenance)


def _source(parts: SplitParts, options: SceneOptions, pixels: Tensor, originals: Originals | None) -> ObjectSource:
    """Who says what the objects are; nobody = there are none, as in training.

    Raises:
        ValueError: two say it.
    """
    told = [name for name in ("object_patches", "object_masks") if getattr(options, name) is not None]
    told += ["detector"] if options.detector is not None else []
    if len(told) > 1:
        raise ValueError(f"{' and '.join(told)} were given, expected one of them")
    if options.object_patches is not None:
        return given_patches(options.object_patches, len(pixels), parts.grid_side)
    spec, rule = parts.model.visual_spec, parts.patch_rule
    if options.object_masks is not None:
        if originals is None:
            raise ValueError("object_masks are of original pictures, which generate does not see; give object_patches")
        sizes = [(picture.height, picture.width) for picture in originals.pictures]
        return given_masks(options.object_masks, sizes, spec, rule)
    detector = parts.model.scene_detector if options.detector is None else _guarded(options.detector)
    if detector is None:
        return given_patches(
            torch.zeros(len(pixels), parts.grid_side**2, dtype=torch.bool), len(pixels), parts.grid_side
        )
    if originals is not None:
        pictures = [np.asarray(picture) for picture in originals.pictures]
        return detected(detector, pictures, spec, rule, options.picture_sources)
    return detected(detector, _shown(pixels), VisualSpec(image_size=spec.image_size, tokens_per_image=1), rule)


def _guarded(detector: ObjectDetector) -> ObjectDetector:
    """A crash costs the picture that it happens on: it is read as one object, and the report says so."""
    return detector if isinstance(detector, GuardedDetector) else GuardedDetector(detector)


def _shown(pixels: Tensor) -> list[np.ndarray]:
    """Pictures of the model's size for a detector."""
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"pictures are {pixels.dtype} and a detector is to look at them, expected torch.uint8 before they are "
            "normalised; give object_patches, or uint8 pictures"
        )
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())
