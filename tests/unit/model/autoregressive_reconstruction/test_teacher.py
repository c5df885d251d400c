"""The teacher never changes, is in no state dict and no optimizer, and is not copied where the tower is frozen."""

from __future__ import annotations

import copy

import pytest
import torch

from llava.model.autoregressive_reconstruction import FrozenVisionEmbeddingProcessor
from tests.unit.model.autoregressive_reconstruction.toy import (
    NUM_PATCHES,
    SIDE,
    WIDTH,
    make_module,
    make_tower,
    noise_clips,
)


@pytest.fixture
def clips():
    return noise_clips(2, 3, torch.Generator().manual_seed(0))


def count_calls(tower):
    calls = []
    tower.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    return calls


def test_clips_become_features_without_gradient(clips):
    features = FrozenVisionEmbeddingProcessor(make_tower(is_frozen=False))(clips)
    assert features.shape == (2, 3, NUM_PATCHES, WIDTH)
    assert not features.requires_grad


def test_chunks_give_what_one_pass_gives(clips):
    tower = make_tower()
    calls = count_calls(tower)
    whole = FrozenVisionEmbeddingProcessor(tower)(clips)
    in_parts = FrozenVisionEmbeddingProcessor(tower, chunk_size=4)(clips)
    assert calls == [6, 4, 2]
    assert torch.allclose(whole, in_parts, atol=1e-6)


def test_a_trained_tower_is_copied_and_the_copy_stays_as_it_was(clips):
    tower = make_tower(is_frozen=False)
    teacher = FrozenVisionEmbeddingProcessor(tower)
    before, fingerprint = teacher(clips), teacher.fingerprint()
    with torch.no_grad():
        for weight in tower.parameters():
            weight.add_(0.1)
    assert not teacher.is_shared
    assert torch.equal(teacher(clips), before)
    assert teacher.fingerprint() == fingerprint != FrozenVisionEmbeddingProcessor(tower).fingerprint()


def test_a_frozen_tower_is_shared_and_its_features_may_be_handed_over(clips):
    tower = make_tower()
    module = make_module(tower, predictor_dim=32, context="none")
    calls = count_calls(tower)
    assert module.teacher.is_shared and module.teacher.tower is tower
    expected = module.compute_autoregressive_loss(None, clips)
    assert calls == [6]
    features = tower(clips.flatten(0, 1)).unflatten(0, (2, 3))
    del calls[:]
    assert torch.equal(module(None, frame_features=features).loss(), expected)
    assert calls == []  # the teacher encoded nothing


@pytest.mark.parametrize("is_frozen", [True, False], ids=["shared", "copied"])
def test_it_is_in_no_checkpoint_and_no_optimizer(is_frozen):
    module = make_module(make_tower(is_frozen=is_frozen), predictor_dim=32)
    assert {name.split(".")[0] for name in module.state_dict()} == {"predictor", "conditions"}
    of_teacher = {id(weight) for weight in module.teacher.tower.parameters()}
    assert not of_teacher & {id(weight) for weight in module.parameters()}
    assert not any(weight.requires_grad for weight in module.teacher.tower.parameters())
    make_module(predictor_dim=32).load_state_dict(module.state_dict(), strict=True)


def test_train_mode_does_not_reach_it_and_a_cast_does(clips):
    module = make_module(make_tower(is_frozen=False), predictor_dim=32).train().to(torch.bfloat16)
    module.compute_autoregressive_loss(None, clips)
    assert not module.teacher.tower.training
    assert module.teacher.tower.dtype == torch.bfloat16
    tower = make_tower()
    make_module(tower, predictor_dim=32).to(torch.bfloat16)
    assert tower.dtype == torch.float32  # a shared tower belongs to its model


def test_a_copied_module_keeps_its_teacher(clips):
    module = make_module(make_tower(is_frozen=False), predictor_dim=32)
    twin = copy.deepcopy(module)
    assert torch.equal(twin.compute_autoregressive_loss(None, clips), module.compute_autoregressive_loss(None, clips))


def test_a_shared_tower_that_is_trained_later_is_refused(clips):
    tower = make_tower()
    module = make_module(tower, predictor_dim=32)
    tower.requires_grad_(True)
    with pytest.raises(ValueError, match="frozen when the teacher was built and is trainable now"):
        module.compute_autoregressive_loss(None, clips)


def test_features_of_a_trained_tower_are_refused():
    module = make_module(make_tower(is_frozen=False), predictor_dim=32)
    with pytest.raises(ValueError, match="expected video_frames"):
        module(None, frame_features=torch.zeros(1, 3, NUM_PATCHES, WIDTH))


@pytest.mark.parametrize(
    "shape",
    [(2, 3, SIDE, SIDE), (1, 2, 1, SIDE, SIDE), (1, 2, 3, SIDE + 1, SIDE), (1, 2, SIDE, SIDE, 3)],
    ids=["rank", "channels", "size", "order"],
)
def test_frames_of_another_form_are_refused(shape):
    expected = rf"expected \[clips, frames, 3, {SIDE}, {SIDE}\]"
    with pytest.raises(ValueError, match=expected):
        make_module(predictor_dim=32).compute_autoregressive_loss(None, torch.zeros(shape, dtype=torch.uint8))


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="embedding_dim is 1152, the vision tower gives 32; set embedding_dim to 32"):
        make_module(embedding_dim=1152)
