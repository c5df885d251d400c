"""Attention by blocks of frames: equal to a dense mask, and never as large as one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llava.model.autoregressive_reconstruction import ReconstructionConfig, describe_clips
from llava.model.autoregressive_reconstruction.attention import attend_frames, plan_blocks
from llava.model.autoregressive_reconstruction.plan import plan_site
from llava.model.autoregressive_reconstruction.predictor import ParallelAutoregressivePredictor

CPU = torch.device("cpu")


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("case", ["causal", "local", "clips_differ", "gaps"])
def test_blocks_equal_a_dense_mask(case):
    generator = torch.Generator().manual_seed(0)
    visible = torch.ones(4, 4).tril().bool().expand(2, -1, -1).clone()
    if case == "local":
        visible = torch.eye(4, dtype=torch.bool).expand(2, -1, -1)
    if case == "clips_differ":
        visible[1, 2:, 0] = False
    if case == "gaps":
        visible[:, 3, 1] = False
    query, key, value = (torch.randn(2, 2, 4, 3, 8, generator=generator) for _ in range(3))
    dense = visible.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)[:, None]
    flat = [tokens.flatten(2, 3) for tokens in (query, key, value)]
    expected = F.scaled_dot_product_attention(*flat, attn_mask=dense).unflatten(2, (4, 3))
    blocks = plan_blocks(visible, CPU)
    assert blocks.is_local == (case == "local")
    assert torch.allclose(attend_frames(query, key, value, blocks), expected, atol=1e-6)


def test_eight_frames_of_729_tokens_need_nothing_of_the_size_of_a_mask():
    num_frames, num_tokens, width = 9, 729, 16  # 8 frames predict the ninth
    config = ReconstructionConfig(num_hist=num_frames, num_layers=1)
    plan = plan_site(describe_clips(1, num_frames), config, "visual")
    predictor = ParallelAutoregressivePredictor(
        input_dim=width,
        output_dim=width,
        width=width,
        num_tokens=num_tokens,
        num_heads=1,
        num_layers=1,
        context_dim=None,
    )
    inputs = torch.randn(1, 8, num_tokens, width)
    blocks = [plan_blocks(visible, CPU) for visible in plan.visible]
    assert blocks[0].keys[-1] == tuple(range(8))
    with LargestTensor() as largest:
        predicted, _ = predictor(inputs, torch.zeros(1, 8, width), blocks)
        predicted.sum().backward()
    mask = (8 * num_tokens) ** 2
    assert largest.numel <= 8 * num_tokens * 4 * width  # the feed-forward layer
    assert largest.numel < mask / 50
