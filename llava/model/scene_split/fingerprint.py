"""What the weights of a model are now, as one hash: the part of a cache key that every change of them must change.

Each request takes a cheap look: address, write counter, dtype and device of every tensor, and the state of adapters.
Only where that differs from the last look are the bytes of the changed tensors hashed again.

Seen: optimiser steps, loading, casts, moves, writes in place (`weight.mul_(2)` under no_grad), adapters that are added,
switched, merged or taken out, and another tower layer or attention kernel. Not seen: a write in place around torch's
counter, by `weight.data.mul_(2)`, a NumPy view, another process or a kernel that does not count its writes, and writes
to tensors made in inference mode, which have no counter. Call `forget` after such a write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llava.scene.cache.keys import as_bytes, digest_fields

PARTS = ("vision_tower", "mm_projector", "scene_split", "llm")
"""Parts that decide tokens and KV of a picture."""

ADAPTER_STATE = ("_active_adapter", "merged_adapters", "_disable_adapters", "scaling")
"""Attributes of peft's layers."""

Look = tuple[int, int, torch.dtype, torch.device]
"""Address, write counter, dtype, device."""


class _Known(NamedTuple):
    quick: tuple[Any, ...]
    settings: bytes
    looks: dict[str, Look]
    digests: dict[str, bytes]
    whole: str


class WeightFingerprint:
    """Call it for the hash. It belongs to one model, which is handed in with every call, and holds no tensor of it.

    Threads may share it: two that find a change at once both hash, and get the same.
    """

    def __init__(self) -> None:
        self._last: _Known | None = None
        self.num_hashed = 0
        """Tensors hashed so far."""

    def __call__(self, model: Any) -> str:
        quick = _quick_look(model)
        last = self._last
        if last is not None and last.quick == quick:
            return last.whole
        tensors, settings = dict(_tensors(model)), _settings(model, quick)
        looks = {name: _look(tensor) for name, tensor in tensors.items()}
        known: Mapping[str, bytes] = {}
        if last is not None and last.settings == settings:  # merging an adapter writes around the counters
            known = {name: last.digests[name] for name, look in looks.items() if last.looks.get(name) == look}
        changed = {name: tensor for name, tensor in tensors.items() if name not in known}
        digests = {**known, **_content(changed)}
        self.num_hashed += len(changed)
        flat = [each for name in sorted(digests) for each in (name.encode(), digests[name])]
        whole = digest_fields(settings, *flat).hex()
        self._last = _Known(quick, settings, looks, digests, whole)
        return whole

    def forget(self) -> None:
        """Hash everything at the next request: after a write that torch does not count."""
        self._last = None


class ModelState:
    """The fingerprint for one call of a model: looked up when it is first needed, and anew before values are stored."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._now: str | None = None

    def __call__(self) -> str:
        now = self._now or self._model.weight_fingerprint(self._model)
        self._now = now
        return now

    def look_again(self) -> None:
        self._now = None


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    for part in PARTS:
        module = getattr(model, part, None)
        if module is not None:
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{part}.{name}", tensor


def _look(tensor: Tensor) -> Look:
    counter = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), counter, tensor.dtype, tensor.device


def _quick_look(model: Any) -> tuple[Any, ...]:
    """Every tensor and setting without names: a millisecond or two for the 700 tensors of a 7B model."""
    seen: list[Any] = []
    for part in PARTS:
        waiting = [getattr(model, part, None)]
        while waiting:
            module = waiting.pop()
            if module is None:
                continue
            own = vars(module)
            seen += [_look(each) for each in own["_parameters"].values() if each is not None]
            seen += [_look(each) for each in own["_buffers"].values() if each is not None]
            if "merged_adapters" in own:
                seen.append(repr([own.get(name) for name in ADAPTER_STATE]))
            waiting += own["_modules"].values()
    return (*seen, *_choices(model))


def _choices(model: Any) -> tuple[Any, ...]:
    """What decides beside the weights and may change at run time: tower layer, kernels, dropout."""
    tower, llm = model.vision_tower, model.llm
    kernels = tower.config._attn_implementation, llm.config._attn_implementation
    return tower.num_layers_run, tower.select_feature, *kernels, tower.training, llm.training


def _content(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """SHA-256 of every tensor; several at a time, because hashing lets other threads run."""
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: Tensor) -> bytes:
    kind = f"{tensor.dtype},{tuple(tensor.shape)}".encode()
    return digest_fields(kind, hashlib.sha256(as_bytes(tensor)).digest())


def _settings(model: Any, quick: tuple[Any, ...]) -> bytes:
    """Choices and the state of all adapters of peft: which there are, are active, merged or off, and their scales."""
    adapters = [each for each in quick if isinstance(each, str)]
    return repr((adapters, _choices(model))).encode()
