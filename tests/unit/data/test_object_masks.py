"""Masks beside pictures become patch masks of samples; what is missing or broken costs one picture its objects."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from llava.batch import VisualSpec
from llava.data.base import DataOptions
from llava.data.builder import build_dataset
from llava.data.collate import DataCollator
from llava.data.object_masks import ALL_OBJECTS, ObjectMaskOptions, ObjectMasks
from llava.data.utils import BrokenSampleError
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.dataset_writer import write_dataset
from llava.scene.detections import Detections
from llava.scene.object_files import file_beside, picture_hash, to_record, write_png
from llava.scene.patch_mask import PatchRule
from llava.utils import io
from llava.video.decode import list_frames
from llava.video.frame_store import FrameStore

SPEC = VisualSpec(image_size=16, tokens_per_image=8)
RULE = PatchRule(patch_size=4, cell=2)
LEFT_TOP = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool).flatten()


def options(**given) -> ObjectMaskOptions:
    return ObjectMaskOptions(rule=RULE, grid_side=4, **given)


def masks(media: Path, **given) -> ObjectMasks:
    return ObjectMasks("toys", options(**given), SPEC, media)


def picture(path: Path, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((side, side, 3), 90, np.uint8))
    return path


def found(side: int = 16) -> Detections:
    """One object in the first cell (of 8 x 8 of 16 pixels)."""
    mask = np.zeros((1, side, side), dtype=bool)
    mask[0, side // 8 : side // 4, side // 8 : side // 4] = True
    return Detections.of_masks(mask)


def record(path: Path, name: str, objects: Detections | None = None) -> dict:
    return to_record(
        found() if objects is None else objects, picture=name, digest=picture_hash(path), detector={"name": "test"}
    )


def write_beside(path: Path, kind: str, objects: Detections | None = None) -> None:
    objects = found() if objects is None else objects
    if kind == "json":
        io.save(file_beside(path, kind), record(path, path.name, objects))
    else:
        write_png(file_beside(path, kind), objects, record(path, path.name, objects))


@pytest.mark.parametrize("kind", ["json", "png"])
def test_masks_beside_a_picture_of_any_size_are_brought_to_its_patches(kind, tmp_path):
    write_beside(picture(tmp_path / "a.png", side=32), kind, found(32))
    reader = masks(tmp_path)
    assert reader.of_pictures(["a.png", None]).tolist() == [LEFT_TOP.tolist(), [False] * 16]
    assert (reader.statistics.pictures, reader.statistics.objects, reader.statistics.missing) == (1, 1, 0)


def test_masks_may_lie_in_another_folder_or_in_one_file(tmp_path):
    path = picture(tmp_path / "media" / "hall" / "a.png")
    io.save(tmp_path / "apart" / "toys" / "hall" / "a.png.objects.json", record(path, "a.png"))
    lines = tmp_path / "lines" / ALL_OBJECTS
    io.save(lines, [record(path, "hall/a.png")])
    for place in (tmp_path / "apart", tmp_path / "lines", lines):
        assert torch.equal(masks(tmp_path / "media", folder=place).of_pictures(["hall/a.png"])[0], LEFT_TOP), place
    with pytest.raises(FileNotFoundError, match=r"make_object_masks\.py wrote"):
        options(folder=tmp_path / "nowhere")


def test_frames_of_a_filmstrip_have_rows_of_its_mask(tmp_path):
    folder = picture(tmp_path / "7" / "filmstrip.png").parent
    cv2.imwrite(str(folder / "filmstrip.png"), np.zeros((32, 16, 3), np.uint8))
    (folder / "filmstrip.json").write_text(json.dumps({"num_frames": 2, "height": 16, "width": 16}))
    ids = np.zeros((32, 16), np.uint8)
    ids[16 + 2 : 16 + 4, 2:4] = 3  # in the second frame
    cv2.imwrite(str(folder / "filmstrip.png.objects.png"), ids)
    reader = masks(tmp_path)
    assert reader.of_pictures(["7/frame_0.jpg", "7/frame_1.jpg"]).tolist() == [[False] * 16, LEFT_TOP.tolist()]
    assert reader.of_pictures(["7/frame_2.jpg"]).sum() == 0 and reader.statistics.broken == 1


def _without_a_file(path: Path) -> None:
    pass


def _of_another_size(path: Path) -> None:
    io.save(file_beside(path, "json"), record(path, path.name, found(32)))


def _of_an_older_picture(path: Path) -> None:
    io.save(file_beside(path, "json"), {**record(path, path.name), "sha256": "0" * 64})


def _cut_off(path: Path) -> None:
    file_beside(path, "json").write_text('{"version": 1, "size": [16')


def _no_picture(path: Path) -> None:
    file_beside(path, "png").write_bytes(b"no png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_file, r"neither \S+a.png.objects.json nor .png exists"),
        (_of_another_size, r"the mask has 32 x 32 pixels \(height x width\), the picture 16 x 16"),
        (_of_an_older_picture, "has changed since its objects were found"),
        (_cut_off, "is malformed"),
        (_no_picture, "cannot be read as instance numbers"),
    ],
)
def test_missing_and_broken_masks_are_counted_and_all_is_background(spoil, message, tmp_path, caplog):
    spoil(picture(tmp_path / "a.png"))
    reader = masks(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not reader.of_pictures(["a.png"]).any()
    assert reader.statistics.missing + reader.statistics.broken == 1
    assert "a.png" in caplog.text and len(caplog.records) == 1
    with pytest.raises(BrokenSampleError, match=message):
        masks(tmp_path, missing="error").of_pictures(["a.png"])


def test_many_missing_masks_take_a_few_lines_and_say_that_there_are_none(tmp_path, caplog):
    for number in range(120):
        picture(tmp_path / f"{number}.png")
    reader = masks(tmp_path)
    with caplog.at_level(logging.WARNING):
        reader.of_pictures([f"{number}.png" for number in range(120)])
    assert len(caplog.records) == 4  # the 1st, 10th, 100th, and that none of 100 has one
    assert "none of the first 100 pictures of 'toys'" in caplog.text
    assert "120 missing" in str(reader.statistics) and len(reader.statistics.examples) == 5


def test_a_detector_that_failed_leaves_nothing_of_the_picture_as_background(tmp_path):
    path = picture(tmp_path / "a.png")
    io.save(file_beside(path, "json"), record(path, "a.png", Detections.failed(16, 16, "crashed")))
    assert masks(tmp_path).of_pictures(["a.png"]).all()


def test_frames_of_a_video_file_are_searched_for_motion(tmp_path):
    frames = np.full((4, 32, 32, 3), 50, np.uint8)
    frames[2, 4:8, 4:8] = 250
    video = tmp_path / "clip.mp4"
    found_here = masks(tmp_path, motion_options={"min_pixels": 2}).of_clip(video, [0, None, 3, 6, 9], list(frames))
    assert found_here.any(dim=1).tolist() == [False, False, False, True, False]
    reader = masks(tmp_path)
    assert not reader.of_clip(video, [0, 1], list(frames[:2])).any() and reader.statistics.missing == 2


def test_masks_among_frames_are_no_frames(tmp_path):
    for number in range(2):
        write_beside(picture(tmp_path / "walk" / f"frame_{number}.png"), "png")
    assert [path.name for path in list_frames(tmp_path / "walk")] == ["frame_0.png", "frame_1.png"]
    assert FrameStore(tmp_path).num_frames("walk") == 2


def test_tiles_of_a_dynamic_picture_have_a_row_each(tmp_path):
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.zeros((16, 32, 3), np.uint8))
    mask = np.zeros((1, 16, 32), dtype=bool)
    mask[0, 2:4, 18:20] = True  # in the second of two tiles
    io.save(file_beside(path, "json"), record(path, "wide.png", Detections.of_masks(mask)))
    spec = VisualSpec(image_size=16, tokens_per_image=8, aspect_mode="dynamic", max_tiles=2)
    reader = ObjectMasks("toys", options(), spec, tmp_path)
    rows = reader.of_tiles("wide.png")
    assert rows[:2].any(dim=1).tolist() == [False, True] and len(rows) == 3 and rows[2].any()


# ---- samples and batches ----


def dataset(tmp_path: Path, tokenizer, **given):
    records = [
        {"id": "one", "image": "a.png", "conversations": _turns("<image>\nWhat is it?")},
        {"id": "none", "conversations": _turns("Hello?")},
        {"id": "two", "images": ["a.png", "b.png"], "conversations": _turns("<image> <image>\nWhich?")},
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    write_beside(picture(tmp_path / "a.png"), "json")
    picture(tmp_path / "b.png")
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"toys: {{type: llava, root: {tmp_path}, data_path: records.json, media_dir: .}}\n")
    chosen = DataOptions(object_masks=options(**given), on_error="raise")
    return build_dataset(
        "toys", tokenizer=tokenizer, spec=SPEC, template="vicuna_v1", options=chosen, registry=str(registry)
    )


def _turns(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "A cup."}]


def test_samples_carry_a_row_per_picture_and_batches_join_them(tmp_path, tokenizer):
    data = dataset(tmp_path, tokenizer)
    one, none, two = (data[index] for index in range(3))
    assert [len(each["object_patches"]) for each in (one, two)] == [1, 2] and "object_patches" not in none
    image = tokenizer.convert_tokens_to_ids("<image>")
    batch = DataCollator(pad_token_id=0, max_length=200, image_token_id=image)([two, none, one])
    assert batch["object_patches"].any(dim=1).tolist() == [True, False, True]
    assert "missing" in data.report()
    short = DataCollator(pad_token_id=0, max_length=len(two["input_ids"]) - 1, image_token_id=image)
    assert len(short([two, one])["object_patches"]) == 3  # text was cut, no picture
    cut = int((two["input_ids"] == image).nonzero()[8])  # in front of the second picture
    batch = DataCollator(pad_token_id=0, max_length=cut + 3, image_token_id=image)([two])
    assert len(batch["images"]) == len(batch["object_patches"]) == 1


def test_batches_in_which_some_pictures_have_no_row_are_refused(tmp_path, tokenizer):
    one = dict(dataset(tmp_path, tokenizer)[0])
    other = {name: value for name, value in one.items() if name != "object_patches"}
    image = tokenizer.convert_tokens_to_ids("<image>")
    with pytest.raises(ValueError, match="has 1 pictures and 0 rows of object_patches"):
        DataCollator(pad_token_id=0, max_length=200, image_token_id=image)([one, other])


def test_pictures_that_are_no_clip_cannot_share_a_background(tmp_path, tokenizer):
    data = dataset(tmp_path, tokenizer, shares_background=True)
    assert len(data[0]["object_patches"]) == 1
    with pytest.raises(BrokenSampleError, match="2 pictures that are no frames of a clip"):
        data[2]


def test_the_embedded_world_writes_which_object_each_pixel_shows(tmp_path):
    found = []
    for layout in ("filmstrip", "files"):
        camera = CameraProfile(width=64, height=64)
        write_dataset(tmp_path / layout, "one_room", 1, camera=camera, frames=layout, object_masks=True, threads=1)
        media = tmp_path / layout / "train"
        names: list[str | None] = [f"0/frame_{number}.jpg" for number in range(FrameStore(media).num_frames("0"))]
        reader = ObjectMasks("world", options(missing="error"), SPEC, media)
        found.append(reader.of_pictures(names))
    assert torch.equal(*found) and found[0].any() and not found[0].all()
