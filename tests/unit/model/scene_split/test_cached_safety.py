"""What must not happen behind a background cache: an answer of other weights, of other keys, or of what is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from llava.model.builder import build_model
from llava.scene.detections import Detections
from llava.scene.token_cache import SimilarityConfig
from tests.numerics.models import pictures, tiny_config, worst
from tests.unit.model.scene_split.scene_toy import (
    GREEDY,
    SIDE,
    asked,
    make_cache,
    objects,
    prompt,
    provenances,
    repainted,
    split_model,
)

LOGITS: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
PLAIN: dict[str, Any] = {"suffix_multiple": 1}
TOLERANCE = 1e-5
BF16_TOLERANCE = 2**-6
"""Of logits, as a share of the largest: two steps of bfloat16 (2**-7 each); measured on one CPU core: 0.0."""


@pytest.fixture(scope="module")
def model() -> Any:
    return split_model(std=0.25)


def hall(count: int = 1, seed: int = 0) -> Tensor:
    return pictures(count, seed, SIDE)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_length_of_the_sequence_keep_tokens_only(kind: str):
    """Keys of a short prompt are no keys of a long one: 24 positions are where the frequencies change."""
    config = tiny_config("llama", "siglip_vision_model")
    config["vision_tower_cfg"]["image_size"] = SIDE
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if kind == "longrope" else {}
    config["llm_cfg"] |= {"max_position_embeddings": 24, "rope_parameters": rope}
    model, cache = louder(build_model(config)), make_cache()
    model.initialize_scene_split({"separators": False})
    asked(model, prompt(model, 7, 8, 9), hall(), cache, object_patches=objects(15), max_new_tokens=2)
    long = prompt(model, *range(7, 27))
    answer = asked(model, long, hall(), cache, object_patches=objects(15), **LOGITS)
    assert provenances(answer) == ["exact_tokens"] and answer.report.cached_tokens == (0,)
    if kind == "longrope":  # the other kind keeps its frequencies from one call of transformers to the next
        plain = model.generate(long, hall(), object_patches=objects(15), **GREEDY, **LOGITS)
        assert torch.equal(answer.output.sequences, plain.sequences)
        assert max(map(worst, answer.output.logits, plain.logits)) <= TOLERANCE


def louder(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.eval()


def test_a_hit_in_half_precision_reads_the_bits_of_the_miss():
    """Tokens and keys of the background are the very ones of the miss; only the shape of the prefill differs."""
    model = split_model(std=0.25).to(torch.bfloat16)
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    how = {"object_patches": objects(14, 15), **LOGITS}
    miss, hit, again = (asked(model, ids, hall(), cache, max_new_tokens=64, **how) for _ in "abc")
    assert [provenances(each) for each in (miss, hit, again)] == [["miss"], ["exact_kv"], ["exact_kv"]]
    assert all(map(torch.equal, hit.output.logits, again.output.logits))
    first, second = miss.output.logits[0].float(), hit.output.logits[0].float()
    assert worst(first, second) <= BF16_TOLERANCE * first.abs().max().item()


def test_weights_that_change_while_an_answer_is_written_leave_nothing_behind():
    """A training step of another thread, here of a stopping criterion: what was computed belongs to no model."""
    model, cache = split_model(std=0.25), make_cache()
    ids = prompt(model, 7, 8, 9, pictures=2)

    class Trains(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                model.llm.model.layers[0].mlp.up_proj.weight.mul_(1.5)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    criteria = StoppingCriteriaList([Trains()])
    asked(model, ids, hall(2), cache, object_patches=objects(15, count=2), stopping_criteria=criteria)
    assert cache.stats.discarded > 0
    answer = asked(model, ids, hall(2), cache, object_patches=objects(15, count=2))
    assert provenances(answer) == ["miss", "miss"] and answer.report.cached_tokens == (0,)
    assert torch.equal(answer.output, model.generate(ids, hall(2), object_patches=objects(15, count=2), **GREEDY))


def test_tokens_of_a_similar_background_that_changed_are_hidden_in_its_keys_and_values_too(model: Any):
    """Whatever lies under the stale cell (slot 2 + 5 of the prefix) changes nothing, its neighbour's does."""
    ids, seen = prompt(model, 7, 8, 9), repainted(hall(), 5)
    logits: dict[int | None, Tensor] = {}
    for cell in (None, 5, 6):
        cache = make_cache(similarity=SimilarityConfig(noise=1.0, max_stale_fraction=0.2))
        asked(model, ids, hall(), cache, object_patches=objects(15))
        if cell is not None:
            spoil(cache, column=2 + cell)
        answer = asked(model, ids, seen, cache, object_patches=objects(15), max_new_tokens=1, **LOGITS)
        assert provenances(answer) == ["guarded"] and answer.report.cached_tokens == (2 + 15,)
        logits[cell] = answer.output.logits[0]
    assert torch.equal(logits[None], logits[5])
    assert worst(logits[None], logits[6]) > 1e-3


def spoil(cache: Any, column: int) -> None:
    """Other values in one column of every prefix of the cache."""
    for slot in cache._store._memories[0].lru:
        for _, values in slot.value.value.kv or ():
            if values.shape[-2] > column:
                values[:, :, column] += 3.0
        object.__setattr__(slot.value, "versions", slot.value._write_counters())


def test_a_folder_that_two_models_share_serves_each_its_own(tmp_path: Path, model: Any):
    """Models of one architecture that differ in a single weight, one picture, one question."""
    other, tier = split_model(std=0.25), {"disk_folder": tmp_path, "disk_bytes": 2**26, "write_through": True}
    with torch.no_grad():
        other.vision_tower.get_parameter(next(iter(dict(other.vision_tower.named_parameters())))).mul_(1.5)
    ids, seen = prompt(model, 7, 8, 9), []
    for each in (model, other, model, other):
        answer = asked(each, ids, hall(), make_cache(**tier), object_patches=objects(15))
        seen.append((*provenances(answer), answer.report.pictures[0].tier))
        assert torch.equal(answer.output, each.generate(ids, hall(), object_patches=objects(15), **GREEDY))
    assert seen == [("miss", None)] * 2 + [("exact_kv", "disk")] * 2


def test_a_language_model_that_lies_on_several_devices_keeps_tokens_only():
    """A cache keeps its values on one device: keys of a layer elsewhere would not meet the others."""
    model, ids, cache = split_model(std=0.25), prompt(split_model(), 7), make_cache()
    model.llm.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "meta"}
    for expected in ("miss", "exact_tokens"):
        assert provenances(asked(model, ids, hall(), cache, object_patches=objects(15))) == [expected]


# ---- detectors that crash, codecs that tell what moved ----


class Broken:
    """Crashes at every picture that is not grey."""

    def detect(self, pictures: Any, sources: Any = None) -> list[Detections]:
        if any((picture != 128).any() for picture in pictures):
            raise ZeroDivisionError("no grey")
        return [Detections.of(*picture.shape[:2]) for picture in pictures]


def test_a_detector_that_crashes_costs_its_picture_and_the_report_says_so(model: Any):
    images = torch.cat([hall(), torch.full((1, 3, SIDE, SIDE), 128, dtype=torch.uint8)])
    ids, everything = prompt(model, 7, 8, 9, pictures=2), torch.cat([objects(*range(16)), objects()])
    answer = asked(model, ids, images, make_cache(), detector=Broken())
    first, second = answer.report.pictures
    assert first.detector_failure == "ZeroDivisionError: no grey" and second.detector_failure is None
    assert (first.num_background, first.num_objects, second.num_objects) == (0, 16, 0)
    assert answer.report.to_json()["pictures"][0]["detector_failure"] == "ZeroDivisionError: no grey"
    assert torch.equal(answer.output, model.generate(ids, images, object_patches=everything, **GREEDY))


def test_what_a_codec_moved_is_computed_anew_behind_a_similar_background(model: Any):
    """One patch of cell 6 moved: the cell comes as an object, though its pixels are the same."""
    ids, moved = prompt(model, 7, 8, 9), torch.zeros(1, 8, 8, dtype=torch.bool)
    moved[0, 3, 5] = True
    cache = make_cache(similarity=SimilarityConfig(noise=1.0, max_stale_fraction=0.2))
    asked(model, ids, hall(), cache, object_patches=objects(15))
    seen = hall()
    seen[0, 0, 0, 0] ^= 1
    (picture,) = asked(model, ids, seen, cache, object_patches=objects(15), moved_patches=moved).report.pictures
    assert picture.background == "guarded" and np.argwhere(picture.hit_map == "stale").tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"moved_patches have 16 patches, expected torch.bool \[1, 64\]"):
        asked(model, ids, seen, cache, object_patches=objects(15), moved_patches=torch.zeros(1, 16, dtype=torch.bool))


# ---- shapes ----


def test_questions_of_unequal_length_meet_the_language_model_in_one_shape(model: Any):
    """A first picture, then objects and 1 to 9 words behind a known background: 2 to 10 tokens, padded to 16."""
    cache = make_cache()
    seen: list[tuple[int, int]] = []
    asked(model, prompt(model, 7), hall(), cache, object_patches=objects(15))
    hook = model.llm.register_forward_pre_hook(
        lambda module, args, given: seen.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    how = {"object_patches": objects(15), "keep_objects": False, "suffix_multiple": 16, **LOGITS}
    try:
        for number in range(1, 10):
            ids = prompt(model, *range(7, 7 + number))
            answer = asked(model, ids, repainted(hall(), 15), cache, max_new_tokens=1, **how)
            assert provenances(answer) == ["exact_kv"] and seen == [(1, 16)]
            plain = model.generate(ids, repainted(hall(), 15), **{**GREEDY, **how, "max_new_tokens": 1, **PLAIN})
            assert worst(answer.output.logits[0], plain.logits[0]) <= TOLERANCE * plain.logits[0].abs().max().item()
            seen.clear()
    finally:
        hook.remove()


def test_what_was_computed_in_padded_shapes_is_kept_without_its_padding(model: Any):
    ids, cache = prompt(model, 7, 8, 9, pictures=2), make_cache()
    how = {"object_patches": objects(15, count=2)}
    plain = model.generate(ids, hall(2), **how, **GREEDY)
    for multiple in (32, 1, 8):
        answer = asked(model, ids, hall(2), cache, suffix_multiple=multiple, **how)
        assert torch.equal(answer.output, plain)
    assert provenances(answer) == ["exact_kv", "exact_kv"] and answer.report.computed_tokens == 3
    with pytest.raises(ValueError, match="suffix_multiple is 0"):
        asked(model, ids, hall(2), cache, suffix_multiple=0, **how)
