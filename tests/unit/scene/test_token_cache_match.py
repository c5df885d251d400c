"""Match first, detect on a miss: when a known background is taken without asking what the objects are."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scene.token_cache_toy import PATCH, cache, encode, fill, picture, provenance, request


def test_padding_that_pictures_share_is_no_match_before_the_detector_ran():
    """Rows 0 and 3 are grey bars; a detector once failed and took all the rest for an object."""
    store, bars = cache(), [0, 1, 2, 3, 12, 13, 14, 15]

    def padded(seed: int) -> torch.Tensor:
        pixels = picture(seed)
        pixels[:, :PATCH], pixels[:, -PATCH:] = 128, 128
        return pixels

    fill(store, request(padded(1), background=bars))
    calls = []

    def detect() -> list[int]:
        calls.append(1)
        return list(range(12))

    with store.get_or_compute(request(padded(2), background=detect), encode) as answer:
        assert answer.provenance == "miss" and answer.background_ids.tolist() == list(range(12))
    assert len(calls) == 1
    assert provenance(store, request(padded(2), background=detect)) == "exact_tokens" and len(calls) == 1
    assert provenance(store, request(padded(3), background=None)) == "exact_tokens"  # nobody could find more
    assert provenance(cache(), request(torch.zeros(3, 16, 16), background=detect)) == "miss"


def test_a_blank_picture_matches_though_it_tells_nothing():
    store, blank = cache(), torch.zeros(3, 16, 16, dtype=torch.uint8)
    fill(store, request(blank))
    assert provenance(store, request(blank, background=lambda: 1 / 0)) == "exact_tokens"


def test_a_background_that_has_grown_is_noticed_when_the_detector_is_asked_once_more():
    store, everything = cache(detect_every=4), list(range(16))
    fill(store, request())  # something stood before the last row
    seen = []
    for _ in range(6):
        with store.get_or_compute(request(background=lambda: everything), encode) as answer:
            seen.append((answer.provenance, len(answer.background_ids)))
    assert seen == [("exact_tokens", 12)] * 3 + [("miss", 16)] + [("exact_tokens", 16)] * 2


@settings(max_examples=40, deadline=None)
@given(cell=st.integers(0, 15), y=st.integers(0, 3), x=st.integers(0, 3), channel=st.integers(0, 2))
def test_a_cell_is_blank_as_long_as_no_pixel_of_any_channel_differs(cell: int, y: int, x: int, channel: int):
    """Channels may differ from each other: that is a colour."""
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].repeat(1, 16, 16)
    assert request(pixels).is_blank.all()
    pixels[channel, cell // 4 * PATCH + y, cell % 4 * PATCH + x] = 99
    assert np.flatnonzero(~request(pixels).is_blank).tolist() == [cell]
