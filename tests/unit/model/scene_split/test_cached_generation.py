"""Generation behind a background cache: the same answers, fewer tokens, and it says where they come from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import llava
from llava.model.builder import build_model
from llava.scene.detections import Detections
from llava.scene.token_cache import BackgroundValue, MeasuredCosts, SimilarityConfig
from tests.numerics.models import pictures, tiny_config, worst
from tests.unit.model.scene_split.scene_toy import (
    CELLS,
    GREEDY,
    SIDE,
    asked,
    make_cache,
    make_tokenizer,
    objects,
    prompt,
    provenances,
    repainted,
    split_model,
)

TOLERANCE = 1e-5
"""Of logits, as a share of the largest; measured on one CPU core: 0.0, the same bits."""


@pytest.fixture(scope="module")
def model() -> Any:
    return split_model(std=0.25)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def hall(count: int = 1, seed: int = 0) -> Tensor:
    return pictures(count, seed, SIDE)


class Corner:
    """Finds the last cell of every picture, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, pictures: Any, sources: Any = None) -> list[Detections]:
        self.calls += len(pictures)
        sizes = [picture.shape[:2] for picture in pictures]
        return [Detections.of(h, w, [(w * 0.8, h * 0.8, w, h)]) for h, w in sizes]


# ---- hit = miss ----


def test_a_hit_says_what_a_miss_says_for_64_steps(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    long = {"object_patches": objects(14, 15), "max_new_tokens": 64, "output_logits": True}
    plain = model.generate(ids, hall(), **{**GREEDY, **long}, return_dict_in_generate=True)
    for provenance in ("miss", "exact_kv"):
        answer = asked(model, ids, hall(), cache, **long, return_dict_in_generate=True)
        assert provenances(answer) == [provenance]
        assert torch.equal(answer.output.sequences, plain.sequences)
        largest = max(step.abs().max().item() for step in plain.logits)
        assert max(map(worst, answer.output.logits, plain.logits)) <= TOLERANCE * largest
    assert answer.report.cached_tokens == (2 + 16,) and answer.report.computed_tokens == 3


def test_a_new_object_in_front_of_a_known_background_costs_its_own_tokens(model: Any):
    ids, cache, new = prompt(model, 7, 8, 9), make_cache(), repainted(hall(), 15)
    asked(model, ids, hall(), cache, object_patches=objects(15))
    answer = asked(model, ids, new, cache, object_patches=objects(15))
    assert torch.equal(answer.output, model.generate(ids, new, object_patches=objects(15), **GREEDY))
    assert not torch.equal(answer.output, model.generate(ids, hall(), object_patches=objects(15), **GREEDY))
    (picture,) = answer.report.pictures
    assert (picture.background, picture.objects, picture.tier) == ("exact_kv", "computed", "device")
    assert (picture.num_background, picture.num_objects, picture.saved_tokens) == (15, 1, 2 + 15)
    assert answer.report.computed_tokens == 1 + 3
    assert picture.hit_map.tolist() == [["reused"] * 4] * 3 + [["reused"] * 3 + ["recomputed"]]


def test_a_changed_background_is_a_miss(model: Any):
    ids, cache, other = prompt(model, 7, 8, 9), make_cache(), repainted(hall(), 0)
    asked(model, ids, hall(), cache, object_patches=objects(15))
    answer = asked(model, ids, other, cache, object_patches=objects(15))
    assert provenances(answer) == ["miss"] and answer.report.cached_tokens == (0,)
    assert torch.equal(answer.output, model.generate(ids, other, object_patches=objects(15), **GREEDY))


@pytest.mark.parametrize(
    "split",
    [
        {"positions": "own_range"},
        {"positions": "sequential"},
        {"shared_encoder": False, "shared_projectors": False},
        {"prefusion_layers": 2},
        {"background_per": "clip"},
    ],
    ids=lambda split: "-".join(split),
)
def test_every_kind_of_split_answers_as_forward_reads_it(split: dict[str, Any]):
    model = split_model(**split)
    ids, images, mask = prompt(model, 7, 8, 9, pictures=2), hall(2), objects(14, 15, count=2)
    mask[1] = objects(0, 3)[0]
    _, positions, real, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
        ids, torch.zeros_like(ids), torch.ones_like(ids), None, None, images, object_patches=mask.flatten(1)
    )
    expected = model.llm.generate(inputs_embeds=embeds, position_ids=positions, attention_mask=real.long(), **GREEDY)
    cache = make_cache()
    for _ in range(3):
        answer = asked(model, ids, images, cache, object_patches=mask)
        assert torch.equal(answer.output, expected)
    assert answer.report.computed_tokens == 3
    is_clip = split.get("background_per") == "clip"
    assert provenances(answer) == ["exact_kv", "shared" if is_clip else "exact_kv"]


def test_separators_are_part_of_the_prefix(tokenizer: Any):
    model = split_model(tokenizer=tokenizer)
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    plain = model.generate(ids, hall(), object_patches=objects(15), **GREEDY)
    assert [torch.equal(asked(model, ids, hall(), cache, object_patches=objects(15)).output, plain) for _ in "ab"]
    answer = asked(model, ids, hall(), cache, object_patches=objects(15))
    assert answer.report.prompt_tokens == (2 + 16 + 4 + 3,) and answer.report.computed_tokens == 3


# ---- batches, several pictures, several questions ----


def test_rows_of_unequal_length_and_provenance_answer_as_alone(model: Any):
    cache, images = make_cache(), torch.cat([hall(), repainted(hall(), 15), hall(1, seed=5)])
    masks = torch.cat([objects(15), objects(15), objects(0, 1, 2)])
    rows = [prompt(model, 7, 8, 9)[0], prompt(model, 7)[0], prompt(model, 10, 11, 12, 13, 14)[0]]
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    is_real = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
    asked(
        model, prompt(model, 7, 8, 9), hall(), cache, object_patches=objects(15)
    )  # the first two know it, not the last
    answer = asked(model, ids, images, cache, object_patches=masks, attention_mask=is_real)
    assert provenances(answer) == ["exact_kv", "exact_kv", "miss"]
    again = asked(model, ids, images, cache, object_patches=masks, attention_mask=is_real)
    assert provenances(again) == ["exact_kv"] * 3 and again.report.computed_tokens == 3 + 1 + 5
    for index, row in enumerate(rows):
        alone = model.generate(row[None], images[index : index + 1], object_patches=masks[index : index + 1], **GREEDY)
        assert torch.equal(answer.output[index], alone[0]) and torch.equal(again.output[index], alone[0])


def test_several_questions_about_one_picture_compute_the_question_only(model: Any):
    cache = make_cache()
    for number, words in enumerate([(7, 8, 9), (10, 11), (12, 13, 14, 15)]):
        answer = asked(model, prompt(model, *words), hall(), cache, object_patches=objects(15))
        expected = model.generate(prompt(model, *words), hall(), object_patches=objects(15), **GREEDY)
        assert torch.equal(answer.output, expected)
        assert answer.report.computed_tokens == (len(words) if number else 2 + 16 + 3)


def test_objects_that_are_not_kept_are_computed_again(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    first, second = (asked(model, ids, hall(), cache, object_patches=objects(15), keep_objects=False) for _ in "ab")
    assert torch.equal(first.output, second.output) and second.report.computed_tokens == 1 + 3
    assert cache.stats.entries_by_tier["device"] == 2  # tokens and KV of the background


def test_pictures_behind_a_changed_one_keep_their_tokens_and_lose_their_kv(model: Any):
    ids, cache, masks = prompt(model, 7, 8, 9, pictures=3), make_cache(), objects(15, count=3)
    asked(model, ids, hall(3), cache, object_patches=masks)
    changed = hall(3)
    changed[1] = repainted(changed[1:2], 15)[0]
    answer = asked(model, ids, changed, cache, object_patches=masks)
    assert provenances(answer) == ["exact_kv", "exact_kv", "exact_tokens"]
    assert [picture.objects for picture in answer.report.pictures] == ["exact_kv", "computed", "computed"]
    assert torch.equal(answer.output, model.generate(ids, changed, object_patches=masks, **GREEDY))


def test_other_words_before_the_picture_keep_its_tokens(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    other = ids.clone()
    other[0, 0] = 11
    asked(model, ids, hall(), cache, object_patches=objects(15))
    answer = asked(model, other, hall(), cache, object_patches=objects(15))
    assert provenances(answer) == ["exact_tokens"] and answer.report.cached_tokens == (0,)
    assert torch.equal(answer.output, model.generate(other, hall(), object_patches=objects(15), **GREEDY))


def test_placeholders_that_are_multiplied_already_are_read_as_one_each(model: Any):
    ids = prompt(model, 7, 8, 9, pictures=2)
    slots = torch.where(ids[0] == model.config.image_token_id, 16, 1)
    expected = model.generate(ids, hall(2), object_patches=objects(3, count=2), **GREEDY)
    found = model.generate(ids[0].repeat_interleave(slots)[None], hall(2), object_patches=objects(3, count=2), **GREEDY)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mask", [objects(), objects(*range(16))], ids=["no objects", "nothing but objects"])
def test_empty_groups_are_answered(model: Any, mask: Tensor):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    plain = model.generate(ids, hall(), object_patches=mask, **GREEDY)
    for _ in range(2):
        assert torch.equal(asked(model, ids, hall(), cache, object_patches=mask).output, plain)


def test_a_picture_at_the_end_leaves_a_token_to_be_computed(model: Any):
    ids, cache = prompt(model), make_cache()
    plain = model.generate(ids, hall(), object_patches=objects(), **GREEDY)
    for _ in range(3):
        answer = asked(model, ids, hall(), cache, object_patches=objects())
        assert torch.equal(answer.output, plain) and answer.report.computed_tokens > 0


def test_sampling_beams_and_several_answers_pass_through(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    ways: list[dict[str, Any]] = [
        {"num_beams": 3},
        {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2},
    ]
    for how in ways:
        found = []
        for given in (None, cache, cache):
            torch.manual_seed(1)
            kwargs = {**GREEDY, **how, "object_patches": objects(15)}
            found.append(model.generate(ids, hall(), background_cache=given, **kwargs))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# ---- the cache is shared, and cannot lie unseen ----


def test_threads_that_share_an_entry_answer_as_one(model: Any):
    cache = make_cache()
    images = [repainted(hall(), 15, seed=number) for number in range(8)]
    expected = [
        model.generate(prompt(model, 7, 8 + n), images[n], object_patches=objects(15), **GREEDY) for n in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda n: asked(model, prompt(model, 7, 8 + n), images[n], cache, object_patches=objects(15)), range(8)
            )
        )
    assert all(torch.equal(answer.output, want) for answer, want in zip(answers, expected, strict=True))
    assert cache.stats.answers["miss"] <= 1 + 8 + 8 and cache.stats.written_by_reader == 0


def test_no_byte_of_an_entry_is_copied_to_share_it_nor_changed(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    asked(model, ids, hall(), cache, object_patches=objects(15))
    entries = list(cache._store._memories[0].lru)
    before = {slot.key: {n: t.clone() for n, t in slot.value.value.tensors.items()} for slot in entries}
    versions = {slot.key: slot.value.versions for slot in entries}
    pointers = {t.data_ptr() for slot in entries for t in slot.value.value.tensors.values()}
    read: list[int] = []
    cat = torch.cat

    def watched(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        read.extend(each.data_ptr() for each in tensors)
        return cat(tensors, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", watched)
        asked(model, ids, hall(), cache, object_patches=objects(15), num_beams=2)
    assert (
        len(pointers & set(read)) == 2 * 2 * 2
    )  # keys and values of 2 layers of 2 stretches: joined from where they lie
    for slot in entries:
        assert slot.value.versions == versions[slot.key] and not slot.value.was_written
        assert all(torch.equal(t, before[slot.key][n]) for n, t in slot.value.value.tensors.items())


def test_a_wrong_entry_changes_the_answer(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    right = asked(model, ids, hall(), cache, object_patches=objects(15)).output
    other = make_cache()
    asked(model, ids, hall(1, seed=5), other, object_patches=objects(15))
    wrong = {slot.value.origin.kind: slot.value.value for slot in other._store._memories[0].lru
             if slot.value.origin.num_tokens >= 15}  # fmt: skip
    for slot in cache._store._memories[0].lru:
        if slot.value.origin.kind == "kv" and slot.value.origin.num_tokens >= 15:
            object.__setattr__(slot.value, "value", BackgroundValue(kv=wrong["kv"].kv))
            object.__setattr__(slot.value, "versions", slot.value._write_counters())
    swapped = asked(model, ids, hall(), cache, object_patches=objects(15))
    assert provenances(swapped) == ["exact_kv"] and not torch.equal(swapped.output, right)


def test_tenants_do_not_see_each_other(model: Any):
    ids, cache = prompt(model, 7, 8, 9), make_cache()
    for salt, provenance in [("a", "miss"), ("b", "miss"), ("a", "exact_kv")]:
        assert provenances(asked(model, ids, hall(), cache, object_patches=objects(15), cache_salt=salt)) == [
            provenance
        ]


# ---- match first, detect on a miss; similar backgrounds; costs ----


def test_a_detector_is_asked_only_where_no_known_background_matches(model: Any):
    ids, cache, detector = prompt(model, 7, 8, 9), make_cache(), Corner()
    first = asked(model, ids, hall(), cache, detector=detector)
    assert first.report.pictures[0].detector_ran and detector.calls == 1
    new = repainted(hall(), 15)
    answer = asked(model, ids, new, cache, detector=detector)
    assert detector.calls == 1 and not answer.report.pictures[0].detector_ran
    assert provenances(answer) == ["exact_kv"]
    assert torch.equal(answer.output, model.generate(ids, new, object_patches=objects(15), **GREEDY))
    asked(model, ids, repainted(hall(), 0), cache, detector=detector)
    assert detector.calls == 2


def test_a_similar_background_is_served_by_opt_in_and_its_changed_cells_are_computed_anew(model: Any):
    ids = prompt(model, 7, 8, 9)
    cache = make_cache(similarity=SimilarityConfig(noise=1.0, max_stale_fraction=0.2))
    asked(model, ids, hall(), cache, object_patches=objects(15))
    noisy = (hall().int() + torch.randint(-1, 2, hall().shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 255
    )
    seen = repainted(noisy.to(torch.uint8), 5)
    answer = asked(model, ids, seen, cache, object_patches=objects(15))
    (picture,) = answer.report.pictures
    assert picture.background == "guarded" and picture.num_objects == 2
    assert picture.hit_map[1, 1] == "stale" and picture.hit_map[3, 3] == "recomputed"
    exact = asked(model, ids, seen, cache, object_patches=objects(15), allow_guarded=False)
    assert provenances(exact) == ["miss"]
    assert torch.equal(exact.output, model.generate(ids, seen, object_patches=objects(15), **GREEDY))


def test_a_guarded_answer_leaves_nothing_behind(model: Any):
    ids = prompt(model, 7, 8, 9)
    cache = make_cache(similarity=SimilarityConfig(noise=2.0))
    asked(model, ids, hall(), cache, object_patches=objects(15))
    before = cache.stats.entries_by_tier
    changed = hall()
    changed[0, 0, 0, 0] ^= 1
    assert provenances(asked(model, ids, changed, cache, object_patches=objects(15))) == ["guarded"]
    assert cache.stats.entries_by_tier == before


def test_a_background_that_does_not_pay_is_bypassed(model: Any):
    costs = MeasuredCosts(encode_s_per_token=1e-6, prefill_s_per_token=1e-6, lookup_s=1.0)
    cache, ids = make_cache(costs=costs), prompt(model, 7, 8, 9)
    answers = [asked(model, ids, hall(), cache, object_patches=objects(15), keep_objects=False) for _ in "ab"]
    assert [provenances(answer) for answer in answers] == [["bypass:cost"]] * 2
    assert cache.stats.entries_by_tier["device"] == 0
    assert torch.equal(answers[1].output, model.generate(ids, hall(), object_patches=objects(15), **GREEDY))


# ---- generate_content ----


def test_generate_content_looks_at_the_pictures_as_they_were_handed_over(tokenizer: Any):
    model, detector, cache = split_model(tokenizer=tokenizer), Corner(), make_cache()
    shown = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    generation = {"do_sample": False, "max_new_tokens": 6, "background_cache": cache, "return_provenance": True}
    question = [Image.fromarray(shown), "what moves"]
    first = model.generate_content(question, detector=detector, **generation)
    assert first.report.pictures[0].background == "miss" and 1 <= first.report.pictures[0].num_objects <= 4
    again = model.generate_content(question, detector=detector, **generation)
    assert again.output == first.output and again.report.pictures[0].background == "exact_kv"
    assert detector.calls == 1 and set(again.report.seconds) >= {"detector", "encoder", "first_token", "total"}
    mask = np.zeros((96, 128), dtype=bool)
    mask[int(96 * 0.8) - 1 :, int(128 * 0.8) :] = True
    told = model.generate_content(question, object_masks=[mask], do_sample=False, max_new_tokens=6)
    assert told == first.output
    clip = [llava.Video([Image.fromarray(shown)] * 3), "what moves"]
    answers = [model.generate_content(clip, detector=detector, **generation) for _ in "ab"]
    assert answers[0].output == answers[1].output and len(answers[1].report.pictures) == 3
    assert {picture.background for picture in answers[1].report.pictures} == {"exact_kv"}


def test_whole_pictures_tell_their_times_too():
    torch.manual_seed(0)
    model = build_model(tiny_config()).eval()
    ids = torch.tensor([[5, model.config.image_token_id, 7]])
    answer = model.generate(ids, pictures(1), return_provenance=True, **GREEDY)
    assert torch.equal(answer.output, model.generate(ids, pictures(1), **GREEDY))
    assert answer.report.pictures == () and answer.report.computed_tokens == 1 + 4 + 1
    assert (
        0 < answer.report.seconds["prefill"] <= answer.report.seconds["first_token"] <= answer.report.seconds["total"]
    )


# ---- refusals ----


def test_a_model_trained_without_the_split_refuses_a_cache_unless_forced():
    torch.manual_seed(0)
    model = build_model(tiny_config(tower="siglip_vision_model")).eval()
    ids = torch.tensor([[5, model.config.image_token_id, 7]])
    with pytest.raises(ValueError, match="trained without scene_split: background and objects have always seen"):
        model.generate(ids, pictures(1), background_cache=make_cache(), **GREEDY)
    options: dict[str, Any] = {"background_cache": make_cache(), "force_scene_split": True}
    forced = [model.generate(ids, pictures(1), return_provenance=True, **options, **GREEDY) for _ in "ab"]
    assert [provenances(answer) for answer in forced] == [["miss"], ["exact_kv"]]
    assert model.scene_split is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"object_patches": torch.zeros(2, 64, dtype=torch.bool)}, r"expected torch.bool \[1, 64\]"),
        ({"object_patches": torch.zeros(1, 16, dtype=torch.bool)}, "object_patches have 16 patches"),
        ({"object_patches": torch.eye(8, dtype=torch.bool)[None]}, "cuts through the cell in row 0, column 0"),
        ({"object_patches": objects(), "detector": Corner()}, "object_patches and detector were given"),
        ({"object_masks": [None]}, "object_masks are of original pictures"),
        ({"picture_ids": ["a", "b"]}, "2 picture_ids for 1 pictures"),
        ({"use_cache": False}, "use_cache is False"),
        ({"background_cache": make_cache(device="meta")}, "keeps values on meta and the model reads them on cpu"),
        ({"past_key_values": object()}, "past_key_values was given beside split pictures"),
    ],
)
def test_mistakes_are_named(model: Any, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        model.generate(prompt(model, 7), hall(), **{**GREEDY, "background_cache": make_cache(), **options})


def test_wrong_numbers_of_pictures_are_named(model: Any):
    with pytest.raises(ValueError, match="the text has 1 placeholders and there are 2 pictures, expected 2"):
        model.generate(prompt(model, 7), hall(2), object_patches=objects(count=2), **GREEDY)
    with pytest.raises(ValueError, match="there are no pictures"):
        model.generate(torch.tensor([[5, 6]]), None, object_patches=objects(), **GREEDY)
    floats = hall().float()
    with pytest.raises(ValueError, match=r"a detector is to look at them, expected torch.uint8"):
        model.generate(prompt(model, 7), floats, detector=Corner(), **GREEDY)
    assert CELLS == 4
