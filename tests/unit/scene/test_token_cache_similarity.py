"""Similar backgrounds: the largest difference decides, the camera is watched, and nothing similar passes for exact."""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.scene.cache.camera import CameraMotion, camera_motion
from llava.scene.cache.grid import CellGrid
from llava.scene.cache.guard import cell_differences, differs
from llava.scene.token_cache import BackgroundTokenCache, BackgroundValue, estimate_noise
from tests.unit.scene.token_cache_room import BACKGROUND, CELL, NOISE, SIDE, ask, mark, similar, store_of, view
from tests.unit.scene.token_cache_toy import cache, encode, encode_with_kv, fill, provenance, scope


@functools.cache
def room() -> BackgroundTokenCache:
    """The empty room's cache, made once for all examples of a property."""
    return store_of(view(), refresh_every=10_000)


def test_noise_alone_is_served_and_says_that_it_is_guarded():
    store = store_of(view(noise=NOISE, noise_seed=1))
    with store.lookup(ask(view(noise=NOISE, noise_seed=2))) as answer:
        assert answer.provenance == "guarded"
        assert answer.stale_ids.tolist() == []
        assert answer.object_ids.tolist() == list(range(48, 64))
        assert answer.saved_tokens == 48
    assert store.stats.answers == {"miss": 1, "guarded": 1}


def test_without_opting_in_noise_is_a_miss():
    store = cache()
    fill(store, ask(view(), background=BACKGROUND))
    assert provenance(store, ask(view(noise=NOISE))) == "miss"


def test_a_request_may_insist_on_an_exact_answer():
    store = store_of(view())
    assert provenance(store, ask(view(noise=NOISE), allow_guarded=False)) == "miss"
    assert provenance(store, ask(view(), allow_guarded=False)) == "exact_tokens"


def test_one_pixel_that_changed_makes_its_cell_an_object():
    store = store_of(view())
    with store.lookup(ask(mark(view(), 3, 40))) as answer:
        assert answer.provenance == "guarded"
        assert answer.stale_ids.tolist() == [3, 40]
        assert answer.object_ids.tolist() == [3, 40, *range(48, 64)]
        assert answer.saved_tokens == 46


def test_the_largest_difference_decides_not_the_mean():
    """60 levels in one of 432 values are 0.14 on average, far below the noise of 2."""
    grid = CellGrid.of((1, 3, SIDE, SIDE), CELL, 1)
    before, after = view()[None], mark(view(), 3)[None]
    differences = cell_differences(before, after, grid)
    assert differences[3] == 60
    assert differences.sum() == 60
    assert (before.float() - after.float()).abs().mean() < 0.01


def test_a_faint_change_is_found_where_it_is_wide():
    """8 levels are within six standard deviations of one pixel's noise (17), not of 4 x 4 pixels' (4.2)."""
    faint = view().int()
    faint[:, :CELL, :CELL] += 8
    faint = faint.clamp(0, 255).to(torch.uint8)
    assert store_of(view(), windows=(1,)).lookup(ask(faint)).stale_ids.tolist() == []
    assert store_of(view(), windows=(1, 4)).lookup(ask(faint)).stale_ids.tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(
    cell=st.integers(0, 47), y=st.integers(0, CELL - 1), x=st.integers(0, CELL - 1), channel=st.integers(0, 2),
    by=st.integers(18, 127), noise_seed=st.integers(0, 99),
)  # fmt: skip
def test_a_patch_in_which_one_pixel_differs_is_never_taken_from_the_cache(cell, y, x, channel, by, noise_seed):
    """Six deviations of two pixels' noise are 17 levels: 18 levels in one value of one pixel are more."""
    seen, (row, column) = view(), divmod(cell, SIDE // CELL)
    place = channel, row * CELL + y, column * CELL + x
    seen[place] = seen[place] + by if seen[place] < 128 else seen[place] - by
    quiet = torch.from_numpy(np.random.default_rng(noise_seed).integers(-1, 2, tuple(seen.shape)))
    quiet[place] = 0
    with room().lookup(ask((seen.int() + quiet).clamp(0, 255).to(torch.uint8))) as answer:
        assert answer.provenance == "guarded"
        assert answer.stale_ids.tolist() == [cell] and cell in answer.object_ids.tolist()


def test_windows_do_not_blame_a_cell_for_its_neighbour():
    grid = CellGrid.of((1, 1, 28, 28), 14, 1)
    before, after = torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 28, 28)
    after[:, :, :14, :14] = 100
    assert cell_differences(before, after, grid, (1, 4)).tolist() == [400, 0, 0, 0]


@pytest.mark.parametrize(("stale", "allowed", "expected"), [(4, 0.1, "guarded"), (5, 0.1, "rejected:stale")])
def test_a_background_is_refused_beyond_the_allowed_share_of_stale_cells(stale, allowed, expected):
    store = store_of(view(), max_stale_fraction=allowed)  # of 48 cells
    assert provenance(store, ask(mark(view(), *range(stale)))) == expected


def test_cells_that_the_request_calls_objects_are_computed_though_they_look_the_same():
    store = store_of(view())
    with store.lookup(ask(view(noise=NOISE), background=BACKGROUND[2:])) as answer:
        assert answer.provenance == "guarded"
        assert answer.object_ids.tolist() == [0, 1, *range(48, 64)]
        assert answer.stale_ids.tolist() == []


def test_a_lighting_change_is_refused():
    brighter = (view().int() + 12).clamp(0, 255).to(torch.uint8)
    assert provenance(store_of(view()), ask(brighter)) == "rejected:stale"


def test_not_a_number_is_a_difference():
    grid = CellGrid.of((1, 1, 8, 8), 4, 1)
    before, broken = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    broken[0, 0, 0, 0] = float("nan")
    changed = differs(before, broken, grid, noise=1.0, sigmas=6.0, windows=(1, 4))
    assert changed.tolist() == [True, False, False, False]


@pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -2), (5, 7)])
def test_a_camera_that_moved_by_part_of_a_cell_is_bypassed(down, right):
    store = store_of(view())
    assert provenance(store, ask(view(down, right), caller_id="arm")) == "bypass:camera_motion"


def test_a_camera_that_moved_by_whole_cells_is_followed():
    """The scene shows one cell further right: cell (r, c) is seen at (r, c + 1), and the last column left."""
    store = store_of(view(), max_stale_fraction=0.2)
    with store.lookup(ask(view(right=CELL, noise=NOISE), caller_id="arm")) as answer:
        assert answer.provenance == "guarded"
        assert answer.shift == (0, 1)
        assert answer.stale_ids.tolist() == [7, 15, 23, 31, 39, 47]
        assert answer.object_ids.tolist() == [0, 8, 16, 24, 32, 40, *range(48, 64)]
        assert answer.background_ids.tolist() == BACKGROUND


def test_motion_is_not_followed_beyond_the_limit_or_where_too_much_leaves_the_picture():
    assert (
        provenance(store_of(view(), max_shift_cells=0), ask(view(right=CELL), caller_id="arm"))
        == "bypass:camera_motion"
    )
    assert (
        provenance(store_of(view(), max_stale_fraction=0.1), ask(view(right=CELL), caller_id="arm"))
        == "bypass:camera_motion"
    )


def test_another_scene_is_no_camera_motion():
    store = store_of(view(), min_signature=-1.0)
    assert provenance(store, ask(view(seed=7))) == "rejected:stale"


def test_a_scene_that_resembles_nothing_is_a_miss():
    assert provenance(store_of(view()), ask(view(seed=7))) == "miss"


def test_motion_is_measured_to_a_part_of_a_pixel_and_blank_pictures_have_none():
    def light(pixels):
        return pixels[None].float().mean(1).numpy()

    motion = camera_motion(light(view()), light(view(5, -7, noise=NOISE)))
    assert motion is not None
    assert (motion.down, motion.right) == pytest.approx((5, -7), abs=0.3)
    assert motion.whole_cells(CELL) is None
    assert CameraMotion(12.1, -23.9).whole_cells(12) == (1, -2)
    assert camera_motion(light(view()), np.zeros((1, SIDE, SIDE), dtype=np.float32)) is None


def test_frames_of_a_clip_that_move_apart_share_no_motion():
    def light(*pixels):
        return torch.stack(pixels).float().mean(1).numpy()

    together = camera_motion(light(view(), view()), light(view(12, 0), view(12, 0)))
    assert together is not None and together.whole_cells(CELL) == (1, 0)
    assert camera_motion(light(view(), view()), light(view(12, 0), view(0, 12))) is None


def test_a_clip_has_one_background_over_all_its_frames():
    clip = torch.stack([view(), view(seed=1)])
    background = [*range(48), *range(64, 112)]
    store = cache(similarity=similar())
    fill(store, ask(clip, background=background))
    changed = clip.clone()
    changed[1] = mark(clip[1], 5)
    assert store.lookup(ask(changed)).stale_ids.tolist() == [69]


def test_what_a_codec_moved_counts_as_changed_without_a_look_at_its_pixels():
    store = store_of(view())
    moved = torch.zeros(8, 8, dtype=torch.bool)
    moved[0, :3] = True
    with store.lookup(ask(view(noise=NOISE), moved=moved)) as answer:
        assert answer.stale_ids.tolist() == [0, 1, 2]
    moved[0:2] = True
    assert provenance(store, ask(view(noise=NOISE), moved=moved)) == "rejected:stale"


def test_an_old_background_is_computed_again_and_is_exact_all_the_while():
    now = [1000.0]
    store = store_of(view(), clock=lambda: now[0], max_age_s=10)
    now[0] += 9
    assert provenance(store, ask(view(noise=NOISE))) == "guarded"
    now[0] += 2
    assert provenance(store, ask(view(noise=NOISE))) == "rejected:age"
    assert provenance(store, ask(view())) == "exact_tokens"


def test_after_some_guarded_answers_the_background_is_refreshed():
    store = store_of(view(), refresh_every=3)
    seen = []
    for index in range(8):
        asked = ask(view(noise=NOISE, noise_seed=index), background=lambda: BACKGROUND)
        with store.get_or_compute(asked, encode) as answer:
            seen.append(answer.provenance)
    assert seen == ["guarded"] * 3 + ["rejected:refresh"] + ["guarded"] * 3 + ["rejected:refresh"]


def test_a_guarded_value_is_never_stored_as_exact():
    store = store_of(view(), want_kv=True)
    noisy = ask(view(noise=NOISE), want_kv=True)
    with store.lookup(noisy) as answer:
        assert answer.provenance == "guarded"
        with pytest.raises(ValueError, match="never enters the cache"):
            store.put(answer, answer.copy())
    assert provenance(store, ask(view(noise=NOISE), want_kv=True, allow_guarded=False)) == "miss"


def test_what_follows_a_guarded_background_is_not_stored_either():
    store = store_of(view(), want_kv=True)
    with store.lookup(ask(view(noise=NOISE), want_kv=True)) as answer:
        behind = answer.following_scope()
    next_picture = ask(view(seed=3), background=BACKGROUND, want_kv=True, scope=behind, allow_guarded=False)
    for expected in ("miss", "exact_tokens", "exact_tokens"):  # tokens do not depend on what stands before them
        with store.get_or_compute(next_picture, encode_with_kv) as answer:
            assert answer.provenance == expected
            assert not answer.following_scope().exact


def test_a_camera_finds_its_last_background_though_the_signature_does_not():
    store = cache(similarity=similar(min_signature=1.1))
    fill(store, ask(view(), background=BACKGROUND, caller_id="door"))
    assert provenance(store, ask(view(noise=NOISE), caller_id="door")) == "guarded"
    assert provenance(store, ask(view(noise=NOISE), caller_id="hall")) == "miss"
    other_tenant = ask(view(noise=NOISE), caller_id="door", scope=scope(cache_salt="b"))
    assert provenance(store, other_tenant) == "miss"


def test_similar_backgrounds_are_found_again_after_a_restart(tmp_path):
    fields = {"similarity": similar(), "disk_folder": tmp_path, "disk_bytes": 2**20, "write_through": True}
    fill(cache(**fields), ask(view(), background=BACKGROUND))
    with cache(**fields).lookup(ask(view(noise=NOISE))) as answer:
        assert (answer.provenance, answer.tier) == ("guarded", "disk")


def test_evicted_backgrounds_are_forgotten_by_the_search():
    store = cache(similarity=similar(), device_bytes=50_000)
    for seed in range(150):
        pixels = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        store.get_or_compute(
            ask(pixels, background=range(4)), lambda _: BackgroundValue(tokens=torch.zeros(4, 500))
        ).release()
    assert store._finder._similar is not None
    assert len(store._finder._similar) < 140


def test_noise_is_measured_on_a_still_clip_in_which_something_moves():
    frames = torch.stack([view(noise=3.0, noise_seed=seed) for seed in range(4)])
    frames[2, :, :20, :20] = 255
    assert estimate_noise(frames) == pytest.approx(3.0, rel=0.1)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is not None, reason="faiss is installed")
def test_faiss_that_is_missing_is_named_with_its_command():
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        cache(similarity=similar(index="faiss"))


def test_faiss_finds_what_numpy_finds():
    pytest.importorskip("faiss", reason="faiss is not installed")
    from llava.scene.cache.signature import FaissIndex, NumpyIndex

    vectors = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    indexes = FaissIndex(), NumpyIndex()
    for index in indexes:
        for number, vector in enumerate(vectors):
            index.add(str(number), vector)
        index.discard("7")
    found = [[key for key, _ in index.nearest(vectors[7], 5)] for index in indexes]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"max_stale_fraction": 1.0}, "less than 1"),
        ({"windows": ()}, "windows are"),
        ({"windows": (0,)}, "windows are"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"max_age_s": 0.0}, "max_age_s is 0"),
        ({"max_shift_cells": -1}, "max_shift_cells is -1"),
    ],
)
def test_bad_settings_are_named(fields, told):
    with pytest.raises(ValueError, match=told):
        similar(**fields)


def test_noise_of_one_picture_cannot_be_measured():
    with pytest.raises(ValueError, match="at least two"):
        estimate_noise(view()[None])
