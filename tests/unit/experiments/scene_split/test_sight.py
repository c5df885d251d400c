"""The encoder that the experiment starts from: what it is told to see, and that it learns to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava.utils import io
from playground.experiments.scene_split import sight
from playground.experiments.scene_split.drawing import SIDE
from playground.experiments.scene_split.sight import SIGHTS, Namer, collect, names_of, share_right, train


def test_a_patch_has_the_name_of_what_stands_in_front():
    sofa, ball = np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    sofa[64:96, 64:] = True
    ball[80:90, 112:] = True
    ball[63, 0] = True  # less than a twentieth of its patch
    grid = names_of([("sofa", sofa), ("ball", ball)], ("nothing", "ball", "sofa"), 16)
    expected = np.zeros((8, 8), int)
    expected[4:6, 4:] = 2
    expected[5, 7] = 1
    assert grid.tolist() == expected.tolist()


@pytest.mark.parametrize("task", SIGHTS)
def test_names_stand_at_the_tokens_that_show_the_things(task):
    data = collect(SIGHTS[task], 16, unseen=False, rooms=4)
    assert data.pictures.shape == (12, 3, SIDE, SIDE) and data.names.shape == (12, 16, 4)
    (picture, things), *_ = SIGHTS[task].views(False, 4, 0)
    assert np.array_equal(data.pictures[0].permute(1, 2, 0).numpy(), picture)
    grid = names_of(things, SIGHTS[task].names, 16)
    row, column = np.argwhere(grid)[0]
    token, patch = row // 2 * 4 + column // 2, row % 2 * 2 + column % 2
    assert data.names[0, token, patch] == grid[row, column] > 0


def test_rooms_of_the_test_are_others():
    seen, unseen = (collect(SIGHTS["vqa"], 16, unseen=other, rooms=3).pictures for other in (False, True))
    assert not torch.equal(seen, unseen)


def test_what_is_told_is_learned_and_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(sight, "BATCH", 12)
    torch.manual_seed(0)
    data = collect(SIGHTS["vqa"], 16, unseen=False, rooms=4)
    count = len(SIGHTS["vqa"].names)
    namer = Namer("tiny", count)
    before = share_right(namer, data)
    train(namer, data, num_names=count, steps=40, draw_rows=torch.Generator().manual_seed(0))
    assert before < 0.2 and share_right(namer, data) > 0.5
    namer.save(tmp_path)
    assert io.load(tmp_path / "vision_tower/config.json")["image_size"] == SIDE
    assert (tmp_path / "mm_projector/config.json").is_file()
