"""A delta: the difference between a model and its base, so that only who has the base gets the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions, resolve_folder
from llava.model.checkpoints.assemble import assemble
from llava.model.checkpoints.original import plan_of
from llava.model.checkpoints.pairs import MARK, fingerprint, pair, weights_of
from llava.model.checkpoints.plan import Part, Plan
from llava.model.checkpoints.stored import StoredTensor, has_weights, read_config
from llava.model.checkpoints.tower import looks_like_hub_id

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

COMMAND = "python -m llava.model.apply_delta --base-model-path BASE --target-model-path OUT --delta-path"


def recognises(folder: Path) -> bool:
    """Deltas published without our mark look like whole models: their readers call the command."""
    return MARK in read_config(folder) and has_weights(folder)


def mark_of(folder: Path) -> dict[str, Any]:
    """What `make_delta` wrote of the base (base, fingerprint, types); empty for a delta without a mark."""
    mark = read_config(folder).get(MARK, {})
    if not isinstance(mark, dict):
        raise ValueError(
            f"{folder / 'config.json'}: {MARK} is {mark!r}, expected base, fingerprint and types as make_delta writes "
            "them; copy the file again"
        )
    return mark


def sums(folder: Path, base: Path) -> dict[str, StoredTensor]:
    """The weights of the model: each difference with the base's weight that is added when it is read.

    Raises:
        ValueError: the base is not that of the delta.
    """
    stored, mark = read_config(folder), mark_of(folder)
    tensors = weights_of(folder)
    pairs = pair(tensors, base, is_tied=bool(stored.get("tie_word_embeddings")))
    expected = mark.get("fingerprint")
    if expected is not None and fingerprint(pairs) != expected:
        raise ValueError(
            f"{base} is not the base of {folder}: it has the same shapes, but other numbers or another number type; "
            f"the delta was made against {mark.get('base')!r}"
        )
    types = {name: getattr(torch, kind) for name, kind in (mark.get("types") or {}).items()}
    return {
        name: replace(tensor, plus=pairs[name], dtype=types.get(name, tensor.dtype)) for name, tensor in tensors.items()
    }


def find_base(folder: Path, options: ReadOptions, fetch: bool = True) -> Path | None:
    """The base that the caller gives, else the one that the delta names: a folder beside it, or a hub id."""
    if options.model_base is not None:
        return resolve_folder(options.model_base, options.cache_dir)
    named = str(mark_of(folder).get("base"))
    beside = folder.parent / named
    if beside.is_dir():
        return beside
    return resolve_folder(named, options.cache_dir) if looks_like_hub_id(named) and fetch else None


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    base = find_base(folder, options)
    if base is None:
        raise ValueError(
            f"{folder} holds a delta to {mark_of(folder).get('base')!r}, which is not beside it, and model_base=None; "
            "give the base: llava.load(path, model_base='folder of the base')"
        )
    return assemble(make_plan(folder, options), options, base=base)


def make_plan(folder: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    """The plan of the model where its base is at hand, else of the differences, which have its names and shapes."""
    stored = {key: value for key, value in read_config(folder).items() if key != MARK}
    base = find_base(folder, options, fetch)
    tensors = weights_of(folder) if base is None else sums(folder, base)
    if "mm_vision_tower" not in stored:
        plan = Plan(layout="delta", folder=folder, parts={"llm": Part(tensors=tensors)})
        plan.obstacle = f"the delta of a language model without vision; write the model first: {COMMAND} {folder}"
    else:
        plan = plan_of(folder, stored, tensors, options, fetch=fetch)
        plan.layout = "delta"
    if base is None:
        plan.needs.append(f"model_base: the delta was made against {mark_of(folder).get('base')!r}")
    return plan


LAYOUTS.register("delta")(
    Layout(recognises=recognises, read=read, plan=make_plan, holds=f"config.json with {MARK} and weights beside it")
)
