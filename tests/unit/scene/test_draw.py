"""Pictures for people: the right panels, the right pixels, one page that stands alone."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from llava.batch import VisualSpec
from llava.mm_utils import to_uint8_tensor
from llava.scene.detections import Detections
from llava.scene.draw import HIT_COLOURS, Scene, draw_scene, main, read_hit_map, write_scene
from llava.scene.geometry import picture_views
from llava.scene.patch_mask import PatchRule
from llava.scene.view_pixels import fill_colour, view_pixels
from llava.utils.anyres import AnyresRule
from llava.utils.cutting import cut_anyres, cut_into_tiles, cut_scales
from llava.utils.dynamic_s2 import DynamicS2Rule

ANYRES = AnyresRule(resolutions=((16, 32), (32, 16), (32, 32)), patches=4, side=16)
S2 = DynamicS2Rule(scales=(16, 32), patches=4, max_tiles=6)
NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def spec(mode: str, side: int = 16) -> VisualSpec:
    rules = {"anyres": ANYRES if mode == "anyres" else None, "dynamic_s2": S2 if mode == "dynamic_s2" else None}
    return VisualSpec(image_size=side, tokens_per_image=1, aspect_mode=mode, max_tiles=4, **rules)  # pyright: ignore


def scene(hit_map=None, mode: str = "resize", found: Detections | None = None) -> Scene:
    """A picture of 16 x 16 with one object in the upper left; patches of 4, cells of 2 x 2."""
    shown = np.full((16, 16, 3), 90, np.uint8)
    shown[:4, :4] = 200
    found = Detections.of(16, 16, [[0, 0, 4, 4]], names=["cup"]) if found is None else found
    rule = PatchRule(patch_size=4, cell=2)
    return Scene(picture=shown, found=found, spec=spec(mode), rule=rule, hit_map=hit_map)


@pytest.mark.parametrize("mode", ["resize", "pad", "crop", "dynamic", "anyres", "dynamic_s2"])
def test_a_view_has_the_pixels_that_the_tower_reads(mode):
    wanted = spec(mode)
    if mode == "dynamic":
        expected = cut_into_tiles(NOISE, wanted)
    elif mode == "anyres":
        expected = cut_anyres(NOISE, ANYRES)[0]
    elif mode == "dynamic_s2":
        expected = cut_scales(NOISE, S2)[0]
    else:
        expected = to_uint8_tensor(NOISE, wanted)[None]
    views = picture_views(wanted, 37, 53)
    drawn = np.stack([view_pixels(NOISE, view, fill_colour(wanted)) for view in views])
    assert np.array_equal(drawn, expected.permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match="of a picture of 37 x 53, this one has 5 x 5"):
        view_pixels(NOISE[:5, :5], views[0], (0, 0, 0))


def test_the_panels_tell_what_became_of_the_picture():
    first, view = draw_scene(scene())
    assert [panel.title for panel in first] == ["original", "detector", "combined mask"]
    assert [panel.title for panel in view] == ["model input", "mask at model size", "patch mask", "background / object"]
    assert first[1].note == "1 cup" and first[2].note == "6.2% of the pixels"
    assert view[3].note == "3 / 1 tokens (1 = 2 x 2 patches)"
    assert first[0].pixels.shape == (336, 336, 3)  # 21 times larger
    mask = view[1].pixels[::21, ::21, 0] == 255
    assert mask[:4, :4].all() and mask.sum() == 16
    patches = view[2].pixels[42::84, 42::84, 0] == 255  # the middle of every patch
    assert np.array_equal(patches, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_failure_and_no_object_are_said_in_words():
    failed = draw_scene(scene(found=Detections.failed(16, 16, "boom")))
    assert failed[0][1].note == "failed, taken as a whole: boom" and failed[1][3].note.startswith("0 / 4 tokens")
    unseen = draw_scene(scene(found=Detections.of(16, 16, [[4, 4, 4, 9], [30, 30, 40, 40]])))
    assert np.array_equal(unseen[0][1].pixels, unseen[0][0].pixels)  # no area, and outside the picture
    nothing = draw_scene(scene(found=Detections.of(16, 16)))
    assert nothing[0][1].note == "no objects" and nothing[1][3].note.startswith("4 / 0 tokens")


@pytest.mark.parametrize("size", [2, 4])
def test_the_hit_map_colours_cells_or_patches(size):
    hits = np.full((size, size), "reused", dtype="<U10")
    hits[0, 0], hits[-1, -1] = "recomputed", "stale"
    panel = draw_scene(scene(hit_map=hits))[1][-1]
    assert panel.title == "cache" and panel.note == f"{size**2 - 2} reused, 1 recomputed, 1 stale"
    middle = 336 // size // 2
    for place, name in ((middle, "recomputed"), (336 - middle, "stale")):
        colour = panel.pixels[place - 3, place - 3].astype(int)
        near = min(HIT_COLOURS, key=lambda n: np.abs(colour - HIT_COLOURS[n]).sum())
        assert near == name


def test_hit_maps_of_another_shape_or_language_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(3, 3\), expected patches or cells"):
        draw_scene(scene(hit_map=np.full((3, 3), "reused")))
    with pytest.raises(ValueError, match="says \\['fresh'\\]"):
        draw_scene(scene(hit_map=np.full((2, 2), "fresh")))
    with pytest.raises(ValueError, match="with 1 views"):
        draw_scene(scene(hit_map=np.full((2, 2, 2), "reused")))
    (tmp_path / "h.json").write_text(json.dumps([["reused", "stale"], ["stale", "stale"]]))
    assert read_hit_map(tmp_path / "h.json").tolist() == [["reused", "stale"], ["stale", "stale"]]
    np.save(tmp_path / "h.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="holds float64"):
        read_hit_map(tmp_path / "h.npy")


def test_objects_of_a_picture_of_another_size_are_refused():
    with pytest.raises(ValueError, match="of a picture of 8 x 8, this one has 16 x 16"):
        scene(found=Detections.of(8, 8))


def test_the_page_stands_alone(tmp_path):
    png, page = write_scene(scene(mode="dynamic"), tmp_path, "hall", ["weights: <none>"])
    text = page.read_text()
    assert Image.open(png).size[0] > 1000
    assert text.count("data:image/png;base64,") == 7 and "&lt;none&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_the_command_draws_a_clip_and_says_what_it_wrote(tmp_path, capsys):
    for step in range(4):
        shown = np.full((32, 32, 3), 50, np.uint8)
        shown[8:16, 6 * step : 6 * step + 8] = 250
        Image.fromarray(shown).save(tmp_path / f"{step}.png")
    pictures = [str(tmp_path / f"{step}.png") for step in range(4)]
    out = tmp_path / "out"
    model = ["--side", "32", "--patch-size", "8", "--cell", "2"]
    assert main([*pictures, "--out", str(out), "--detector", "motion", *model]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"wrote {out / '0.png'}"
    assert sorted(path.name for path in out.iterdir()) == [f"{s}.{kind}" for s in range(4) for kind in ("html", "png")]
    assert main([pictures[0], "--out", str(out), "--detector", "motion", *model]) == 1
    assert "motion cannot be seen in 1 picture" in capsys.readouterr().err
