"""Every change of the weights is a miss, and nothing else is."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from llava.model.scene_split.fingerprint import WeightFingerprint
from tests.numerics.models import pictures
from tests.unit.model.scene_split.scene_toy import (
    GREEDY,
    SIDE,
    asked,
    make_cache,
    objects,
    prompt,
    provenances,
    split_model,
)


@torch.no_grad()
def write_in_place(model: Any) -> None:
    model.llm.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3


def step(model: Any) -> None:
    """One step of the optimiser on a single weight."""
    weight = next(model.vision_tower.parameters())
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    weight.grad = torch.ones_like(weight)
    optimizer.step()


def reload(model: Any) -> None:
    model.mm_projector.load_state_dict({k: v * 1.01 for k, v in model.mm_projector.state_dict().items()})


def another_tensor(model: Any) -> None:
    head = model.llm.lm_head
    head.weight = nn.Parameter(head.weight.detach() * 2)


def cast(model: Any) -> None:
    model.to(torch.float64)


def another_layer(model: Any) -> None:
    model.vision_tower.select_layer = -1


def cast_to_half_and_back(model: Any) -> None:
    """Types, names and often addresses are those of before; the values are rounded."""
    model.to(torch.bfloat16).to(torch.float32)


def load_adapter(model: Any) -> None:
    """LoRA with weights that do something."""
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    model.llm = get_peft_model(model.llm, settings)
    model.eval()


def write_around_the_counter(model: Any) -> None:
    """How DeepSpeed's optimisers bring their step into the model."""
    for weight in model.parameters():
        weight.data.copy_(weight.data * 1.01)


CHANGES: list[Callable[[Any], None]] = [
    *(write_in_place, step, reload, another_tensor, cast, another_layer, cast_to_half_and_back, load_adapter),
    write_around_the_counter,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_misses_and_answers_as_without_a_cache(change: Callable[[Any], None]):
    model, cache, image = split_model(), make_cache(), pictures(1, size=SIDE)
    ids = prompt(model, 7, 8, 9)
    for expected in ("miss", "exact_kv"):
        assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == [expected]
    change(model)
    answer = asked(model, ids, image, cache, object_patches=objects(15))
    assert provenances(answer) == ["miss"]
    assert torch.equal(answer.output, model.generate(ids, image, object_patches=objects(15), **GREEDY))
    assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == ["exact_kv"]


def adapted(model: Any) -> Any:
    load_adapter(model)
    return model


def test_adapters_miss_when_they_come_are_switched_off_merged_and_taken_out():
    model, fingerprint = split_model(), WeightFingerprint()
    seen = [fingerprint(model)]
    adapted(model)
    seen.append(fingerprint(model))
    with model.llm.disable_adapter():
        seen.append(fingerprint(model))
    assert fingerprint(model) == seen[1]
    model.llm.base_model.merge_adapter()
    seen.append(fingerprint(model))
    model.llm.base_model.unmerge_adapter()
    seen.append(fingerprint(model))  # not the bits of before: subtracting what was added rounds
    model.llm = model.llm.merge_and_unload()
    seen.append(fingerprint(model))
    assert len(set(seen)) == len(seen)


def test_an_adapter_and_another_scale_of_it_are_two_models():
    model, fingerprint = adapted(split_model()), WeightFingerprint()
    before = fingerprint(model)
    for layer in model.llm.modules():
        if "merged_adapters" in vars(layer):
            layer.scale_layer(0.5)
    assert fingerprint(model) != before


def test_only_what_changed_is_hashed_again():
    model, fingerprint = split_model(), WeightFingerprint()
    first = fingerprint(model)
    count = fingerprint.num_hashed
    assert fingerprint(model) == first and fingerprint.num_hashed == count
    write_in_place(model)
    assert fingerprint(model) != first and fingerprint.num_hashed == count + 1


def test_the_same_weights_are_the_same_in_another_process_and_object(tmp_path: Path):
    model = split_model()
    assert WeightFingerprint()(copy.deepcopy(model)) == model.weight_fingerprint(model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = split_model(seed=1)
    assert other.weight_fingerprint(other) != model.weight_fingerprint(model)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert other.weight_fingerprint(other) == model.weight_fingerprint(model)


def test_undoing_a_change_finds_the_old_entries():
    model, cache, image = split_model(), make_cache(), pictures(1, size=SIDE)
    ids, weight = prompt(model, 7), model.llm.lm_head.weight
    asked(model, ids, image, cache, object_patches=objects(15))
    with torch.no_grad():
        weight.mul_(2)
        assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == ["miss"]
        weight.div_(2)
    assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == ["exact_kv"]


def test_a_new_weight_at_the_address_of_an_old_one_is_another_weight():
    """The allocator may give the block of a freed tensor to the next one of its size, and both count no write.

    Here the block is the test's own, so that the new weights lie there for certain. A thousand of them are made: one
    would get the freed record of the old storage too, if the fingerprint did not hold it. The weight is frozen, as the
    values of others are sampled.
    """
    model, fingerprint = split_model(), WeightFingerprint()
    layer = model.llm.model.layers[0].mlp.up_proj
    block = layer.weight.detach().numpy().copy()

    def weight_in_the_block() -> nn.Parameter:
        return nn.Parameter(torch.from_numpy(block), requires_grad=False)

    layer.weight = weight_in_the_block()
    before, address, record = fingerprint(model), layer.weight.data_ptr(), layer.weight.untyped_storage()._cdata
    layer.weight = nn.Parameter(torch.zeros(1))
    block *= 1.5
    successors = [weight_in_the_block() for _ in range(1000)]
    assert {each.data_ptr() for each in successors} == {address}
    layer.weight = min(successors, key=lambda each: abs(each.untyped_storage()._cdata - record))
    assert fingerprint(model) != before


def test_a_small_step_in_half_precision_around_the_counter_is_seen():
    """A thousandth of the values move, as where the step is far below the distance of two bfloat16 numbers."""
    model, fingerprint = split_model().to(torch.bfloat16), WeightFingerprint()
    before, count = fingerprint(model), fingerprint.num_hashed
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data.mul_(torch.where(torch.rand(weight.shape) < 1e-3, 1.01, 1.0).to(weight.dtype))
    assert fingerprint(model) != before
    assert fingerprint.num_hashed == 2 * count  # nothing is known of the tensors that were not sampled either


def test_a_write_to_a_frozen_weight_around_the_counter_is_seen_after_forget():
    model, fingerprint = split_model().requires_grad_(False), WeightFingerprint()
    before = fingerprint(model)
    model.llm.lm_head.weight.data.mul_(2)
    assert fingerprint(model) == before  # what the documentation says it cannot see
    fingerprint.forget()
    assert fingerprint(model) != before


def test_a_copy_of_a_model_has_a_fingerprint_of_its_own():
    model = split_model()
    before = model.weight_fingerprint(model)
    other = copy.deepcopy(model)
    assert other.weight_fingerprint is not model.weight_fingerprint and other.weight_fingerprint.num_hashed == 0
    assert pickle.loads(pickle.dumps(model.weight_fingerprint)).num_hashed == 0
    write_in_place(other)
    assert other.weight_fingerprint(other) != before == model.weight_fingerprint(model)


def test_a_fingerprint_keeps_no_weight_alive():
    model, fingerprint = split_model(), WeightFingerprint()
    fingerprint(model)
    gone = weakref.ref(model.llm.lm_head.weight)
    storage = StorageWeakRef(model.llm.lm_head.weight.untyped_storage())
    del model
    gc.collect()
    assert gone() is None and storage.expired()


def test_autocast_shares_nothing_with_full_precision():
    model, cache, image = split_model(), make_cache(), pictures(1, size=SIDE)
    ids = prompt(model, 7)
    asked(model, ids, image, cache, object_patches=objects(15))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == ["miss"]
        assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == ["exact_kv"]
    assert provenances(asked(model, ids, image, cache, object_patches=objects(15))) == ["exact_kv"]
