"""Where pixels go: by hand for small pictures, and against the pixels themselves for every image mode."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.batch import VisualSpec
from llava.mm_utils import to_uint8_tensor
from llava.scene.geometry import AxisMap, one_view, picture_views
from llava.scene.patch_mask import touched_bins
from llava.utils.anyres import AnyresRule
from llava.utils.cutting import cut_into_tiles, cut_views
from llava.utils.dynamic_s2 import DynamicS2Rule

SIDE = 16
ANYRES = AnyresRule(resolutions=((16, 32), (32, 16), (32, 32)), patches=4, side=SIDE)
S2 = DynamicS2Rule(scales=(16, 32), patches=4, max_tiles=6)
SPECS = {
    "resize": VisualSpec(image_size=SIDE, tokens_per_image=16, aspect_mode="resize"),
    "pad": VisualSpec(image_size=SIDE, tokens_per_image=16, aspect_mode="pad"),
    "crop": VisualSpec(image_size=SIDE, tokens_per_image=16, aspect_mode="crop"),
    "dynamic": VisualSpec(image_size=SIDE, tokens_per_image=16, aspect_mode="dynamic", max_tiles=4),
    "dynamic_s2": VisualSpec(image_size=SIDE, tokens_per_image=16, aspect_mode="dynamic_s2", dynamic_s2=S2),
    "anyres": VisualSpec(image_size=SIDE, tokens_per_image=16, aspect_mode="anyres", anyres=ANYRES),
}


def views_as_pixels(picture: np.ndarray, spec: VisualSpec) -> np.ndarray:
    """[views, side, side, 3] by the code that prepares pictures for models."""
    if spec.view_rule is not None:
        pixels = cut_views(picture, spec.view_rule)[0]
    elif spec.aspect_mode == "dynamic":
        pixels = cut_into_tiles(picture, spec)
    else:
        pixels = to_uint8_tensor(picture, spec)[None]
    return pixels.permute(0, 2, 3, 1).numpy()


def test_a_picture_of_the_towers_size_stays_where_it_is():
    axis = one_view(4, 4, 4).rows
    assert np.array_equal(axis.influence(1), np.eye(4, dtype=bool))
    assert np.array_equal(axis.overlap(2), [[4, 4, 0, 0], [0, 0, 4, 4]])  # of 2 * 4 = 8 units per bin


def test_half_the_size_puts_two_pixels_into_one_and_the_kernel_reaches_three_further():
    axis = AxisMap(source=8, before=0, padded=8, resized=4, start=0, view=4)
    assert np.array_equal(axis.overlap(1)[1] / 8, [0, 0, 0.5, 0.5, 0, 0, 0, 0])
    # the kernel around 3.0 is 4 source pixels wide on both sides
    assert np.flatnonzero(axis.influence(1)[1]).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_padding_centres_and_the_odd_pixel_goes_below():
    (view,) = picture_views(SPECS["pad"], 5, 16)
    assert (view.rows.before, view.columns.before) == (5, 0)
    shown = np.flatnonzero(view.rows.influence(1).any(axis=1))
    assert shown.tolist() == [5, 6, 7, 8, 9]


def test_cropping_forgets_what_lies_outside_the_middle():
    (view,) = picture_views(SPECS["crop"], 16, 24)
    assert np.flatnonzero(view.columns.influence(1).any(axis=0)).tolist() == list(range(4, 20))


def test_pixels_beyond_the_last_whole_patch_belong_to_no_patch():
    axis = one_view(10, 10, 10).rows
    assert axis.influence(4).shape == (2, 10)
    assert not axis.influence(4)[:, 8:].any()


@pytest.mark.parametrize("mode", SPECS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_pixel_of_a_view_changes_only_where_the_map_says_so(mode, data):
    height, width = data.draw(st.integers(1, 70), "height"), data.draw(st.integers(1, 70), "width")
    top, left = data.draw(st.integers(0, height - 1), "top"), data.draw(st.integers(0, width - 1), "left")
    bottom, right = data.draw(st.integers(top + 1, height), "bottom"), data.draw(st.integers(left + 1, width), "right")
    noise = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    before = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    after = before.copy()
    after[mask] = 255 - after[mask]
    spec = SPECS[mode]
    changed = (views_as_pixels(before, spec) != views_as_pixels(after, spec)).any(axis=-1)
    views = picture_views(spec, height, width)
    touched = np.stack([touched_bins(mask, view, 1) for view in views])
    assert changed.shape == touched.shape
    assert not (changed & ~touched).any()


@pytest.mark.parametrize("mode", SPECS)
def test_the_map_is_tight(mode):
    """An object inverted in a picture of noise: most of what is touched has changed (measured 1.0 to 1.31)."""
    before = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), bool)
    mask[8:20, 16:36] = True
    after = before.copy()
    after[mask] = 255 - after[mask]
    spec = SPECS[mode]
    changed = (views_as_pixels(before, spec) != views_as_pixels(after, spec)).any(axis=-1)
    touched = np.stack([touched_bins(mask, view, 1) for view in picture_views(spec, 32, 48)])
    assert 0 < touched.sum() <= 1.35 * changed.sum()


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        picture_views(SPECS["resize"], 0, 5)


def test_a_tiled_mode_without_its_rule_is_refused():
    with pytest.raises(ValueError, match="no anyres rule"):
        picture_views(VisualSpec(image_size=16, tokens_per_image=16, aspect_mode="anyres"), 8, 8)


def test_bins_larger_than_the_view_are_refused():
    with pytest.raises(ValueError, match="bins of 20 pixels"):
        one_view(16, 8, 8).rows.influence(20)


def test_the_published_preparation_with_pil_obeys_the_same_map():
    """`process_images` resizes with PIL instead of torch; its kernel is no wider."""
    from types import SimpleNamespace

    from PIL import Image

    from llava.mm_utils import process_images

    def processor(picture, return_tensors):
        pixels = torch.from_numpy(np.array(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        return {"pixel_values": [pixels.permute(2, 0, 1).float()]}

    processor.image_mean, processor.size = (0.5, 0.5, 0.5), {"height": SIDE, "width": SIDE}  # pyright: ignore
    noise = np.random.default_rng(0)
    picture = noise.integers(0, 256, (41, 23, 3), dtype=np.uint8)
    mask = np.zeros((41, 23), bool)
    mask[10:17, 3:9] = True
    other = picture.copy()
    other[mask] = 255 - other[mask]
    for mode in ("resize", "pad"):
        config = SimpleNamespace(image_aspect_ratio=mode)
        first, second = (process_images([Image.fromarray(p)], processor, config)[0] for p in (picture, other))
        changed = (first != second).any(dim=0).numpy()
        (view,) = picture_views(SPECS[mode], 41, 23)
        assert changed.any() and not (changed & ~touched_bins(mask, view, 1)).any()
