"""Generation with split pictures: known backgrounds are taken from a cache, objects and question are computed.

ids, pictures -> rows planned (row_plan.py) -> suffixes embedded -> one prefill behind the known prefix -> answer
                                                                      and what was not known is kept afterwards
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformers import StoppingCriteriaList

from llava.model.scene_split.fingerprint import ModelState
from llava.model.scene_split.kv_chain import share_chains, stretch_of
from llava.model.scene_split.object_source import ObjectSource, check_patches
from llava.model.scene_split.parts import SplitParts
from llava.model.scene_split.prefix import generate_after
from llava.model.scene_split.report import FirstTokenClock, PictureReport, SceneAnswer, SceneReport, Stopwatch
from llava.model.scene_split.row_embedding import embed_suffixes
from llava.model.scene_split.row_plan import Frame, RowPlan, RowPlanner, SceneChoices
from llava.scene.token_cache import BackgroundTokenCache, BackgroundValue


@dataclass(frozen=True, kw_only=True)
class SceneRequest:
    """A batch of prompts with split pictures.

    Attributes:
        input_ids: one placeholder per view, or all its slots.
        is_real: which of them are no padding, on either side.
        pixels: the views of all rows in reading order.
    """

    input_ids: Int[Tensor, "b s"]
    is_real: Bool[Tensor, "b s"]
    pixels: Shaped[Tensor, "n 3 h w"]
    source: ObjectSource
    choices: SceneChoices


@torch.no_grad()
def generate_from_scenes(
    parts: SplitParts, request: SceneRequest, watch: Stopwatch, **generation_kwargs: Any
) -> SceneAnswer:
    """New token ids (or transformers' output object), and where they come from."""
    _check(parts, request, generation_kwargs)
    model, cache = parts.model, request.choices.cache
    choices = replace(request.choices, keep_kv=request.choices.keep_kv and parts.keeps_kv)
    is_read = _one_placeholder_each(parts, request)
    ids = [row[read] for row, read in zip(request.input_ids, is_read, strict=True)]
    with ExitStack() as on_exit:
        state = ModelState(model)
        planner = RowPlanner(parts, choices, request.pixels, request.source, state, watch, on_exit)
        plans = [planner.plan(row, scenes) for row, scenes in zip(ids, _scenes_of_rows(parts, ids), strict=True)]
        _encode_objects(parts, request.pixels, plans, watch)
        suffix = embed_suffixes(parts, plans, choices.suffix_multiple)
        copies = _copies(model.llm, generation_kwargs)
        past, is_real = share_chains([plan.chain for plan in plans], copies, suffix.embeds.device)
        is_real = _without_stale(is_real, plans)
        clock = StoppingCriteriaList([FirstTokenClock(watch), *generation_kwargs.pop("stopping_criteria", ())])
        output = generate_after(model.llm, past, is_real, suffix, stopping_criteria=clock, **generation_kwargs)
        watch.mark("total")
    if cache is not None and choices.keep_kv:
        state.look_again()
        _keep(cache, plans, past, copies, is_real.shape[1] + suffix.embeds.shape[1])
    return SceneAnswer(output=output, report=_report(parts, request, plans, watch))


def _check(parts: SplitParts, request: SceneRequest, generation_kwargs: dict[str, Any]) -> None:
    for name in ("past_key_values", "inputs_embeds", "position_ids"):
        if name in generation_kwargs:
            raise ValueError(f"{name} was given beside split pictures, which bring their own; leave it out")
    if generation_kwargs.get("use_cache") is False:
        raise ValueError("use_cache is False, expected True: split pictures are read behind their prefix")
    names = request.choices.picture_ids
    if names is not None and len(names) != len(request.pixels):
        raise ValueError(f"{len(names)} picture_ids for {len(request.pixels)} pictures, expected one each, or None")
    if request.choices.suffix_multiple < 1:
        raise ValueError(f"suffix_multiple is {request.choices.suffix_multiple}, expected at least 1 (no padding)")
    moved = request.choices.moved_patches
    if moved is not None:
        check_patches("moved_patches", moved, len(request.pixels), parts.grid_side, "True = moved since the last frame")
    if request.choices.cache is not None:
        _check_device(torch.device(request.choices.cache.config.device), parts)


def _check_device(kept_on: torch.device, parts: SplitParts) -> None:
    read_on = parts.model.get_input_embeddings().weight.device
    if kept_on == read_on or (kept_on.type == read_on.type and kept_on.index is None):  # "cuda" is the current one
        return
    raise ValueError(
        f"the cache keeps values on {kept_on} and the model reads them on {read_on}; make it with "
        f"CacheConfig(device='{read_on}')"
    )


def _one_placeholder_each(parts: SplitParts, request: SceneRequest) -> Bool[Tensor, "b s"]:
    """Which tokens are read: of a picture that has all its slots already only the first.

    Raises:
        ValueError: for another number of placeholders than views.
    """
    total, slots = len(request.pixels), parts.rule.num_slots
    is_slot = (request.input_ids == parts.rule.image_token_id) & request.is_real
    found = int(is_slot.sum())
    if found == total:
        return request.is_real
    if found != total * slots:
        raise ValueError(
            f"the text has {found} placeholders and there are {total} pictures, expected {total}, one <image> per "
            f"picture, or {total * slots} expanded ones"
        )
    number = is_slot.flatten().cumsum(dim=0).view_as(is_slot) - 1
    return request.is_real & ~(is_slot & (number % slots != 0))


def _scenes_of_rows(parts: SplitParts, ids: Sequence[Int[Tensor, "_"]]) -> list[list[list[int]]]:
    """For each row its scenes, each as views that share a background: a row is a clip where the model has it so."""
    is_clip = parts.split.config.background_per == "clip"
    rows, start = [], 0
    for row in ids:
        views = list(range(start, start + int((row == parts.rule.image_token_id).sum())))
        rows.append(([views] if views else []) if is_clip else [[view] for view in views])
        start += len(views)
    return rows


def _encode_objects(
    parts: SplitParts, pixels: Shaped[Tensor, "n 3 h w"], plans: Sequence[RowPlan], watch: Stopwatch
) -> None:
    """The objects of all rows that nothing is known of, in one pass."""
    needs_all = parts.split.prefusion is not None
    frames = [frame for plan in plans for frame in plan.frames if needs_all or not frame.reads_object_kv]
    if not frames:
        return
    with watch.stage("encoder"):
        is_object = torch.cat([parts.patches(frame.object_cells) for frame in frames])
        views = torch.tensor([frame.view for frame in frames], device=pixels.device)
        for frame, group in zip(frames, parts.encode_objects(pixels[views], is_object), strict=True):
            frame.object_tokens = group.features


def _without_stale(is_real: Bool[Tensor, "b n"], plans: Sequence[RowPlan]) -> Bool[Tensor, "b n"]:
    """Hides what no longer shows: tokens of a similar background that changed since its keys and values were kept."""
    hidden = [(row, plan, slot) for row, plan in enumerate(plans) for slot in plan.stale_slots]
    if not hidden:
        return is_real
    is_real = is_real.clone()
    for row, plan, slot in hidden:  # prefixes end in the same column
        is_real[row, is_real.shape[1] - plan.num_known + slot] = False
    return is_real


def _copies(llm: Any, kwargs: dict[str, Any]) -> int:
    """Rows that `generate` makes of each prompt, for its beams or for several answers."""
    config = kwargs.get("generation_config") or llm.generation_config
    asked = (kwargs.get(name, getattr(config, name, 1)) for name in ("num_beams", "num_return_sequences"))
    return max(each or 1 for each in asked)


def _keep(cache: BackgroundTokenCache, plans: Sequence[RowPlan], past: Any, copies: int, columns: int) -> None:
    """Keys and values of the stretches that were not known, now that they were computed with the prompt."""
    for row, plan in enumerate(plans):
        ahead = columns - len(plan.layout.input_ids)  # suffixes end in the same column
        for stretch in plan.stretches:
            if stretch.prefix is not None or not stretch.request.scope.exact:
                continue
            answer = stretch.answer or cache.lookup(stretch.request)
            with answer:
                if answer.provenance == "exact_kv" or answer.is_guarded:
                    continue
            kv = stretch_of(past, row * copies, ahead + stretch.start, ahead + stretch.stop)
            cache.put(answer, BackgroundValue(kv=kv))


# ---- report ----


def _report(parts: SplitParts, request: SceneRequest, plans: Sequence[RowPlan], watch: Stopwatch) -> SceneReport:
    side = parts.coarse_side
    return SceneReport(
        pictures=tuple(
            _picture(request, plan, row, frame, side) for row, plan in enumerate(plans) for frame in plan.frames
        ),
        prompt_tokens=tuple(len(plan.layout.input_ids) for plan in plans),
        cached_tokens=tuple(plan.num_known for plan in plans),
        seconds=dict(watch.seconds),
    )


def _picture(request: SceneRequest, plan: RowPlan, row: int, frame: Frame, side: int) -> PictureReport:
    answer, names = frame.background, request.choices.picture_ids
    provenance = "shared" if frame.background_cells is None else "no cache"
    own = [each for each in plan.stretches if each.prefix is not None and each.answer in (answer, frame.objects)]
    return PictureReport(
        row=row,
        picture_id=None if names is None else names[frame.view],
        background=provenance if answer is None else answer.provenance,
        objects="exact_kv" if frame.reads_object_kv else "computed",
        tier=None if answer is None else answer.tier,
        num_background=0 if frame.background_places is None else len(frame.background_places),
        num_objects=len(frame.object_cells),
        saved_tokens=sum(each.stop - each.start for each in own),
        detector_ran=frame.view in request.source.looked_at,
        detector_failure=request.source.failures.get(frame.view),
        hit_map=_hit_map(frame, side),
    )


def _hit_map(frame: Frame, side: int) -> np.ndarray:
    """Words for every cell of the view; a cell of a shared background shows as reused."""
    words = np.full(side * side, "reused", dtype="<U10")
    answer = frame.background
    if frame.background_cells is not None and (answer is None or not answer.is_served):
        words[frame.background_cells.numpy()] = "recomputed"
    if not frame.reads_object_kv:
        words[frame.object_cells.numpy()] = "recomputed"
    if answer is not None and not any(answer.shift):
        words[answer.stale_ids.numpy()] = "stale"
    return words.reshape(side, side)
