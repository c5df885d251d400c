"""The cache serves the right background or none, says which, and requests do not disturb one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava.scene.token_cache import BackgroundValue
from tests.unit.scene.token_cache_toy import (
    BACKGROUND,
    GRID,
    cache,
    change,
    encode,
    encode_with_kv,
    fill,
    picture,
    provenance,
    request,
    scope,
    value_bytes,
)


def never(_):
    raise AssertionError("computed although the cache has it")


def test_the_second_request_gets_what_the_first_one_computed():
    store = cache()
    first = store.get_or_compute(request(), encode)
    second = store.get_or_compute(request(), never)
    assert (first.provenance, second.provenance) == ("miss", "exact_tokens")
    assert torch.equal(second.shared().tokens, encode(first).tokens)
    assert second.saved_tokens == 12
    assert second.object_ids.tolist() == [12, 13, 14, 15]


def test_an_object_may_change_as_long_as_the_background_does_not():
    store = cache()
    fill(store, request())
    assert provenance(store, request(change(picture(), cell=13))) == "exact_tokens"
    assert provenance(store, request(change(picture(), cell=11))) == "miss"


def test_kv_is_preferred_where_asked_for_and_tokens_serve_where_there_is_none():
    store = cache()
    fill(store, request())
    with store.lookup(request(want_kv=True)) as answer:
        assert answer.provenance == "exact_tokens"
        store.put(answer, BackgroundValue(kv=encode_with_kv(answer).kv))
    with store.lookup(request(want_kv=True)) as answer:
        assert answer.provenance == "exact_kv"
        assert answer.saved_tokens == 13
        assert len(answer.shared().kv) == 2
        assert answer.shared().kv[0][0].shape == (1, 1, 13, 3)


def test_kv_depends_on_what_stands_before_it_and_tokens_do_not():
    store = cache()
    fill(store, request(want_kv=True, scope=scope(prefix="You are a robot.")))
    assert provenance(store, request(want_kv=True, scope=scope(prefix="You are a robot."))) == "exact_kv"
    assert provenance(store, request(want_kv=True, scope=scope(prefix="You are a cat."))) == "exact_tokens"


@pytest.mark.parametrize(
    "fields",
    [
        {"model_state": "weights 2"},
        {"model_state": b"weights 1"},
        {"preprocessing": "other mean"},
        {"adapters": "lora"},
        {"dtype": torch.bfloat16},
        {"cache_salt": "tenant b"},
    ],
)
def test_every_field_of_the_scope_is_part_of_the_key(fields):
    store = cache()
    fill(store, request())
    assert provenance(store, request(scope=scope(**fields))) == "miss"
    assert provenance(store, request(scope=scope(**fields), background=None)) == "miss"


@pytest.mark.parametrize(
    "fields",
    [
        {"background": BACKGROUND[:-1]},
        {"patch_size": 2, "background": BACKGROUND},
        {"pixels": picture().float()},
        {"pixels": picture()[None].repeat(2, 1, 1, 1)},
    ],
)
def test_cells_grid_and_pixel_type_are_part_of_the_key(fields):
    store = cache()
    fill(store, request())
    assert provenance(store, request(**fields)) == "miss"


def test_text_that_is_cut_elsewhere_is_another_scope():
    first, second = scope(preprocessing="ab", adapters="c"), scope(preprocessing="a", adapters="bc")
    assert first.resolve().tokens != second.resolve().tokens


def test_a_mask_says_the_same_as_ids():
    store = cache()
    fill(store, request())
    mask = torch.zeros(GRID, GRID, dtype=torch.bool)
    mask[:3] = True
    assert provenance(store, request(background=mask)) == "exact_tokens"


def test_a_known_background_is_matched_before_a_detector_runs():
    store = cache()
    fill(store, request())
    calls = []

    def detect():
        calls.append(1)
        return BACKGROUND

    with store.get_or_compute(request(change(picture(), 15), background=detect), never) as answer:
        assert answer.provenance == "exact_tokens"
        assert answer.background_ids.tolist() == BACKGROUND
    assert not calls
    store.get_or_compute(request(change(picture(), 0), background=detect), encode)
    assert len(calls) == 1


def test_of_two_known_backgrounds_that_match_the_larger_one_is_served():
    store = cache()
    fill(store, request(background=BACKGROUND[:5]), request(), request(background=BACKGROUND[:7]))
    assert store.lookup(request(background=None)).background_ids.tolist() == BACKGROUND
    changed = change(picture(), cell=8)
    assert store.lookup(request(changed, background=None)).background_ids.tolist() == BACKGROUND[:7]


def test_two_pictures_under_one_id_and_a_name_with_new_content_are_told_apart():
    store = cache()
    one, other = picture(1), picture(2)
    fill(store, request(one, caller_id="camera"), request(other, caller_id="camera"))
    for pixels in (one, other):
        with store.lookup(request(pixels, caller_id="camera")) as answer:
            assert answer.provenance == "exact_tokens"
            assert torch.equal(answer.shared().tokens, encode(answer).tokens)
    assert provenance(store, request(picture(3), caller_id="camera")) == "miss"
    assert provenance(store, request(one, caller_id="another name")) == "exact_tokens"


@pytest.mark.timeout(1800)  # seconds on an idle core; of lookups, not of waiting
@pytest.mark.parametrize(("verify", "num_pictures"), [("fingerprints", 10_000), ("pixels", 1_000)])
def test_no_wrong_entry_among_ten_thousand_pictures_that_differ_in_one_patch(verify, num_pictures):
    """Two cells of 2 x 2 pixels; two pixels of the first one spell the picture's number, its only token."""
    store = cache(verify=verify)
    base = torch.randint(0, 256, (1, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))

    def ask(number: int):
        pixels = base.clone()
        pixels[0, 0, 0], pixels[0, 1, 1] = number % 256, number // 256
        return request(pixels, patch_size=2, background=[0, 1])

    known = range(0, num_pictures, num_pictures // 100)
    for number in known:
        store.put(store.lookup(ask(number)), BackgroundValue(tokens=torch.tensor([[float(number)]])))
    served = []
    for number in range(num_pictures):
        with store.lookup(ask(number)) as answer:
            if answer.is_served:
                served.append((number, answer.shared().tokens.item()))
    assert served == [(number, number) for number in known]


@pytest.mark.parametrize("verify", ["fingerprints", "pixels"])
def test_an_entry_that_is_not_what_its_key_says_is_dropped_not_served(verify):
    store = cache(verify=verify)
    fill(store, request())
    (slot,) = list(store._store._memories[0].lru)
    if verify == "pixels":
        slot.value.pixels[0, 0, 0, 0] += 1
    else:
        object.__setattr__(slot.value, "leaves", slot.value.leaves ^ 1)
    assert provenance(store, request()) == "rejected:fingerprint"
    assert provenance(store, request()) == "miss"
    assert store.stats.answers["rejected:fingerprint"] == 1


def test_readers_that_promise_not_to_write_copy_no_byte():
    store = cache()
    fill(store, request(want_kv=True))
    with store.lookup(request(want_kv=True)) as one, store.lookup(request(want_kv=True)) as other:
        pairs = zip(one.shared().tensors.values(), other.shared().tensors.values(), strict=True)
        assert all(first.data_ptr() == second.data_ptr() for first, second in pairs)


def test_a_copy_may_be_written_to_and_nobody_sees_it():
    store = cache()
    fill(store, request(want_kv=True))
    with store.lookup(request(want_kv=True)) as answer:
        answer.copy().kv[0][0].zero_()
        (shared_keys, _), _ = answer.shared().kv
        assert shared_keys.abs().sum() > 0


@pytest.mark.parametrize("inference", [True, False])
def test_a_write_to_shared_tensors_is_found_and_the_entry_dropped(inference):
    store = cache()
    with torch.inference_mode(inference):
        fill(store, request())
        answer = store.lookup(request())
        answer.shared().tokens.add_(1)
        with pytest.raises(RuntimeError, match=r"written to.*answer.copy\(\)"):
            answer.release()
    assert provenance(store, request()) == "miss"
    assert store.stats.written_by_reader == 1


def test_a_write_after_letting_go_is_found_before_the_entry_is_served_again():
    store = cache()
    fill(store, request())
    with store.lookup(request()) as answer:
        kept = answer.shared().tokens
    kept.zero_()
    assert provenance(store, request()) == "miss"


def test_the_value_that_was_put_in_may_be_written_to_afterwards():
    store = cache()
    computed = store.get_or_compute(request(), encode)
    expected = encode(computed).tokens
    computed.shared().tokens.zero_()
    assert torch.equal(store.lookup(request()).shared().tokens, expected)


def test_a_slice_does_not_keep_the_whole_tensor_alive():
    store = cache()
    batch = torch.randn(16, 12, 3)
    answer = store.lookup(request())
    store.put(answer, BackgroundValue(tokens=batch[3]))
    kept = store.lookup(request()).shared().tokens
    assert kept.untyped_storage().nbytes() == kept.nbytes
    assert store.stats.bytes_by_tier["device"] == value_bytes()


def test_pixels_may_be_overwritten_once_the_request_is_made():
    store = cache(verify="pixels")
    buffer = picture(1)
    asked = request(buffer)
    buffer.copy_(picture(2))
    fill(store, asked)
    assert provenance(store, request(picture(1))) == "exact_tokens"
    assert provenance(store, request(picture(2))) == "miss"


def test_a_model_that_changed_while_computing_leaves_nothing_behind():
    store, state = cache(), ["1"]
    changing = scope(model_state=lambda: state[0])

    def encode_and_train(answer):
        state[0] = "2"
        return encode(answer)

    store.get_or_compute(request(scope=changing), encode_and_train)
    assert provenance(store, request(scope=scope(model_state="1"))) == "miss"
    assert provenance(store, request(scope=scope(model_state="2"))) == "miss"
    assert store.stats.discarded == 1


def test_any_change_of_the_model_state_is_a_miss_and_going_back_is_a_hit():
    store, state = cache(), ["1"]
    asked = request(scope=scope(model_state=lambda: state[0]))
    fill(store, asked)
    state[0] = "2"
    assert provenance(store, asked) == "miss"
    state[0] = "1"
    assert provenance(store, asked) == "exact_tokens"


def test_invalidation_by_model_by_tenant_and_of_all():
    store = cache()
    old, tenant = request(scope=scope(model_state="old")), request(scope=scope(cache_salt="b"))
    fill(store, request(), old, tenant)
    assert store.invalidate(model_state="old") == 1
    assert (provenance(store, old), provenance(store, request())) == ("miss", "exact_tokens")
    assert store.invalidate(cache_salt="b") == 1
    assert (provenance(store, tenant), provenance(store, request())) == ("miss", "exact_tokens")
    assert store.invalidate() == 1
    assert provenance(store, request()) == "miss"
    assert store.stats.bytes_by_tier["device"] == 0


def test_what_was_asked_before_an_invalidation_is_not_stored_after_it():
    store = cache()
    answer = store.lookup(request())
    store.invalidate()
    assert not store.put(answer, encode(answer))
    assert provenance(store, request()) == "miss"


def test_a_chain_of_pictures_hits_only_behind_the_same_pictures():
    """Frames of an episode: the KV of the second frame depends on the first one, its tokens do not."""
    store = cache()
    everything = list(range(16))

    def ask(pixels, where):
        return request(pixels, background=everything, want_kv=True, scope=where)

    def walk(*seeds):
        where, seen = scope(prefix="system"), []
        for seed in seeds:
            with store.get_or_compute(ask(picture(seed), where), encode_with_kv) as answer:
                seen.append(answer.provenance)
                where = answer.following_scope()
        return seen

    assert walk(1, 2) == ["miss", "miss"]
    assert walk(1, 2, 3) == ["exact_kv", "exact_kv", "miss"]
    assert walk(2, 1) == ["exact_tokens", "exact_tokens"]


def test_a_picture_of_objects_only_is_bypassed_and_stored_nowhere():
    store = cache()
    for _ in range(2):
        answer = store.get_or_compute(request(background=[]), encode)
        assert answer.provenance == "bypass:no_background"
        assert answer.object_ids.tolist() == list(range(16))
        assert answer.shared().tokens.shape == (0, 3)
    assert store.stats.entries_by_tier["device"] == 0


def test_a_picture_of_background_only_leaves_no_objects():
    store = cache()
    fill(store, request(background=range(16)))
    assert store.lookup(request(background=range(16))).object_ids.tolist() == []


def test_cells_of_several_patches_fill_the_last_row_with_zeros():
    """Five patches a side in cells of 2 x 2: 3 x 3 cells, and a pixel that no patch holds changes nothing."""
    store = cache()
    pixels = torch.randint(0, 256, (3, 21, 21), dtype=torch.uint8)
    asked = request(pixels, cell=2, background=range(9))
    assert (asked.grid.rows, asked.grid.cols, asked.grid.cell_pixels) == (3, 3, 8)
    store.get_or_compute(asked, lambda _: BackgroundValue(tokens=torch.zeros(9, 1)))
    unseen, seen = pixels.clone(), pixels.clone()
    unseen[:, 20, :] += 1
    seen[:, 19, :] += 1
    assert provenance(store, request(unseen, cell=2, background=range(9))) == "exact_tokens"
    assert provenance(store, request(seen, cell=2, background=range(9))) == "miss"


def test_pixels_of_every_dtype_have_fingerprints():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
        asked = request(picture().to(dtype))
        assert asked.leaves.shape == (16, 32)
        assert len({leaf.tobytes() for leaf in asked.leaves}) == 16


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: request(caller_id="x" * 129), "129 characters"),
        (lambda: request(caller_id=""), "0 characters"),
        (lambda: scope(cache_salt="x" * 129), "129 characters"),
        (lambda: scope(model_state="").resolve(), "non-empty"),
        (lambda: scope(model_state=lambda: 3).resolve(), "model_state is 3"),
        (lambda: request(picture()[0]), "channels, height, width"),
        (lambda: request(picture()[:, :0]), "at least one of each"),
        (lambda: request(patch_size=17).grid, "no whole patch of 17x17"),
        (lambda: request(cell=0), "at least 1 each"),
        (lambda: request(background=[3, 2]).asked_ids, "not strictly ascending"),
        (lambda: request(background=[2, 2]).asked_ids, "not strictly ascending"),
        (lambda: request(background=[16]).asked_ids, "expected 0 to 15"),
        (lambda: request(background=[-1]).asked_ids, "expected 0 to 15"),
        (lambda: request(background=np.array([0.5])).asked_ids, "whole numbers"),
        (lambda: request(background=torch.zeros(9, dtype=torch.bool)).asked_ids, "9 cells, the picture has 16"),
        (lambda: request(moved=torch.zeros(9, dtype=torch.bool)), "moved has 9 cells"),
        (lambda: BackgroundValue(), "empty"),
        (lambda: BackgroundValue(tokens=torch.zeros(1, 1, requires_grad=True)), "torch.no_grad"),
        (lambda: BackgroundValue(kv=((torch.zeros(1, 2, 3), torch.zeros(1, 4, 3)),)), r"lengths \[2, 4\]"),
        (lambda: cache().put(cache().lookup(request()), BackgroundValue(tokens=torch.zeros(1, 1).half())), "float16"),
        (lambda: cache().get_or_compute(request(background=None), encode), "names none"),
        (lambda: cache().get_or_compute_many([request()], lambda _: []), "0 values for 1"),
        (lambda: cache().lookup(request()).shared(), "holds no value"),
        (lambda: cache().lookup(request(background=None)).object_ids, "not known"),
        (lambda: cache(device_bytes=2**60), "more than the"),
        (lambda: cache(host_bytes=2**60), "more than the"),
        (lambda: cache(device_bytes=-1), "expected 0 or more"),
        (lambda: cache(disk_bytes=1), "give both"),
        (lambda: cache(write_through=True), "without a disk tier"),
        (lambda: cache().invalidate(model_state=""), "non-empty"),
        (lambda: cache(max_patch_sets=0), "at least 1"),
        (lambda: cache(min_match_share=1.5), "expected a share of 0 to 1"),
        (lambda: cache(detect_every=-1), "or 0 for never"),
    ],
)
def test_bad_input_is_named(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_released_answer_gives_no_more_values():
    store = cache()
    fill(store, request())
    answer = store.lookup(request())
    answer.release()
    answer.release()
    with pytest.raises(ValueError, match="was released"):
        answer.shared()
