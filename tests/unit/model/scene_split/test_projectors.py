"""A projector gives a group the tokens that it gives the unsplit picture, cell by cell, and the groups start alike."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from llava.model.multimodal_encoder.patch_groups import PatchGroup, in_reading_order, merge_groups
from llava.model.multimodal_projector.base_projector import MultimodalProjector, merge_neighbours
from llava.model.multimodal_projector.split_projector import copy_projector, gather_cells, project_group
from llava.model.scene_split import SceneSplitConfig, SceneSplitModule, cell_mask
from tests.unit.model.scene_split.toy import (
    LANGUAGE_WIDTH,
    box_masks,
    make_projector,
    make_tower,
    mask_of,
    pictures,
    repaint,
    worst,
)

LLM = SimpleNamespace(
    hidden_size=LANGUAGE_WIDTH, intermediate_size=32, num_attention_heads=4, max_position_embeddings=128
)
DOWNSAMPLING = [("mlp_downsample", 2), ("mlp_downsample_2x2_fix", 2), ("mlp_downsample_3x3_fix", 3)]


def group_of(features: Tensor, chosen: Tensor) -> PatchGroup:
    """The chosen rows of whole pictures [n, p, d]."""
    places = [mask.nonzero()[:, 0] for mask in chosen]
    rows = [each[place] for each, place in zip(features, places, strict=True)]
    return PatchGroup(features=torch.cat(rows), places=torch.cat(places), counts=tuple(map(len, places)))


def split_of(features: Tensor, mask: Tensor) -> tuple[PatchGroup, PatchGroup]:
    return group_of(features, ~mask), group_of(features, mask)


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize(("kind", "rate"), DOWNSAMPLING)
@settings(max_examples=4, deadline=None)
@given(data=box_masks(grid=30, cell=1))
def test_tokens_of_both_groups_are_those_of_the_unsplit_picture(
    kind: str, rate: int, grid: int, order: str, data: Tensor
):
    if order == "column" and kind != "mlp_downsample":
        order = "row"  # the other types know rows only
    projector = make_projector(kind, order)
    mask = snapped(data, grid, rate)
    features = torch.randn(len(mask), grid**2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = projector(features)
        groups = [project_group(projector, each, grid) for each in split_of(features, mask)]
        alone = [project_group(projector, each, grid, bit_stable=True) for each in split_of(features, mask)]
    assert worst(merge_groups(*groups), whole) <= 1e-6  # measured: 2.9e-7; which patches are merged is exact, see below
    assert worst(merge_groups(*alone), whole) <= 1e-6
    expected = cell_mask(mask, grid, rate, order)
    assert groups[1].counts == tuple(expected.sum(1).tolist())
    assert groups[1].places.tolist() == [place for row in expected for place in row.nonzero()[:, 0].tolist()]


def snapped(data: Tensor, grid: int, rate: int) -> Tensor:
    """Boxes of a larger grid brought to cells of this one."""
    cells = -(-grid // rate)
    coarse = data.view(-1, 30, 30)[:, :cells, :cells]
    fine = coarse.repeat_interleave(rate, dim=1).repeat_interleave(rate, dim=2)
    return fine[:, :grid, :grid].flatten(1)


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize(("grid", "rate"), [(4, 2), (5, 2), (5, 3)])
def test_the_patches_of_a_cell_are_exactly_those_that_the_projector_would_merge(grid: int, rate: int, order: str):
    features = torch.arange(grid**2 * 2.0).view(1, grid**2, 2) + 1
    everything = torch.ones(1, grid**2, dtype=torch.bool)
    cells, places, counts = gather_cells(group_of(features, everything), grid, rate, order)
    assert torch.equal(cells.flatten(1), merge_neighbours(features, rate, order)[0])
    assert (places.tolist(), counts) == (list(range(len(cells))), (len(cells),))


def test_cells_follow_each_other_by_hand():
    features = torch.arange(16.0).view(1, 16, 1)
    group = group_of(features, mask_of("..##..##........"))  # the upper right cell of 2x2
    for order, place in (("row", 1), ("column", 2)):
        cells, places, _ = gather_cells(group, 4, 2, order)
        assert (cells.flatten().tolist(), places.tolist()) == ([2, 3, 6, 7], [place])


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "linear"])
def test_projectors_that_merge_nothing_keep_every_place(kind: str):
    projector, features = make_projector(kind), torch.randn(2, 16, 16)
    mask = mask_of("#...............", "................")
    with torch.no_grad():
        background, objects = (project_group(projector, each, 4) for each in split_of(features, mask))
        assert worst(merge_groups(background, objects), projector(features)) <= 1e-6
    assert (objects.counts, background.counts) == ((1, 0), (15, 16))


def test_reading_order_is_background_then_objects_picture_by_picture():
    rows = torch.arange(8.0)[:, None]
    background = PatchGroup(features=rows[:3], places=torch.tensor([1, 3, 0]), counts=(2, 1))
    objects = PatchGroup(features=rows[3:6], places=torch.tensor([0, 1, 2]), counts=(1, 2))
    assert in_reading_order(background, objects).flatten().tolist() == [0, 1, 3, 2, 4, 5]
    clip = PatchGroup(features=rows[:3], places=torch.tensor([1, 3, 5]), counts=(3,))
    assert in_reading_order(clip, objects, [True, False]).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_group_that_lacks_patches_of_a_cell_is_refused():
    features = torch.randn(1, 16, 16)
    with pytest.raises(ValueError, match=r"cell 0 .* only the patches \[0\] of \[0, 1, 4, 5\]"):
        project_group(make_projector(), group_of(features, mask_of("#...............")), 4)


# ---- weights of the split ----


def module_of(projector: MultimodalProjector | None = None, **config: Any) -> SceneSplitModule:
    projector = make_projector() if projector is None else projector
    return SceneSplitModule(SceneSplitConfig(**config), make_tower(), projector, LLM)


def test_shared_parts_bring_no_weights():
    assert list(module_of().parameters()) == []
    assert module_of().state_dict() == {}


def test_separate_parts_start_as_copies_and_change_nothing():
    tower, projector, mask = make_tower(), make_projector(), mask_of("##..##..........", "." * 16)
    shared, separate = module_of(), module_of(shared_encoder=False, shared_projectors=False)
    with torch.no_grad():
        expected = shared.encode(tower, projector, pictures(2), mask)
        found = separate.encode(tower, projector, pictures(2), mask)
        assert torch.equal(found.background.features, expected.background.features)
        assert torch.equal(found.objects.features, expected.objects.features)
        for parameter in separate.object_projector.parameters():  # pyright: ignore[reportOptionalMemberAccess]
            parameter.add_(0.1)
        tuned = separate.encode(tower, projector, pictures(2), mask)
        unsplit = projector(tower(pictures(2)))
    assert torch.equal(tuned.background.features, expected.background.features)
    assert not torch.allclose(tuned.objects.features, expected.objects.features)
    assert worst(tuned.background.features[3:], unsplit[1]) <= 1e-5  # the picture without objects
    untouched = zip(projector.parameters(), make_projector().parameters(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in untouched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_background_tokens_have_the_same_bits_whatever_else_is_there(dtype: torch.dtype):
    tower, projector = make_tower("clip").to(dtype), make_projector().to(dtype)  # pyright: ignore[reportArgumentType]
    module, mask = module_of(projector), mask_of("##..##..........", "." * 16, "#" * 16)
    with torch.no_grad():
        before = module.encode(tower, projector, pictures(3), mask).background
        after = module.encode(tower, projector, repaint(pictures(3), mask), mask).background
        alone = module.encode_background(tower, projector, pictures(3)[:1], mask[:1])
        objects = module.encode_objects(tower, projector, pictures(3), mask)
        again = module.encode(tower, projector, pictures(3), mask).objects
    assert torch.equal(before.features, after.features)
    assert torch.equal(before.features[:3], alone.features)
    assert torch.equal(objects.features, again.features)
    assert (before.counts, objects.counts) == ((3, 4, 0), (1, 0, 4))


def test_an_empty_group_gives_its_own_projector_a_gradient_of_zero():
    module = module_of(shared_encoder=False, shared_projectors=False).train()
    tower, projector = make_tower().train(), make_projector()
    tokens = module.encode(tower, projector, pictures(2), mask_of("." * 16, "." * 16), batching="packed")
    in_reading_order(tokens.background, tokens.objects).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert gradients["background_projector.layers.1.weight"].abs().max() > 0  # pyright: ignore
    assert gradients["object_projector.layers.1.weight"].abs().max() == 0  # pyright: ignore


def test_the_weights_of_the_split_survive_a_file(tmp_path: Path):
    options = {"shared_encoder": False, "shared_projectors": False, "prefusion_layers": 2}
    module = module_of(**options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module.save_weights(tmp_path)
    again = module_of(**options)
    again.load_weights(tmp_path)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"lacks nothing; scene_split in config\.json belongs to other weights"):
        module_of(shared_projectors=False).load_weights(tmp_path)
    with pytest.raises(ValueError, match=r"does not exist, expected the weights of scene_split .*prefusion: "):
        again.load_weights(tmp_path / "elsewhere")


def test_a_split_without_weights_writes_and_reads_nothing(tmp_path: Path):
    module_of().save_weights(tmp_path / "split")
    assert not (tmp_path / "split").exists()
    module_of().load_weights(tmp_path / "split")


def test_models_that_cut_pictures_into_tiles_are_refused():
    projector = make_projector()
    projector.image_newline = torch.nn.Parameter(torch.zeros(LANGUAGE_WIDTH))
    with pytest.raises(ValueError, match="image_newline"):
        copy_projector(projector)
    with pytest.raises(ValueError, match="image_newline"):
        module_of(projector)
