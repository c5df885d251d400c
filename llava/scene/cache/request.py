"""What is asked of the cache: a picture, its background cells, and everything else that the value depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int32, Integer, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from llava.scene.cache.grid import CellGrid
from llava.scene.cache.keys import Kind, content_key, digest_fields, leaf_digests

MAX_NAME_LENGTH = 128
"""Of a caller's id and of a salt: longer ones have been used to exhaust the memory of servers."""

Opaque = str | bytes
CellSet = Sequence[int] | Integer[Tensor, "n"] | Bool[Tensor, "..."] | ndarray
"""Ids of background cells in ascending order, or a mask over all cells, True = background."""


@dataclass(frozen=True)
class ScopeDigests:
    """A scope at one moment."""

    tokens: bytes
    kv: bytes
    model: bytes
    salt: bytes

    def of(self, kind: Kind) -> bytes:
        return self.kv if kind == "kv" else self.tokens


@dataclass(frozen=True, kw_only=True)
class CacheScope:
    """Everything but the picture that changes the value. Scopes that differ in any field share nothing.

    Attributes:
        model_state: fingerprint of the weights, any text or bytes, or a function that returns it. It has to change
            with every optimiser step, loaded adapter, cast or reload: finding that out (a hash of the weights, torch's
            version counters) is the model's side of the contract. A function is asked at the lookup and again
            before a value is stored; if the answers differ, the value is not stored.
        preprocessing: everything between the pixels of the requests and the encoder, such as mean, standard deviation
            and the name of the processor.
        dtype: of the values.
        adapters: names and scales of active adapters, where `model_state` does not tell them.
        prefix: what stands before the background in the language model's input: text, token ids as bytes, or the key
            of an earlier answer (see `after`). KV depends on it, projected tokens do not.
        cache_salt: tenant; entries of one are invisible to the others.
    """

    model_state: Opaque | Callable[[], Opaque]
    preprocessing: Opaque
    dtype: torch.dtype
    adapters: Opaque = ""
    prefix: Opaque = ""
    cache_salt: str = ""
    exact: bool = field(default=True, init=False)
    """False behind a guarded answer: what follows it is never stored nor looked up."""

    def __post_init__(self) -> None:
        if len(self.cache_salt) > MAX_NAME_LENGTH:
            raise ValueError(
                f"cache_salt has {len(self.cache_salt)} characters, expected at most {MAX_NAME_LENGTH}; "
                "hash longer ones"
            )
        for name in ("preprocessing", "adapters", "prefix"):
            if not isinstance(getattr(self, name), (str, bytes)):
                raise ValueError(f"{name} is a {type(getattr(self, name)).__name__}, expected text or bytes")

    def resolve(self) -> ScopeDigests:
        """Hashes of the fields as they are now."""
        state = self.model_state() if callable(self.model_state) else self.model_state
        if not isinstance(state, (str, bytes)) or not state:
            raise ValueError(
                f"model_state is {state!r}, expected non-empty text or bytes that change whenever the weights do"
            )
        model, salt = digest_fields(_bytes(state)), digest_fields(self.cache_salt.encode())
        fields = (model, salt, _bytes(self.preprocessing), str(self.dtype).encode(), _bytes(self.adapters))
        return ScopeDigests(
            tokens=digest_fields(b"tokens", *fields),
            kv=digest_fields(b"kv", *fields, _bytes(self.prefix)),
            model=model,
            salt=salt,
        )

    def after(self, key: str, *, exact: bool) -> CacheScope:
        """The scope of what follows a picture: its prefix is everything before that picture, and the picture."""
        following = replace(self, prefix=digest_fields(b"after", _bytes(self.prefix), key.encode()))
        object.__setattr__(following, "exact", self.exact and exact)
        return following


@dataclass(frozen=True, kw_only=True)
class BackgroundRequest:
    """One picture, or the frames of one clip, asked for.

    Attributes:
        pixels: after resizing, cropping and padding: [channels, height, width], or [frames, ...] for a clip with one
            background. uint8 before normalisation is as good as floats after it, as long as the scope's
            `preprocessing` names the normalisation, and costs a quarter of the hashing.
        patch_size: of the encoder, in pixels.
        cell: patches on each side of the square that the projector makes one token of.
        background: cells that are background; a function that finds them, called only if no known background matches
            (so that a detector runs on misses only); or None to accept a match and nothing else.
        caller_id: a name such as that of the camera, at most 128 characters. It decides which entries are tried
            first, never which one is served.
        want_kv: prefer a KV prefix to projected tokens.
        allow_guarded: False asks for an exact answer although the cache allows similar ones, for instance because the
            instruction changed.
        moved: cells that a video codec moved since the last frame, True = moved; the guard counts them as different.
    """

    scope: CacheScope
    pixels: Shaped[Tensor, "..."]
    patch_size: int
    cell: int = 1
    background: CellSet | Callable[[], CellSet] | None = None
    caller_id: str | None = None
    want_kv: bool = False
    allow_guarded: bool = True
    moved: Bool[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim not in (3, 4) or not self.pixels.numel():
            raise ValueError(
                f"pixels have shape {tuple(self.pixels.shape)}, expected [channels, height, width] or [frames, "
                "channels, height, width] with at least one of each"
            )
        if self.patch_size < 1 or self.cell < 1:
            raise ValueError(f"patch_size is {self.patch_size} and cell {self.cell}, expected at least 1 each")
        if self.caller_id is not None and not 0 < len(self.caller_id) <= MAX_NAME_LENGTH:
            raise ValueError(
                f"caller_id has {len(self.caller_id)} characters, expected 1 to {MAX_NAME_LENGTH}; hash longer ones"
            )
        # The request keeps what it was asked about, whatever becomes of the buffer of a camera.
        object.__setattr__(self, "pixels", self.pixels.detach().clone())
        if self.moved is not None and self.moved.numel() != self.grid.num_cells:
            raise ValueError(f"moved has {self.moved.numel()} cells, the picture has {self.grid.num_cells}")

    @cached_property
    def frames(self) -> Shaped[Tensor, "t c h w"]:
        return self.pixels if self.pixels.ndim == 4 else self.pixels[None]

    @cached_property
    def grid(self) -> CellGrid:
        return CellGrid.of(tuple(self.frames.shape), self.patch_size, self.cell)

    @cached_property
    def grid_bytes(self) -> bytes:
        return self.grid.describe() + f",{self.frames.shape[1]},{self.pixels.dtype}".encode()

    @cached_property
    def cells(self) -> Shaped[Tensor, "p values"]:
        return self.grid.cells(self.frames)

    @cached_property
    def is_blank(self) -> Bool[ndarray, "p"]:
        """Cells of one colour: they tell nothing about a picture."""
        channels = self.cells.reshape(self.grid.num_cells, self.frames.shape[1], -1)  # [P, c, pixels]
        some = channels[:, :, :: max(1, channels.shape[2] // 8)]
        blank = (some == some[:, :, :1]).flatten(1).all(1)  # nearly all others are out by a few pixels
        rest = channels[blank]
        blank[blank.clone()] = (rest == rest[:, :, :1]).flatten(1).all(1)
        return blank.cpu().numpy()

    @cached_property
    def leaves(self) -> UInt8[ndarray, "p 32"]:
        return leaf_digests(self.cells)

    @cached_property
    def asked_ids(self) -> Int32[ndarray, "n"] | None:
        """The background as ids; calls the function where there is one, once."""
        given = self.background() if callable(self.background) else self.background
        return None if given is None else cell_ids(given, self.grid.num_cells)

    def key(self, kind: Kind, digests: ScopeDigests, ids: Int32[ndarray, "n"]) -> str:
        return content_key(kind, digests.of(kind), self.grid_bytes, ids, self.leaves[ids])


def cell_ids(given: CellSet, num_cells: int) -> Int32[ndarray, "n"]:
    """Checked ids in ascending order."""
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if values.dtype == bool:
        if values.size != num_cells:
            raise ValueError(f"the background mask has {values.size} cells, the picture has {num_cells}")
        return np.flatnonzero(values).astype(np.int32)
    if not values.size:
        return np.empty(0, dtype=np.int32)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"background ids are {values.dtype} of shape {values.shape}, expected a list of whole numbers")
    if values.min() < 0 or values.max() >= num_cells:
        raise ValueError(f"background ids reach from {values.min()} to {values.max()}, expected 0 to {num_cells - 1}")
    if (np.diff(values) <= 0).any():
        raise ValueError("background ids are not strictly ascending; sort them, each once, as the encoder gathers them")
    return values.astype(np.int32)


def _bytes(text: Opaque) -> bytes:
    """Text and bytes never collide: each is marked as what it is."""
    return b"t" + text.encode() if isinstance(text, str) else b"b" + text
