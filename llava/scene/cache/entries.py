"""What the cache keeps: a value, the cells it was computed for, their fingerprints, and where all this came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from llava.scene.cache.keys import Kind

LayerKV = tuple[Float[Tensor, "..."], Float[Tensor, "..."]]
"""Keys and values of one layer, each [..., positions, width]."""


@dataclass(frozen=True, kw_only=True)
class BackgroundValue:
    """Projected tokens of a background, the language model's keys and values up to its end, or both.

    Attributes:
        tokens: [n, d].
        kv: per layer (keys, values), one number of positions for all; layers of a pre-fusion block may come first.
    """

    tokens: Float[Tensor, "n d"] | None = None
    kv: tuple[LayerKV, ...] | None = None

    def __post_init__(self) -> None:
        if self.tokens is None and not self.kv:
            raise ValueError("the value is empty; give tokens [n, d], kv ((keys, values) per layer), or both")
        if any(tensor.requires_grad for tensor in self.tensors.values()):
            raise ValueError("the value requires grad; compute it under torch.no_grad(): a cached value has no history")
        lengths = {tensor.shape[-2] for layer in self.kv or () for tensor in layer}
        if len(lengths) > 1:
            raise ValueError(f"layers of the KV prefix have lengths {sorted(lengths)}, expected one length for all")

    @property
    def tensors(self) -> dict[str, Tensor]:
        named = {} if self.tokens is None else {"tokens": self.tokens}
        for index, (keys, values) in enumerate(self.kv or ()):
            named |= {f"keys.{index}": keys, f"values.{index}": values}
        return named

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> BackgroundValue:
        layers = sum(name.startswith("keys.") for name in named)
        kv = tuple((named[f"keys.{index}"], named[f"values.{index}"]) for index in range(layers))
        return cls(tokens=named.get("tokens"), kv=kv or None)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def num_tokens(self, kind: Kind) -> int:
        """Positions that a hit of this kind spares."""
        if kind == "kv":
            return self.kv[0][0].shape[-2] if self.kv else 0
        return 0 if self.tokens is None else self.tokens.shape[0]

    def only(self, kind: Kind) -> BackgroundValue:
        return replace(self, kv=None) if kind == "tokens" else replace(self, tokens=None)

    def has(self, kind: Kind) -> bool:
        return bool(self.kv) if kind == "kv" else self.tokens is not None

    def map(self, change: Callable[[Tensor], Tensor]) -> BackgroundValue:
        return BackgroundValue.from_tensors({name: change(tensor) for name, tensor in self.tensors.items()})

    def copy(self) -> BackgroundValue:
        """Tensors of the caller's own, to be written as it likes."""
        return self.map(private)


@dataclass(frozen=True, eq=False, kw_only=True)
class Origin:
    """Where an entry comes from; small, kept for every entry in memory.

    Attributes:
        key: its name in every tier.
        scope: digest of the scope for this kind of value.
        model, salt: digests by which entries are invalidated.
        grid: description of the grid, channels and pixel type.
        shape: (frames, rows, columns) of the grid.
        ids: background cells.
        signature: of the background, where similarity is on.
        created: seconds since 1970.
        num_tokens: positions that a hit spares.
    """

    key: str
    kind: Kind
    scope: bytes
    model: bytes
    salt: bytes
    grid: bytes
    shape: tuple[int, int, int]
    ids: Int32[ndarray, "n"]
    signature: Float32[ndarray, "s"] | None
    created: float
    num_tokens: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """A value in one tier. Nobody writes to its tensors: readers get aliases, or copies to write to.

    Attributes:
        leaves: fingerprints of the background cells.
        pixels: the picture that the value was computed from, where the guard or the check needs it.
    """

    origin: Origin
    value: BackgroundValue
    leaves: UInt8[ndarray, "n 32"]
    pixels: Shaped[Tensor, "t c h w"] | None = None
    versions: tuple[int, ...] = field(init=False, default=())
    """Torch's write counters when the entry was made; a different one later means that a reader wrote."""
    written: torch.cuda.Event | None = field(init=False, default=None)
    """On a GPU: when the copies that made this entry are done. The stream that reads may be another one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", self._write_counters())
        stream = self._current_stream()
        if stream is not None:
            object.__setattr__(self, "written", stream.record_event())

    @property
    def key(self) -> str:
        return self.origin.key

    @property
    def nbytes(self) -> int:
        pixels = 0 if self.pixels is None else self.pixels.nbytes
        return self.value.nbytes + pixels + self.leaves.nbytes + self.origin.ids.nbytes

    @property
    def was_written(self) -> bool:
        return self.versions != self._write_counters()

    def _write_counters(self) -> tuple[int, ...]:
        """Of tensors made in inference mode torch keeps none; entries in a tier are `private` and have them."""
        tensors = self.value.tensors.values()
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)

    def wait_until_written(self) -> None:
        """What is put on the current stream from now on comes after the copies that made this entry."""
        stream = self._current_stream()
        if stream is not None and self.written is not None:
            stream.wait_event(self.written)

    def _current_stream(self) -> torch.cuda.Stream | None:
        device = next(iter(self.value.tensors.values())).device
        return torch.cuda.current_stream(device) if device.type == "cuda" else None

    def placed(self, place: Callable[[Tensor], Tensor]) -> Entry:
        """The same entry with every tensor moved."""
        self.wait_until_written()
        pixels = None if self.pixels is None else place(self.pixels)
        return replace(self, value=self.value.map(place), pixels=pixels)


def private(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """A copy that shares nothing, not even the rest of a larger tensor, and that torch counts the writes to.

    Tensors made in inference mode carry no write counter, so the copy is made outside of it.
    """
    with torch.inference_mode(False):
        return tensor.detach().clone(memory_format=torch.contiguous_format)


def alias(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The same memory and the same write counter; 0 bytes copied."""
    return tensor.detach()


def same_array(first: Shaped[ndarray, "..."], second: Shaped[ndarray, "..."]) -> bool:
    return first.shape == second.shape and np.array_equal(first, second)
