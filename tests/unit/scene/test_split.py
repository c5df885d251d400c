"""Two groups of patches apart and together: by hand, then as properties of random masks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from llava.model.multimodal_projector.base_projector import merge_neighbours
from llava.scene.patch_mask import patches_of_cells, snap
from llava.scene.split import (
    gather,
    gather_cells,
    may_attend,
    may_attend_packed,
    merge,
    pack,
    places_of_cells,
    split_places,
    unpack,
)

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)).map(torch.from_numpy)


def numbered(batch: int, places: int) -> torch.Tensor:
    """Token p of picture b is (10 b + p + 1, 0.5): no two alike, none zero."""
    tokens = torch.full((batch, places, 2), 0.5)
    tokens[..., 0] = 10 * torch.arange(batch)[:, None] + torch.arange(places)[None] + 1
    return tokens


def test_unequal_groups_are_padded_and_the_mask_says_where():
    split = split_places(torch.tensor([[False, True, True, False], [False, False, True, False]]))
    assert split.background.ids.tolist() == [[0, 3, 0], [0, 1, 3]]
    assert split.background.valid.tolist() == [[True, True, False], [True, True, True]]
    assert split.objects.ids.tolist() == [[1, 2], [2, 0]]
    assert split.objects.counts.tolist() == [2, 1]
    background = gather(numbered(2, 4), split.background)
    assert background[..., 0].tolist() == [[1, 4, 0], [11, 12, 14]]


def test_packed_groups_hold_members_only():
    split = split_places(torch.tensor([[False, True, True, False], [False, False, True, False]]))
    packed = pack(gather(numbered(2, 4), split.background), split.background)
    assert packed[:, 0].tolist() == [1, 4, 11, 12, 14]
    assert split.background.boundaries.tolist() == [0, 2, 5]
    assert split.background.boundaries.dtype == torch.int32
    assert may_attend_packed(split.background).tolist() == [[(i < 2) == (j < 2) for j in range(5)] for i in range(5)]


def test_members_see_members_and_padding_sees_itself():
    split = split_places(torch.tensor([[True, False, False], [True, True, True]]))
    assert may_attend(split.objects)[0, 0].tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert may_attend(split.objects)[1, 0].all()
    assert may_attend(split.background)[1, 0].any(dim=-1).all()  # a picture without background: no row sees nothing


def test_pictures_of_one_group_only_come_back_whole():
    tokens = numbered(2, 3)
    split = split_places(torch.tensor([[True] * 3, [False] * 3]))
    assert split.objects.counts.tolist() == [3, 0]
    assert torch.equal(merge(gather(tokens, split.background), gather(tokens, split.objects), split), tokens)
    everything = split_places(torch.ones(2, 3, dtype=torch.bool))
    assert everything.background.ids.shape == (2, 0)
    assert gather(tokens, everything.background).shape == (2, 0, 2)
    assert torch.equal(merge(tokens[:, :0], gather(tokens, everything.objects), everything), tokens)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(is_object=MASKS, extra=st.integers(0, 3))
def test_splitting_then_merging_is_the_identity(is_object, extra):
    tokens = torch.randn(*is_object.shape, 3, generator=torch.Generator().manual_seed(0))
    room = is_object.shape[1] + extra
    for split in (split_places(is_object), split_places(is_object, background_room=room, object_room=room)):
        background, objects = gather(tokens, split.background), gather(tokens, split.objects)
        assert torch.equal(merge(background, objects, split), tokens)
        assert (split.background.counts + split.objects.counts == is_object.shape[1]).all()
        for rows, group in ((background, split.background), (objects, split.objects)):
            assert torch.equal(unpack(pack(rows, group), group), rows)
            kept = [ids[valid].tolist() for ids, valid in zip(group.ids, group.valid, strict=True)]
            assert all(ids == sorted(set(ids)) for ids in kept)
        noise = torch.full_like(objects, float("nan")).masked_fill(split.objects.valid[..., None], 0) + objects
        assert torch.equal(merge(background, noise, split), tokens)  # padding is never read


def test_gradients_reach_the_members_and_nothing_else():
    tokens = numbered(1, 3).requires_grad_()
    split = split_places(torch.tensor([[False, True, False]]))
    gather(tokens, split.objects).sum().backward()
    assert tokens.grad is not None and tokens.grad[0, :, 0].tolist() == [0, 1, 0]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    grid=st.integers(1, 7), cell=st.integers(1, 3), order=st.sampled_from(["row", "column"]), seed=st.integers(0, 50)
)
def test_cells_of_both_groups_are_the_projectors_own(grid, cell, order, seed):
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, grid * grid, 3, generator=random)
    patches = torch.rand(2, grid, grid, generator=random) < 0.3
    cells = torch.stack([torch.from_numpy(snap(mask.numpy(), cell)) for mask in patches])
    flat = (cells if order == "row" else cells.transpose(1, 2)).flatten(1)
    split, places = split_places(flat), places_of_cells(grid, cell, order)
    whole = merge(*(gather_cells(tokens, group, places) for group in (split.background, split.objects)), split)
    assert torch.equal(whole, merge_neighbours(tokens, cell, order))
    own = torch.from_numpy(patches_of_cells(cells[0].numpy(), grid, cell)).flatten()
    of_objects = places[split.objects.ids[0][split.objects.valid[0]]]
    assert sorted(of_objects[of_objects >= 0].tolist()) == own.nonzero().flatten().tolist()


def test_a_grid_that_the_cell_does_not_divide_has_places_of_zeros():
    assert places_of_cells(3, 2).tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    assert places_of_cells(3, 2, "column")[1].tolist() == [6, 7, -1, -1]


def test_what_does_not_fit_is_refused():
    mask = torch.tensor([[True, False, True]])
    split, tokens = split_places(mask), numbered(1, 3)
    with pytest.raises(ValueError, match="object_room is 1 and a picture of the batch has 2"):
        split_places(mask, object_room=1)
    with pytest.raises(ValueError, match="2 pictures of tokens for a split of 1"):
        gather(numbered(2, 3), split.objects)
    with pytest.raises(ValueError, match="1 columns, its split 2"):
        merge(gather(tokens, split.background), tokens[:, :1], split)
    with pytest.raises(ValueError, match="1 packed rows for a group of 2"):
        unpack(tokens[0, :1], split.objects)
    with pytest.raises(ValueError, match=r"background is torch.float32 and objects torch.float64"):
        merge(gather(tokens, split.background), gather(tokens, split.objects).double(), split)
    with pytest.raises(ValueError, match="token order is 'diagonal'"):
        places_of_cells(4, 2, "diagonal")
