"""Attention block by block is attention: values, gradients, segments, branches, windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llava.model.attention import build_layout, may_attend
from llava.model.sequence_parallel import ColumnSplit, SequenceParallelConfig, block_attention
from llava.model.sequence_parallel.block_attention import attend_block, attend_block_backward, merge_
from llava.model.sequence_parallel.ring import RingPlan
from llava.model.sequence_parallel.ulysses import check_heads, key_value_copies

HEADS, KV_HEADS, QUERIES, KEYS, WIDTH = 4, 2, 6, 6, 8


@pytest.fixture(params=[2**25, 48], ids=["at once", "two queries at a time"])
def max_scores(request, monkeypatch):
    monkeypatch.setattr(block_attention, "MAX_SCORES", request.param)


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(HEADS, QUERIES, WIDTH), (KV_HEADS, KEYS, WIDTH), (KV_HEADS, KEYS, WIDTH), (HEADS, QUERIES, WIDTH)]
    query, key, value, grad = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key, value, grad.detach()


@pytest.mark.parametrize("rule", ["all", "causal", "mask"])
def test_two_blocks_of_keys_give_what_sdpa_gives_for_all(rule, max_scores):
    query, key, value, grad = tensors()
    causal = torch.ones(QUERIES, KEYS).tril().bool()
    mask = {"all": None, "causal": causal, "mask": causal & (torch.arange(KEYS) != 1) | torch.eye(QUERIES).bool()}[rule]
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True, scale=0.3)
    expected.backward(grad)
    with torch.no_grad():
        if rule == "causal":
            halves = [(slice(0, KEYS), None, True)]
        else:
            halves = [(keys, None if mask is None else mask[:, keys], False) for keys in (slice(0, 3), slice(3, KEYS))]
        out, log_sum = torch.zeros_like(query), torch.full((HEADS, QUERIES), -torch.inf, dtype=query.dtype)
        for keys, visible, is_causal in halves:
            merge_(out, log_sum, *attend_block(query, key[:, keys], value[:, keys], 0.3, visible, is_causal))
        torch.testing.assert_close(out, expected)
        total = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for keys, visible, is_causal in halves:
            found = attend_block_backward(
                query, key[:, keys], value[:, keys], 0.3, visible, is_causal, grad, log_sum, (grad * out).sum(-1)
            )
            total[0] += found[0]
            total[1][:, keys] += found[1]
            total[2][:, keys] += found[2]
    for tensor, gradient in zip((query, key, value), total, strict=True):
        torch.testing.assert_close(gradient, tensor.grad)


def test_a_query_that_sees_no_key_of_a_block_takes_nothing_from_it():
    query, key, value, _ = tensors()
    out, log_sum = attend_block(query, key, value, 1.0, torch.zeros(QUERIES, KEYS, dtype=torch.bool))
    assert torch.equal(out, torch.zeros_like(out)) and bool((log_sum == -torch.inf).all())
    merge_(out, log_sum, torch.zeros_like(out), log_sum.clone())
    assert not bool(out.isnan().any())


def test_half_precision_is_summed_in_float32_under_autocast_too():
    query, key, value, _ = (tensor.detach().bfloat16() for tensor in tensors())
    expected = attend_block(query, key, value, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend_block(query, key, value, 0.3)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def covered(plan: RingPlan, window: int | None) -> torch.Tensor:
    """[rows, S, S] how often the pieces of all ranks let a query take a key."""
    split, config = plan.split, plan.split.config
    count = torch.zeros(plan.layout.num_rows, split.padded, split.padded, dtype=torch.long)
    for rank in range(config.ring_size):
        own = RingPlan(layout=plan.layout, branch_ids=plan.branch_ids, split=split, rank=rank)
        for source in range(config.ring_size):
            for piece in own.pieces(source, window):
                held = [torch.cat([torch.arange(c.start, c.stop) for c in split.chunks(r)]) for r in (rank, source)]
                queries, keys = held[0][piece.queries], held[1][piece.keys]
                shape = len(queries), len(keys)
                seen = torch.ones(shape).tril() if piece.is_causal else torch.ones(shape)
                seen = seen if piece.visible is None else piece.visible
                count[piece.row, queries[:, None], keys[None, :]] += seen.long()
    return count


@pytest.mark.parametrize("ring_type", ["ring_varlen", "zigzag_ring_varlen"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("has_branches", [False, True])
def test_the_pieces_of_all_ranks_are_the_rule_of_attention_each_pair_once(ring_type, window, has_branches):
    config = SequenceParallelConfig(size=3, ring_size=3, ring_type=ring_type)
    split = ColumnSplit(21, config)
    segments = split.pad(torch.tensor([[0] * 8 + [1] * 2 + [2] * 9 + [-1] * 2, [0] * 21]), -1)
    branches = torch.zeros_like(segments)
    if has_branches:
        branches[0, 3:5], branches[0, 12:14], branches[1, 6:8] = 1, 2, 1
    plan = RingPlan(
        layout=build_layout(segments, None), branch_ids=branches if has_branches else None, split=split, rank=0
    )
    is_real = segments != -1
    expected = may_attend(segments, branches, window) & is_real[:, :, None] & is_real[:, None, :]
    assert torch.equal(covered(plan, window), expected.long())


def test_a_zigzag_evens_out_the_work_of_causal_attention():
    shares = {}
    for ring_type in ("ring_varlen", "zigzag_ring_varlen"):
        split = ColumnSplit(24, SequenceParallelConfig(size=3, ring_size=3, ring_type=ring_type))
        layout = build_layout(torch.zeros(1, 24, dtype=torch.long), None)
        pairs = covered(RingPlan(layout=layout, branch_ids=None, split=split, rank=0), None)[0].sum(dim=1)
        shares[ring_type] = [int(pairs[split.columns(rank)].sum()) for rank in range(3)]
    assert shares == {"ring_varlen": [36, 100, 164], "zigzag_ring_varlen": [100, 100, 100]}


def test_key_heads_are_repeated_only_as_often_as_the_ranks_need():
    assert [key_value_copies(8, 2, size) for size in (1, 2, 4, 8)] == [1, 1, 2, 4]
    assert key_value_copies(12, 3, 2) == 2  # 3 heads cannot be halved, 6 can
    assert key_value_copies(32, 8, 16) == 2


def test_heads_that_cannot_be_dealt_name_the_ring():
    with pytest.raises(ValueError, match=r"14 attention heads and the Ulysses degree is 4.*--seq_parallel_ring_size"):
        check_heads(14, 4)
    check_heads(14, 7)
