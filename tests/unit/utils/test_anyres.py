"""Token counts of pictures of any size, against transformers' own processors."""

import random

import pytest
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from llava.utils.anyres import AnyresRule, best_resolution, most_tiles_of

NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ONEVISION = tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))


def peer_of(kind: type, resolutions, patch: int, extra: int, aspect: str):
    """A processor without tokenizer: only its arithmetic is asked."""
    peer = kind.__new__(kind)
    peer.patch_size, peer.num_additional_image_tokens, peer.vision_feature_select_strategy = patch, extra, "full"
    peer.vision_aspect_ratio, peer.num_image_tokens = aspect, (384 // 14) ** 2
    peer.image_processor = type("Pinpoints", (), {"image_grid_pinpoints": [list(r) for r in resolutions]})()
    return peer


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (LlavaNextProcessor, AnyresRule(resolutions=NEXT, patches=24, side=336)),
        (LlavaOnevisionProcessor, AnyresRule(resolutions=ONEVISION, patches=27, side=384, most_tiles=9)),
    ],
)
def test_a_thousand_random_sizes(kind, rule):
    aspect = f"anyres_max_{rule.most_tiles}"
    peer, draw = peer_of(kind, rule.resolutions, 14, 0, aspect), random.Random(0)
    for _ in range(1000):
        height, width = draw.randint(10, 2500), draw.randint(10, 2500)
        expected = peer._get_number_of_features(height, width, rule.side, rule.side)
        assert rule.layout(height, width).num_tokens == expected, (height, width)


def test_height_comes_first():
    assert best_resolution(300, 1000, NEXT) == (336, 1008)
    layout = AnyresRule(resolutions=NEXT, patches=24, side=336).layout(300, 1000)
    assert (layout.rows, layout.columns) == (1, 3)
    assert layout.num_tiles == 4


def test_merging_without_newlines_keeps_the_letterbox():
    rule = AnyresRule(resolutions=NEXT, patches=24, side=336, merge="spatial")
    assert rule.layout(300, 1000).num_tokens == 576 + 24 * 72
    flat = AnyresRule(resolutions=NEXT, patches=24, side=336, merge="flat")
    assert flat.layout(300, 1000).num_tokens == 576 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolutions": ()}, "needs image_grid_pinpoints"),
        ({"resolutions": ((336, 700),)}, r"\(336, 700\) is no multiple"),
        ({"merge": "maxpool2x2"}, "mm_patch_merge_type is 'maxpool2x2'"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AnyresRule(**{"resolutions": NEXT, "patches": 24, "side": 336, **change})


def test_the_words_of_the_config():
    assert most_tiles_of("anyres") is None
    assert most_tiles_of("anyres_max_9") == 9
    with pytest.raises(ValueError, match="expected anyres or anyres_max_N"):
        most_tiles_of("anyres_9")
