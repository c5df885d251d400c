"""Writing weight files of any size while only one tensor at a time is in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llava.model.checkpoints.stored import STORED_TYPES, StoredTensor, has_weights, open_tensors

INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NAMES = {dtype: name for name, dtype in STORED_TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Writable:
    """A tensor that can be made when its turn comes; its size is known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def as_writable(tensors: Mapping[str, StoredTensor]) -> dict[str, Writable]:
    """Stored tensors, to be copied (or summed with their base)."""
    opened = open_tensors(tensors)
    return {
        name: Writable(shape=stored.shape, dtype=stored.dtype, make=lambda name=name: opened[name][...])
        for name, stored in tensors.items()
    }


def write_shards(
    folder: Path,
    tensors: Mapping[str, Writable],
    max_shard_size: int | str = "5GB",
    on_written: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes model.safetensors, or its shards and their index.

    Args:
        on_written: told the bytes of each tensor that was written.

    Raises:
        ValueError: the folder holds weights already.
    """
    require_no_weights(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shares = _split(tensors, bytes_of(max_shard_size))
    count = len(shares)
    names = ["model.safetensors"]
    if count > 1:
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for name, share in zip(names, shares, strict=True):
        _write_file(folder / name, share, on_written)
    if count > 1:
        weight_map = {key: name for name, share in zip(names, shares, strict=True) for key in share}
        size = sum(tensor.num_bytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def require_no_weights(folder: Path) -> None:
    if folder.is_dir() and has_weights(folder):
        raise ValueError(f"{folder} holds weights already, which would mix with the new ones; give an empty folder")


def bytes_of(size: int | str) -> int:
    """Bytes of a size such as 5GB (10^9) or 5GiB (2^30)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"max_shard_size is {size!r}, expected a number of bytes or a size such as 5GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _split(tensors: Mapping[str, Writable], limit: int) -> list[dict[str, Writable]]:
    """In order, a new file wherever the next tensor would make one too large."""
    shares: list[dict[str, Writable]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shares[-1] and size + tensor.num_bytes > limit:
            shares.append({})
            size = 0
        shares[-1][name] = tensor
        size += tensor.num_bytes
    return shares


def _write_file(file: Path, tensors: Mapping[str, Writable], on_written: Callable[[int], None]) -> None:
    """The safetensors format: length of the header (8 bytes), header as JSON, numbers end to end."""
    ordered = sorted(tensors.items(), key=lambda row: (-row[1].dtype.itemsize, row[0]))  # numbers stay aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in ordered:
            value = tensor.make()
            assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype), name
            handle.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            on_written(tensor.num_bytes)
