"""Every recorded projector of NaVILA, VILA and LLaVA-1.5: the same weights, the same tokens in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava.model.multimodal_projector.base_projector import build_layers, merge_neighbours
from tests.numerics.models import worst

TOLERANCE = 1e-4  # measured worst: 8.0e-6
MM_WIDTH, WIDTH = 24, 40
COMMON = ("identity", "linear", "mlp2x_gelu", "mlp3x_gelu")
VILA_ONLY = ("2x2_fix", "3x3_fix", "3x3_s2", "3x3_s2_new")
CASES = [
    *[(repo, kind, "row") for repo in ("navila", "vila", "llava15") for kind in (*COMMON, "mlp1x_gelu")],
    ("navila", "mlp_downsample", "column"),
    ("vila", "mlp_downsample", "row"),
    *[("vila", f"mlp_downsample_{kind}", "row") for kind in VILA_ONLY],
]


@pytest.mark.parametrize(("repo", "kind", "order"), CASES)
def test_a_recorded_projector_gives_the_recorded_tokens(golden: Path, repo: str, kind: str, order: str):
    folder = golden / "B_projectors"
    width = MM_WIDTH if kind == "identity" else WIDTH
    layers = build_layers(kind, MM_WIDTH, width, order)
    if kind != "identity":
        state = load_file(folder / f"{repo}__{kind}.safetensors")
        layers.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    recorded = np.load(folder / f"{repo}__{kind}.npz")
    for grid in (4, 5, 6, 7, 9):
        patches = torch.from_numpy(recorded[f"in_{grid}x{grid}"])
        with torch.no_grad():
            tokens = layers(patches)
        expected = torch.from_numpy(recorded[f"out_{grid}x{grid}"])
        assert worst(tokens, expected) < TOLERANCE


def test_a_non_contiguous_picture_gives_the_same_tokens():
    patches = torch.randn(2, 8, 16).transpose(1, 2)  # [2, 16, 8], not contiguous
    assert torch.equal(merge_neighbours(patches, 2, "column"), merge_neighbours(patches.contiguous(), 2, "column"))


def test_the_two_orders_of_a_numbered_grid():
    patches = torch.arange(16.0).reshape(1, 16, 1)
    row = merge_neighbours(patches, 2, "row")[0].int().tolist()
    column = merge_neighbours(patches, 2, "column")[0].int().tolist()
    assert row == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert column == [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]]


def test_an_odd_grid_grows_by_zeros_at_the_bottom_and_the_right():
    merged = merge_neighbours(torch.ones(1, 9, 1), 2, "row")[0].int().tolist()
    assert merged == [[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
