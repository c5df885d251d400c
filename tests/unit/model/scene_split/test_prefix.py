"""A prefix is computed once: the same logits and tokens as without a cache, no byte copied, nothing written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llava.model.scene_split import (
    KvPrefix,
    compute_prefix,
    generate_after,
    join_prefixes,
    pad_suffixes,
    run_suffix,
    stack_prefixes,
)
from tests.numerics.models import tiny_model
from tests.unit.model.scene_split.toy import worst

TOLERANCE = 1e-5
WIDTH, LENGTH = 32, 20
FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3")
WINDOWED = ("mistral", "gemma2", "gemma3_text", "phi3")
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}


def make_rows(count: int, gap: int = 7) -> tuple[Tensor, Tensor]:
    """Embeddings and positions with a gap in them, as in a split picture."""
    embeds = torch.randn(count, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(LENGTH).expand(count, -1).clone()
    positions[:, 9:12] -= 6  # objects that stand at their own place, before the end of the background
    positions[:, 12:] += gap
    return embeds, positions


@torch.no_grad()
def full_logits(llm: Any, embeds: Tensor, positions: Tensor) -> Tensor:
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    return llm(inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False).logits


def suffix_of(embeds: Tensor, positions: Tensor, starts: list[int]) -> Any:
    rows = range(len(starts))
    return pad_suffixes([embeds[i, starts[i] :] for i in rows], [positions[i, starts[i] :] for i in rows])


def short_prefix(llm: Any) -> KvPrefix:
    embeds, positions = make_rows(1)
    return compute_prefix(llm, embeds[:, :9], positions[:, :9])


class Operations(TorchDispatchMode):
    """Names of the operations on tensors that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# ---- the same numbers ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hit_gives_the_logits_of_the_whole_sequence(family: str):
    llm = tiny_model(llm=family).llm
    embeds, positions = make_rows(1)
    prefix = compute_prefix(llm, embeds[:, :9], positions[:, :9])
    cache, is_real = stack_prefixes([prefix])
    out = run_suffix(llm, cache, is_real, suffix_of(embeds, positions, [9]), logits_to_keep=11)
    assert worst(out.logits, full_logits(llm, embeds, positions)[:, 9:]) <= TOLERANCE  # measured: 9.5e-7


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_batch_with_a_prefix_and_a_suffix_of_its_own_length_per_row(family: str):
    llm = tiny_model(llm=family).llm
    embeds, positions = make_rows(3)
    starts = [5, 12, 9]
    prefixes = [compute_prefix(llm, embeds[i : i + 1, :n], positions[i : i + 1, :n]) for i, n in enumerate(starts)]
    expected = full_logits(llm, embeds, positions)
    cache, is_real = stack_prefixes(prefixes)
    assert is_real.sum(1).tolist() == starts
    suffix = suffix_of(embeds, positions, starts)
    found = run_suffix(llm, cache, is_real, suffix, logits_to_keep=8).logits
    assert worst(found, expected[:, -8:]) <= TOLERANCE


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_sliding_windows_take_prefixes_of_unequal_length(family: str):
    llm = tiny_model(llm=family).llm
    embeds, positions = make_rows(2)
    prefixes = [
        compute_prefix(llm, embeds[:1, 4:12], positions[:1, 4:12]),
        compute_prefix(llm, embeds[1:, :12], positions[1:, :12]),
    ]
    suffix = suffix_of(embeds, positions, [12, 12])
    cache, is_real = stack_prefixes(prefixes)
    found = run_suffix(llm, cache, is_real, suffix).logits
    assert worst(found[:1], full_logits(llm, embeds[:1, 4:], positions[:1, 4:])[:, -1:]) <= TOLERANCE
    assert worst(found[1:], full_logits(llm, embeds[1:], positions[1:])[:, -1:]) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_says_the_same_with_and_without_a_prefix(family: str):
    llm = tiny_model(llm=family).llm
    embeds, positions = make_rows(2)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    expected = llm.generate(inputs_embeds=embeds, position_ids=positions, attention_mask=mask, **GREEDY)
    starts = [16, 16] if family in WINDOWED else [9, 12]  # so near that a window of 6 reaches the prefix
    prefixes = [compute_prefix(llm, embeds[i : i + 1, :n], positions[i : i + 1, :n]) for i, n in enumerate(starts)]
    suffix = suffix_of(embeds, positions, starts)
    found = generate_after(llm, *stack_prefixes(prefixes), suffix, **GREEDY)
    assert torch.equal(found, expected)
    other = generate_after(
        llm, *stack_prefixes([prefixes[1], prefixes[1]]), suffix_of(embeds, positions, [starts[1]] * 2)
    )
    assert not torch.equal(other[:1, :8], expected[:1])  # with the prefix of another row the answer is another


def test_one_prefix_serves_other_objects_and_other_questions():
    llm = tiny_model().llm
    embeds, positions = make_rows(3)
    embeds[1:, :9] = embeds[0, :9]
    prefix = compute_prefix(llm, embeds[:1, :9], positions[:1, :9])
    cache, is_real = stack_prefixes([prefix] * 3)
    found = run_suffix(llm, cache, is_real, suffix_of(embeds, positions, [9, 9, 9])).logits
    assert worst(found, full_logits(llm, embeds, positions)[:, -1:]) <= TOLERANCE


def test_a_chain_of_nodes_is_the_prefix_that_they_make_up():
    llm = tiny_model().llm
    embeds, positions = make_rows(1)
    system = compute_prefix(llm, embeds[:, :4], positions[:, :4])
    background = compute_prefix(llm, embeds[:, 4:9], positions[:, 4:9], after=system)
    objects = compute_prefix(llm, embeds[:, 9:12], positions[:, 9:12], after=background)
    whole = compute_prefix(llm, embeds[:, :12], positions[:, :12])
    chain = join_prefixes([system, background.after(4), objects.after(9)])
    for found in (objects, chain):
        assert [found.length, found.batch_size] == [12, 1]
        assert max(map(worst, found.keys, whole.keys)) <= TOLERANCE
        assert max(map(worst, found.values, whole.values)) <= TOLERANCE
    assert background.after(4).num_bytes == background.num_bytes * 5 // 9
    assert join_prefixes([system]) is system


# ---- no copy, no write ----


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sharing_copies_no_byte(batch_size: int):
    llm = tiny_model().llm
    prefix = short_prefix(llm)
    with Operations() as ran:
        cache = prefix.share(batch_size)
    assert set(ran.names) == {"aten.expand.default"}  # a view
    stored = [each.untyped_storage().data_ptr() for each in (*prefix.keys, *prefix.values)]
    shared = KvPrefix.of(cache)
    assert [each.untyped_storage().data_ptr() for each in (*shared.keys, *shared.values)] == stored
    assert cache.get_seq_length() == 9


def test_parts_of_a_prefix_are_views_and_nodes_own_their_memory():
    prefix = short_prefix(tiny_model().llm)
    pointer = prefix.keys[0].untyped_storage().data_ptr()
    assert prefix.first(4).keys[0].untyped_storage().data_ptr() == pointer
    assert prefix.after(4).keys[0].untyped_storage().data_ptr() != pointer
    assert prefix.after(4).keys[0].untyped_storage().nbytes() * 2 * 2 == prefix.after(4).num_bytes


def test_requests_never_write_to_a_prefix():
    llm = tiny_model().llm
    embeds, positions = make_rows(2)
    prefix = compute_prefix(llm, embeds[:1, :9], positions[:1, :9])
    before = [each.clone() for each in (*prefix.keys, *prefix.values)]
    suffix = suffix_of(embeds, positions, [9, 9])
    generate_after(llm, *stack_prefixes([prefix, prefix]), suffix, **GREEDY)
    generate_after(llm, prefix.share(4), torch.ones(2, 9, dtype=torch.bool), suffix, num_beams=2, **GREEDY)
    cache = prefix.share()
    cache.crop(-3)
    cache.reset()
    run_suffix(llm, cache, torch.zeros(1, 0, dtype=torch.bool), suffix_of(embeds, positions, [9]))
    other = prefix.share(2)
    other.reorder_cache(torch.tensor([1, 0]))  # pyright: ignore[reportArgumentType]
    other.batch_select_indices(torch.tensor([0]))
    after = [*prefix.keys, *prefix.values]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


# ---- bad input ----


def test_mistakes_are_named():
    llm = tiny_model(llm="mistral").llm
    embeds, positions = make_rows(2)
    prefixes = [compute_prefix(llm, embeds[:1, :n], positions[:1, :n]) for n in (9, 12)]
    with pytest.raises(ValueError, match=r"suffixes have \[11, 8\] tokens and mistral has sliding windows of 6"):
        run_suffix(llm, *stack_prefixes(prefixes), suffix_of(embeds, positions, [9, 12]))
    with pytest.raises(ValueError, match=r"suffixes have \[0\] tokens"):
        suffix_of(embeds, positions, [LENGTH])
    with pytest.raises(ValueError, match="0 prefixes were given"):
        stack_prefixes([])
    pair = KvPrefix(keys=(torch.zeros(2, 1, 3, 4),), values=(torch.zeros(2, 1, 3, 4),))
    with pytest.raises(ValueError, match="holds 2 rows, asked for 3"):
        pair.share(3)
    with pytest.raises(ValueError, match=r"first 4 tokens were asked for, expected 1..3"):
        pair.first(4)
    with pytest.raises(ValueError, match=r"follows 3 tokens was asked for, expected 0..2"):
        pair.after(3)
