"""Cross-entropy of supervised rows, chunked or not, and the soft one of time tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava.constants import IGNORE_INDEX
from llava.model import loss as loss_module
from llava.model.loss import normalise, soft_cross_entropy, soft_targets, supervised_loss_sum, token_loss_sum


def test_a_time_token_shares_its_weight_with_its_neighbours():
    times = torch.tensor([20, 21, 22])
    weights = soft_targets(torch.tensor([21]), times, std=1.0)[0]
    near = math.exp(-0.5)
    assert weights.tolist() == pytest.approx([near / (1 + 2 * near), 1 / (1 + 2 * near), near / (1 + 2 * near)])


def test_the_places_of_time_tokens_count_not_their_ids():
    assert torch.equal(
        soft_targets(torch.tensor([90]), torch.tensor([7, 90, 12]), 1.0),
        soft_targets(torch.tensor([1]), torch.tensor([0, 1, 2]), 1.0),
    )


def test_soft_and_hard_targets_add_up():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, 12, generator=generator)
    targets = torch.tensor([[IGNORE_INDEX, 3, 10, IGNORE_INDEX, 9]])
    times = [9, 10, 11]
    log_p = logits.log_softmax(-1)[0]
    hard = -log_p[0, 3]
    soft = sum(
        -(soft_targets(torch.tensor([t]), torch.tensor(times), 2.0)[0] @ log_p[row, 9:12])
        for row, t in ((1, 10), (3, 9))
    )
    assert soft_cross_entropy(logits, targets, times, std=2.0).item() == pytest.approx(
        ((hard + soft) / 3).item(), rel=1e-6
    )


def test_without_time_tokens_it_is_the_ordinary_loss():
    logits, targets = torch.randn(2, 4, 9), torch.tensor([[1, 2, 3, IGNORE_INDEX], [IGNORE_INDEX, 5, 6, 7]])
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    assert soft_cross_entropy(logits, targets, []).item() == pytest.approx(expected.item(), rel=1e-6)


def test_half_precision_logits_are_summed_in_single():
    logits = torch.randn(3, 9).bfloat16()
    found = token_loss_sum(logits, torch.tensor([1, 2, 3]))
    assert found.dtype == torch.float32


def test_chunks_give_the_loss_and_the_gradients_of_one_piece(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(8, 20), torch.randn(10, 8, requires_grad=True), torch.randint(20, (10,))
    whole = supervised_loss_sum(hidden, targets, head)
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    monkeypatch.setattr(loss_module, "ROWS_PER_CHUNK", 4)
    chunked = supervised_loss_sum(hidden, targets, head)
    found = torch.autograd.grad(chunked, [hidden, head.weight])
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in made)])
        return result


def test_logits_of_a_long_batch_never_exist_at_once_and_the_numbers_are_those_of_the_plain_loss():
    """9,000 rows of 300 words: 2.7 million logits; a chunk has 4,096 rows."""
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(4, 300), torch.randn(9000, 4, requires_grad=True), torch.randint(300, (9000,))
    plain = nn.functional.cross_entropy(head(hidden), targets)
    expected = torch.autograd.grad(plain, [hidden, head.weight, head.bias])
    with LargestTensor() as largest:
        loss = normalise(supervised_loss_sum(hidden, targets, head), len(targets), None)
        loss.backward()
    assert largest.numel == loss_module.ROWS_PER_CHUNK * 300 < 9000 * 300
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    for found, wanted in zip((hidden.grad, head.weight.grad, head.bias.grad), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_no_supervised_row_is_a_loss_of_zero():
    head = nn.Linear(8, 20)
    loss = normalise(supervised_loss_sum(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), head), 0, None)
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad is not None
