"""Keys and values of a prefix, computed once and shared by every request that begins with it.

Sharing copies nothing: a request gets a cache whose layers point at the stored tensors, and every `update` makes new
ones by concatenation, so the stored ones are never written. Layers with a sliding window are kept at full length: what
a later token may see is decided by its mask, as in a run without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from llava.model.attention import layer_windows


class SharedLayer(DynamicLayer):
    """A cache layer that begins with tensors of somebody else, and never writes to them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def reset(self) -> None:
        """Lets go of the tensors; older versions of transformers overwrite them with zeros."""
        self.keys = self.values = None
        self.is_initialized = False


@dataclass(frozen=True, kw_only=True)
class KvPrefix:
    """Keys and values [batch, heads, length, width] of each layer behind a prefix."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, cache: Any) -> KvPrefix:
        """What a cache of transformers holds, without a copy. Do not go on with that cache in place."""
        return cls(keys=tuple(x.keys for x in cache.layers), values=tuple(x.values for x in cache.layers))

    @property
    def length(self) -> int:
        return self.keys[0].shape[-2]

    @property
    def batch_size(self) -> int:
        return self.keys[0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens that it covers; views count like copies."""
        return sum(each.numel() * each.element_size() for each in (*self.keys, *self.values))

    def share(self, batch_size: int | None = None) -> DynamicCache:
        """A cache for one request, or for a batch of requests that all begin with this prefix; 0 bytes are copied.

        Raises:
            ValueError: for a batch where the prefix holds several rows already.
        """
        rows = self.batch_size if batch_size is None else batch_size
        if rows != self.batch_size and self.batch_size != 1:
            raise ValueError(f"the prefix holds {self.batch_size} rows, asked for {rows}; expected 1 row, or as many")
        cache, pairs = DynamicCache(), zip(self.keys, self.values, strict=True)
        cache.layers += [SharedLayer(*(each.expand(rows, -1, -1, -1) for each in pair)) for pair in pairs]
        return cache

    def cut(self, start: int, stop: int) -> KvPrefix:
        """Tokens start..stop as views; none where both are the same."""
        return KvPrefix(keys=_cut(self.keys, start, stop), values=_cut(self.values, start, stop))

    def first(self, length: int) -> KvPrefix:
        """The first `length` tokens as views, for a request that leaves this prefix half way."""
        if not 0 < length <= self.length:
            raise ValueError(f"the first {length} tokens were asked for, expected 1..{self.length}")
        return KvPrefix(keys=_cut(self.keys, 0, length), values=_cut(self.values, 0, length))

    def after(self, length: int) -> KvPrefix:
        """What comes behind the first `length` tokens, in memory of its own: one node of a chain of prefixes."""
        if not 0 <= length < self.length:
            raise ValueError(f"what follows {length} tokens was asked for, expected 0..{self.length - 1}")
        keys, values = (_cut(each, length, self.length) for each in (self.keys, self.values))
        return KvPrefix(keys=tuple(x.clone() for x in keys), values=tuple(x.clone() for x in values))


def _cut(states: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
    return tuple(each[:, :, start:stop] for each in states)


def join_prefixes(nodes: Sequence[KvPrefix]) -> KvPrefix:
    """The chain system -> background -> objects as one prefix: of one node that node, of several a copy."""
    if len(nodes) == 1:
        return nodes[0]
    keys, values = (list(zip(*each, strict=True)) for each in ([n.keys for n in nodes], [n.values for n in nodes]))
    return KvPrefix(
        keys=tuple(torch.cat(layer, dim=-2) for layer in keys),
        values=tuple(torch.cat(layer, dim=-2) for layer in values),
    )


@torch.no_grad()
def compute_prefix(
    llm: PreTrainedModel,
    embeds: Float[Tensor, "b n d"],
    position_ids: Int[Tensor, "b n"],
    after: KvPrefix | None = None,
) -> KvPrefix:
    """Keys and values behind unpadded embeddings; `after` continues a prefix, the result covers both."""
    cache = DynamicCache() if after is None else after.share(len(embeds))
    output = llm.get_decoder()(
        inputs_embeds=embeds, position_ids=position_ids, past_key_values=cache, use_cache=True, attention_mask=None
    )
    return KvPrefix.of(output.past_key_values)


def stack_prefixes(prefixes: Sequence[KvPrefix]) -> tuple[DynamicCache, Bool[Tensor, "b n"]]:
    """One cache for a batch of requests with a prefix each, and which of its columns are real.

    Shorter prefixes get zeros in front, which the mask hides. The same prefix for all rows is shared; different ones
    cost one copy.
    """
    if not prefixes or any(prefix.batch_size != 1 for prefix in prefixes):
        raise ValueError(f"{len(prefixes)} prefixes were given, expected at least one, and one row in each")
    longest, device = max(prefix.length for prefix in prefixes), prefixes[0].keys[0].device
    if all(prefix is prefixes[0] for prefix in prefixes):
        return prefixes[0].share(len(prefixes)), torch.ones(len(prefixes), longest, dtype=torch.bool, device=device)
    keys, values = ([_stack(layer, longest) for layer in zip(*each, strict=True)] for each in _by_kind(prefixes))
    length = torch.tensor([prefix.length for prefix in prefixes], device=device)
    is_real = torch.arange(longest, device=device)[None] >= longest - length[:, None]
    return KvPrefix(keys=tuple(keys), values=tuple(values)).share(), is_real


def _by_kind(prefixes: Sequence[KvPrefix]) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    return [prefix.keys for prefix in prefixes], [prefix.values for prefix in prefixes]


def _stack(states: Sequence[Tensor], longest: int) -> Tensor:
    """[1, h, n, w] of unequal n -> [b, h, longest, w], zeros in front."""
    stacked = states[0].new_zeros(len(states), states[0].shape[1], longest, states[0].shape[3])
    for row, each in zip(stacked, states, strict=True):
        row[:, longest - each.shape[2] :] = each[0]
    return stacked


@dataclass(frozen=True, kw_only=True)
class Suffix:
    """What follows the prefixes of a batch, padded on the left: the last column is always a real token."""

    embeds: Float[Tensor, "b m d"]
    position_ids: Int[Tensor, "b m"]
    is_real: Bool[Tensor, "b m"]


def pad_suffixes(
    embeds: Sequence[Float[Tensor, "_ d"]], position_ids: Sequence[Int[Tensor, "_"]], multiple: int = 1
) -> Suffix:
    """Suffixes of unequal length as a batch.

    Args:
        multiple: the batch becomes a multiple of so many tokens long, so that suffixes come in few lengths: what is
            compiled or captured for a shape is then met again.

    Raises:
        ValueError: for a suffix without a token: the last token of a prompt is always computed, never looked up.
    """
    lengths = [len(each) for each in embeds]
    if not lengths or min(lengths) < 1 or lengths != [len(each) for each in position_ids]:
        found = [len(each) for each in position_ids]
        raise ValueError(
            f"suffixes have {lengths} tokens and {found} positions, expected at least one token each, and as many "
            "positions; leave the last token of a prompt out of its prefix"
        )
    is_real = [torch.ones(length, dtype=torch.bool, device=embeds[0].device) for length in lengths]
    length = -(-max(lengths) // multiple) * multiple
    return Suffix(
        embeds=_padded(embeds, length), position_ids=_padded(position_ids, length), is_real=_padded(is_real, length)
    )


def _padded(rows: Sequence[Shaped[Tensor, "_ ..."]], length: int) -> Shaped[Tensor, "b m ..."]:
    """Zeros in front of each row, up to a length."""
    filler = rows[0].new_zeros(length, *rows[0].shape[1:])  # a row that is as long as all are to be
    return torch.nn.utils.rnn.pad_sequence([*rows, filler], batch_first=True, padding_side="left")[:-1]


@torch.no_grad()
def run_suffix(
    llm: PreTrainedModel, cache: Any, prefix_is_real: Bool[Tensor, "b n"], suffix: Suffix, logits_to_keep: int = 1
) -> Any:
    """Logits of the last columns behind a prefix, and the cache that then covers prefix and suffix."""
    return llm(
        inputs_embeds=suffix.embeds,
        position_ids=suffix.position_ids,
        attention_mask=_mask(llm, prefix_is_real, suffix),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=logits_to_keep,
    )


@torch.no_grad()
def generate_after(
    llm: Any, cache: Any, prefix_is_real: Bool[Tensor, "b n"], suffix: Suffix, **generation_kwargs: Any
) -> Any:
    """New token ids behind prefix and suffix, by transformers' `generate`; new positions follow the last of the suffix.

    `generate` wants embeddings of the whole sequence and reads only those behind the cache: zeros stand for the prefix.
    For a beam search the cache needs batch x num_beams rows, as from `KvPrefix.share`.
    """
    blank = suffix.embeds.new_zeros(1, 1, 1).expand(len(suffix.embeds), prefix_is_real.shape[1], suffix.embeds.shape[2])
    before = torch.zeros_like(prefix_is_real, dtype=suffix.position_ids.dtype)
    return llm.generate(
        inputs_embeds=torch.cat([blank, suffix.embeds], dim=1),
        position_ids=torch.cat([before, suffix.position_ids], dim=1),
        attention_mask=_mask(llm, prefix_is_real, suffix),
        past_key_values=cache,
        **generation_kwargs,
    )


def _mask(llm: Any, prefix_is_real: Tensor, suffix: Suffix) -> Int[Tensor, "b k"]:
    """Which columns are real, prefix and suffix.

    Raises:
        ValueError: for padding inside a row of a model with sliding windows, which count columns, hidden ones too.
    """
    mask = torch.cat([prefix_is_real, suffix.is_real], dim=1)
    windows = [window for window in layer_windows(llm.config).values() if window is not None]
    if windows and min(windows) < mask.shape[1] and not bool(suffix.is_real.all()):
        raise ValueError(
            f"suffixes have {suffix.is_real.sum(dim=1).tolist()} tokens and {llm.config.model_type} has sliding "
            f"windows of {min(windows)}, which padding between prefix and suffix would fill; run requests of equal "
            "suffix length together"
        )
    return mask.long()
