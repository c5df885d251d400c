"""Background and objects go through the tower apart: as masked attention does, and in bits that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from llava.model.multimodal_encoder.group_attention import GROUPED_ATTENTION, GroupLayout, grouped_attention_forward
from llava.model.multimodal_encoder.patch_groups import PatchGroup, in_reading_order, merge_groups
from llava.model.multimodal_encoder.split_encoder import BATCHINGS, SplitEncoder, copy_tower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from tests.numerics.models import tiny_model
from tests.unit.model.scene_split.toy import TOWERS, box_masks, make_tower, mask_of, pictures, repaint, worst

TOLERANCE = 1e-5
MIXED = mask_of("##..#...........", "................", "################", "...............#")


def masked_full_attention(tower: VisionTower, pixels: Tensor, chosen: Tensor) -> Tensor:
    """The whole picture through the layers; patches of the other group are no keys. A class token joins the group."""
    hidden = tower.embed(tower.normalise(pixels))
    keys = torch.cat([torch.ones(len(chosen), tower.num_prefix_tokens, dtype=torch.bool), chosen], dim=1)
    mask = keys[:, None, None].expand(-1, 1, hidden.shape[1], -1)
    for layer in tower.encoder_layers[: tower.num_layers_run]:
        hidden = layer(hidden, mask)
    return hidden


@torch.no_grad()
def expected_group(tower: VisionTower, pixels: Tensor, chosen: Tensor) -> Tensor:
    hidden = masked_full_attention(tower, pixels, chosen)
    return torch.cat([row[tower.num_prefix_tokens :][mask] for row, mask in zip(hidden, chosen, strict=True)])


# ---- what is computed ----


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("kind", TOWERS)
def test_gathered_groups_are_masked_full_attention(kind: str, layer: int, batching: Any):
    tower, pixels = make_tower(kind, select_layer=layer), pictures(4)
    with torch.no_grad():
        found = SplitEncoder(tower)(pixels, MIXED, batching=batching)
    assert (found.background.counts, found.objects.counts) == ((13, 16, 0, 15), (3, 0, 16, 1))
    assert worst(found.background.features, expected_group(tower, pixels, ~MIXED)) <= TOLERANCE  # measured: 3.8e-6
    assert worst(found.objects.features, expected_group(tower, pixels, MIXED)) <= TOLERANCE  # measured: 4.8e-6
    assert found.objects.places.tolist() == [0, 1, 4, *range(16), 15]


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "siglip_stem"])
def test_a_picture_of_one_group_is_the_unsplit_picture(kind: str):
    tower, pixels = tiny_model(tower=kind).vision_tower, pictures(2, grid=8)
    everything = torch.ones(2, 16, dtype=torch.bool)
    with torch.no_grad():
        whole = tower(pixels)
        background = SplitEncoder(tower)(pixels, ~everything)
        objects = SplitEncoder(tower)(pixels, everything)
        assert torch.equal(tower(pixels), whole)  # the tower itself goes on as before
    assert worst(background.background.padded()[0], whole) <= TOLERANCE
    assert worst(objects.objects.padded()[0], whole) <= TOLERANCE
    assert background.objects.counts == objects.background.counts == (0, 0)


def test_each_group_has_a_class_token_that_sees_its_own_group_only():
    tower, pixels = make_tower("clip", select_feature="cls_patch"), pictures(1)
    mask = mask_of("####............")
    with torch.no_grad():
        split = SplitEncoder(tower)(pixels, mask)
        changed = SplitEncoder(tower)(repaint(pixels, mask), mask)
        full = [masked_full_attention(tower, pixels, chosen)[0, 0] for chosen in (~mask, mask)]
    assert split.background.places.tolist() == [0, *range(5, 17)]  # the class token stands in front of the patches
    assert split.objects.places.tolist() == [0, 1, 2, 3, 4]
    assert worst(split.background.features[0], full[0]) <= TOLERANCE
    assert worst(split.objects.features[0], full[1]) <= TOLERANCE
    assert torch.equal(changed.background.features, split.background.features)
    assert not torch.equal(changed.objects.features[0], split.objects.features[0])


def test_a_group_without_patches_has_no_class_token_either():
    split = SplitEncoder(make_tower("clip", select_feature="cls_patch"))(pictures(1), mask_of("." * 16))
    assert (split.background.counts, split.objects.counts) == ((17,), (0,))


@settings(max_examples=15, deadline=None)
@given(mask=box_masks(grid=4))
def test_split_then_merge_puts_every_patch_back(mask: Tensor):
    tower = make_tower(select_layer=0)  # no layer: features are the embedded patches, whoever encoded them
    with torch.no_grad():
        whole = tower(pictures(len(mask)))
        split = SplitEncoder(tower)(pictures(len(mask)), mask)
    assert torch.equal(merge_groups(split.background, split.objects), whole)


# ---- what must not matter ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TOWERS)
@settings(max_examples=8, deadline=None)
@given(mask=box_masks(grid=5))
def test_a_background_has_the_same_bits_whatever_the_objects_are(kind: str, dtype: torch.dtype, mask: Tensor):
    encoder = SplitEncoder(make_tower(kind, grid=5).to(dtype))
    pixels = pictures(len(mask), grid=5)
    with torch.no_grad():
        before = encoder(pixels, mask).background
        after = encoder(repaint(pixels, mask), mask).background
    assert before.features.dtype == dtype
    assert torch.equal(after.features, before.features)
    assert mask.all() or before.features.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TOWERS)
def test_a_background_has_the_same_bits_alone_and_in_any_batch(kind: str, dtype: torch.dtype):
    encoder, pixels = SplitEncoder(make_tower(kind).to(dtype)), pictures(4)
    with torch.no_grad():
        batch = encoder(pixels, MIXED).background.of_pictures()
        reverse = encoder(pixels.flip(0), MIXED.flip(0)).background.of_pictures()
        for index in range(4):
            alone = encoder.encode_background(pixels[index : index + 1], MIXED[index : index + 1])
            assert torch.equal(alone.features, batch[index].features)
            assert torch.equal(reverse[3 - index].features, batch[index].features)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("kind", TOWERS)
def test_batch_mates_change_no_group(kind: str, batching: Any):
    encoder, pixels = SplitEncoder(make_tower(kind)), pictures(4)
    with torch.no_grad():
        batch = encoder(pixels, MIXED, batching=batching)
        for index in range(4):
            part = slice(index, index + 1)
            alone = encoder(pixels[part], MIXED[part], batching=batching)
            for group in ("background", "objects"):
                found, expected = getattr(alone, group), getattr(batch, group).of_pictures()[index]
                assert worst(found.features, expected.features) <= TOLERANCE


def test_objects_of_a_hit_have_the_bits_of_a_miss():
    encoder, pixels = SplitEncoder(make_tower("clip")), pictures(4)
    with torch.no_grad():
        assert torch.equal(encoder.encode_objects(pixels, MIXED).features, encoder(pixels, MIXED).objects.features)


def test_background_gradients_never_reach_object_pixels():
    tower = make_tower("clip")
    pixels = torch.rand(1, 3, 16, 16, requires_grad=True)
    mask = mask_of("##..##..........")
    for batching in BATCHINGS:
        split = SplitEncoder(tower)(pixels, mask, batching=batching)
        (to_back,) = torch.autograd.grad(split.background.features.square().sum(), pixels, retain_graph=True)
        (to_front,) = torch.autograd.grad(split.objects.features.square().sum(), pixels)
        is_object = repaint(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), mask) > 0  # also no pixel of the background
        assert to_back[is_object].abs().max() == 0
        assert to_back[:, :, 8:].abs().min() > 0
        assert to_front[:, :, 8:].abs().max() == 0
        assert to_front[:, :, :8, :8].abs().min() > 0


# ---- shared or separate towers, training ----


def test_separate_towers_encode_a_group_each():
    tower = make_tower()
    objects = copy_tower(tower)
    with torch.no_grad():
        same = SplitEncoder(tower, objects)(pictures(4), MIXED)
        shared = SplitEncoder(tower)(pictures(4), MIXED)
        assert torch.equal(same.objects.features, shared.objects.features)
        for parameter in objects.parameters():
            parameter.mul_(1.5)
        tuned = SplitEncoder(tower, objects)(pictures(4), MIXED)
    assert torch.equal(tuned.background.features, shared.background.features)
    assert not torch.allclose(tuned.objects.features, shared.objects.features)


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_packed_batch_is_one_pass_per_tower(is_shared: bool):
    tower = make_tower()
    objects = None if is_shared else copy_tower(tower)
    passes = {"background": 0, "objects": 0}

    def count(name: str) -> Any:
        return lambda *_: passes.__setitem__(name, passes[name] + 1)

    tower.encoder_layers[0].register_forward_hook(count("background"))
    if objects is not None:
        objects.encoder_layers[0].register_forward_hook(count("objects"))
    SplitEncoder(tower, objects)(pictures(4), MIXED, batching="packed")
    assert passes == {"background": 1, "objects": 0 if is_shared else 1}


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_batch_without_objects_still_gives_the_object_tower_its_gradients(batching: Any):
    tower, objects = make_tower("clip"), make_tower("clip", seed=5)
    tower.train()
    objects.train()
    split = SplitEncoder(tower, objects)(pictures(2), mask_of("." * 16, "." * 16), batching=batching)
    assert split.objects.counts == (0, 0)
    (split.background.features.sum() + split.objects.features.sum()).backward()
    gradients = {name: p.grad for name, p in objects.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.abs().max() == 0 for gradient in gradients.values() if gradient is not None)


# ---- attention ----


def test_a_packed_row_is_its_groups_one_by_one():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 9, 8)
    module = make_tower().encoder_layers[0]
    found, _ = grouped_attention_forward(module, query, key, value, GroupLayout.of([4, 1, 4], "cpu"), scaling=0.3)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        scores = query[:, :, part] @ key[:, :, part].transpose(2, 3) * 0.3
        expected = (scores.softmax(-1) @ value[:, :, part]).transpose(1, 2)
        assert worst(found[:, part], expected) <= 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TOWERS)
def test_on_a_gpu_a_background_keeps_its_bits_too(kind: str, dtype: torch.dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    encoder, pixels = SplitEncoder(make_tower(kind).to("cuda", dtype)), pictures(4).cuda()
    with torch.no_grad():
        batch = encoder(pixels, MIXED).background
        changed = encoder(repaint(pixels.cpu(), MIXED).cuda(), MIXED).background
        alone = [encoder.encode_background(pixels[i : i + 1], MIXED[i : i + 1]).features for i in range(4)]
        packed = encoder(pixels, MIXED, batching="packed").background
    assert torch.equal(changed.features, batch.features)
    assert torch.equal(torch.cat(alone), batch.features)
    assert worst(packed.features.float(), batch.features.float()) <= (TOLERANCE if dtype == torch.float32 else 0.1)


# ---- bad input ----


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 9, dtype=torch.bool), r"has 9 patches, the encoder has 4x4=16"),
        (torch.zeros(2, 16, dtype=torch.bool), r"torch.bool \[2, 16\], expected torch.bool \[1, 16\]"),
        (mask_of(".............#.."), "picture 0 cuts through the cell in row 1, column 0 .* 2x2 patches"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        SplitEncoder(make_tower(), cell_side=2)(pictures(1), mask)


def test_an_edge_cell_with_few_patches_is_whole_when_they_agree():
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 8] = True  # of a 3x3 grid, alone in the last cell of 2x2
    split = SplitEncoder(make_tower(grid=3), cell_side=2)(pictures(1, grid=3), mask)
    assert (split.background.counts, split.objects.counts) == ((8,), (1,))
    mask[0, 7] = True  # shares its cell with patch 6
    with pytest.raises(ValueError, match="row 1, column 0"):
        SplitEncoder(make_tower(grid=3), cell_side=2)(pictures(1, grid=3), mask)


@pytest.mark.parametrize(
    ("tower", "objects", "cell", "message"),
    [
        (lambda: tiny_model(tower="dinov2").vision_tower, None, 1, "Dinov2VisionTower cannot encode groups"),
        (lambda: make_tower(scales=(16, 32)), None, 1, "several scales"),
        (lambda: make_tower("clip", select_feature="cls_patch"), None, 2, "a class token has no place in a grid"),
        (make_tower, lambda: make_tower(grid=5), 1, "object tower has grid_side 5, the background tower 4"),
    ],
)
def test_towers_that_cannot_be_split_are_refused(tower: Any, objects: Any, cell: int, message: str):
    with pytest.raises(ValueError, match=message):
        SplitEncoder(tower(), objects and objects(), cell_side=cell)


def test_other_mistakes_are_named():
    encoder = SplitEncoder(make_tower())
    with pytest.raises(ValueError, match="batching is 'alone', expected one of"):
        encoder(pictures(1), mask_of("." * 16), batching="alone")
    with pytest.raises(ValueError, match="pictures are 20x20, the tower reads 16x16"):
        encoder(pictures(1, grid=5), mask_of("." * 16))
    tower = make_tower()
    tower.vision_tower.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="'eager', which cannot keep groups"):
        SplitEncoder(tower)(pictures(2), mask_of("#" * 16, "#" * 16))
    with pytest.raises(ValueError, match=r"group lengths are \[3, 0\]"):
        GroupLayout.of([3, 0], "cpu")
    with pytest.raises(ValueError, match="3 rows and 3 places, expected 4"):
        PatchGroup(features=torch.zeros(3, 2), places=torch.arange(3), counts=(4,))
    group = PatchGroup(features=torch.zeros(3, 2), places=torch.arange(3), counts=(3,))
    with pytest.raises(ValueError, match=r"each of 0\.\.5 once"):
        merge_groups(group, group)
    with pytest.raises(ValueError, match="1 backgrounds and 1 pictures with objects, has_background expects 2 and 2"):
        in_reading_order(group, group, [True, True])


def test_the_key_of_the_attention_is_not_stored_with_a_tower():
    tower = make_tower()
    SplitEncoder(tower)
    assert tower.config._attn_implementation == GROUPED_ATTENTION
    assert GROUPED_ATTENTION not in str(tower.config.to_dict())


def test_no_picture_at_all_gives_two_empty_groups():
    split = SplitEncoder(make_tower())(pictures(0), torch.zeros(0, 16, dtype=torch.bool))
    assert split.background.counts == split.objects.counts == ()
    assert split.background.features.shape == (0, 16)
