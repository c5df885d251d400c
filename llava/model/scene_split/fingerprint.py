"""What the weights of a model are now, as one hash: the part of a cache key that every change of them must change.

Each request takes a cheap look: storage, address, write counter, dtype and device of every tensor, some values of what
an optimiser may change, and the state of adapters. Only where that differs from the last look are the bytes of the
changed tensors hashed again.

Seen: optimiser steps, loading, casts, moves, writes in place (`weight.mul_(2)` under no_grad), weights put in the place
of others, even where new ones lie at the address of old ones, adapters that are added, switched, merged or taken out,
and another tower layer or attention kernel. Engines that step around torch's counter (`weight.data.copy_(...)`, as
DeepSpeed does) are seen by the values of weights that require grad. Not seen: such a write to a few weights only or to
frozen ones, by a NumPy view, another process or a kernel that does not count, and writes to tensors made in inference
mode, which have no counter. Call `forget` after such a write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from llava.scene.cache.keys import as_bytes, digest_fields

PARTS = ("vision_tower", "mm_projector", "scene_split", "llm")
"""Parts that decide tokens and KV of a picture."""

ADAPTER_STATE = ("_active_adapter", "merged_adapters", "_disable_adapters", "scaling")
"""Attributes of peft's layers."""

SAMPLED_TENSORS, SAMPLED_VALUES = 128, 64
"""A step in bfloat16 leaves most values as they were: 128 x 64 of them do not all stay."""

Look = tuple[int, int, int, torch.dtype, torch.device]
"""Storage, address, write counter, dtype, device."""


class _Quick(NamedTuple):
    looks: tuple[Look, ...]
    samples: dict[Look, bytes]
    adapters: tuple[str, ...]
    choices: tuple[Any, ...]


class _Known(NamedTuple):
    """storages: weak references, which keep the identity of a storage, not its memory, from being used again."""

    quick: _Quick
    looks: dict[str, Look]
    storages: list[StorageWeakRef]
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
        tensors, settings = dict(_tensors(model)), _settings(quick)
        looks = {name: _look(tensor) for name, tensor in tensors.items()}
        known: Mapping[str, bytes] = {}
        if last is not None and _settings(last.quick) == settings and not _wrote_around(last.quick, quick):
            known = {name: last.digests[name] for name, look in looks.items() if last.looks.get(name) == look}
        changed = {name: tensor for name, tensor in tensors.items() if name not in known}
        digests = {**known, **_content(changed)}
        self.num_hashed += len(changed)
        flat = [each for name in sorted(digests) for each in (name.encode(), digests[name])]
        whole = digest_fields(settings, *flat).hex()
        storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values()]
        self._last = _Known(quick, looks, storages, digests, whole)
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """Copies of a model begin anew: what was seen belongs to the tensors of this one, in this process."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

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
    return tensor.untyped_storage()._cdata, tensor.data_ptr(), counter, tensor.dtype, tensor.device


def _quick_look(model: Any) -> _Quick:
    """Every tensor and setting without names: a few milliseconds for the 700 tensors of a 7B model."""
    tensors: list[Tensor] = []
    adapters: list[str] = []
    for part in PARTS:
        waiting = [getattr(model, part, None)]
        while waiting:
            module = waiting.pop()
            if module is None:
                continue
            own = vars(module)
            tensors += [each for each in own["_parameters"].values() if each is not None]
            tensors += [each for each in own["_buffers"].values() if each is not None]
            if "merged_adapters" in own:
                adapters.append(repr([own.get(name) for name in ADAPTER_STATE]))
            waiting += own["_modules"].values()
    trained = [tensor for tensor in tensors if tensor.requires_grad and tensor.numel()]
    return _Quick(tuple(map(_look, tensors)), _samples(trained), tuple(adapters), _choices(model))


def _samples(trained: Sequence[Tensor]) -> dict[Look, bytes]:
    """Some values of some weights, evenly spread over both; one copy to main memory per dtype and device."""
    chosen = trained[:: max(1, len(trained) // SAMPLED_TENSORS)]
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in chosen:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    found: dict[Look, bytes] = {}
    for tensors in groups.values():
        spread = [_spread(tensor) for tensor in tensors]
        values = bytes(as_bytes(torch.cat(spread)))
        start = 0
        for tensor, part in zip(tensors, spread, strict=True):
            found[_look(tensor)] = values[start : start + part.nbytes]
            start += part.nbytes
    return found


def _spread(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLED_VALUES)]


def _wrote_around(before: _Quick, now: _Quick) -> bool:
    """Values changed and torch did not count it: then nothing is known of the tensors that were not sampled either."""
    return any(before.samples.get(look, values) != values for look, values in now.samples.items())


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


def _settings(quick: _Quick) -> bytes:
    """Choices and the state of all adapters of peft: which there are, are active, merged or off, and their scales.

    Merging an adapter writes around the counters, so nothing is known of the tensors where these differ.
    """
    return repr((list(quick.adapters), quick.choices)).encode()
