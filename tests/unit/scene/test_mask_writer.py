"""Objects of folders and record files onto the disk: once, resumable, with failures counted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.scene.detections import Detections
from llava.scene.detector import GuardedDetector, build_detector
from llava.scene.mask_writer import MaskStore, describe_detector, find_pictures, write_masks
from llava.scene.object_files import file_beside
from llava.utils import io

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_object_masks.py"


class BrightPixels:
    """One object: the pixels above 200. Raises on pictures whose first pixel is 13."""

    def __init__(self):
        self.calls: list[int] = []

    def detect(self, pictures, sources=None):
        self.calls.append(len(pictures))
        if any(p[0, 0, 0] == 13 for p in pictures):
            raise RuntimeError("thirteen")
        return [Detections.of_masks(p[None, ..., 0] > 200) for p in pictures]


@pytest.fixture
def folder(tmp_path):
    """Four pictures, the third of which crashes the detector, and a text file that is none."""
    for number, first in enumerate([0, 0, 13, 0]):
        shown = np.zeros((6, 8, 3), np.uint8)
        shown[2:4, number : number + 2] = 255
        shown[0, 0] = first
        path = tmp_path / ("sub" if number == 3 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(shown).save(path)
    (tmp_path / "broken.png").write_text("no picture")
    return tmp_path


def run(folder, detector, kind="json", settings=None, **options):
    pictures, root = find_pictures(folder)
    store = MaskStore(kind, root, describe_detector("bright", settings or {}))
    return write_masks(pictures, GuardedDetector(detector), store, batch=2, **options)


@pytest.mark.parametrize("kind", ["json", "png", "jsonl"])
def test_what_is_there_is_reused_failures_are_counted_and_tried_again(folder, kind):
    first = run(folder, BrightPixels(), kind)
    assert (first.num_pictures, first.written, first.reused, first.objects) == (5, 3, 0, 3)
    failures = {Path(name).name: why for name, why in first.failures.items()}
    assert failures["2.png"] == "RuntimeError: thirteen" and "cannot be decoded" in failures["broken.png"]
    again = BrightPixels()
    second = run(folder, again, kind)
    assert (second.written, second.reused, len(second.failures)) == (0, 3, 2)
    assert again.calls == [1], "only the picture that failed is asked again"
    assert "3 reused from an earlier run, 2 without an answer" in str(second)


@pytest.mark.parametrize("kind", ["json", "png", "jsonl"])
def test_the_precomputed_detector_reads_what_was_written(folder, kind):
    run(folder, BrightPixels(), kind)
    options = {"file": folder / "objects.jsonl"} if kind == "jsonl" else {}
    detector = build_detector("precomputed", **options)
    for name in ("0.png", "1.png", "sub/3.png"):
        shown = np.asarray(Image.open(folder / name))
        assert np.array_equal(detector.detect([shown], [folder / name])[0].pixel_mask(), shown[..., 0] > 200)
    failed = detector.detect([np.asarray(Image.open(folder / "2.png"))], [folder / "2.png"])[0]
    assert failed.failure == "RuntimeError: thirteen" and failed.pixel_mask().all()


def test_new_content_under_an_old_name_is_looked_at_again(folder):
    run(folder, BrightPixels())
    Image.fromarray(np.full((6, 8, 3), 255, np.uint8)).save(folder / "0.png")
    summary = run(folder, BrightPixels())
    assert (summary.written, summary.reused) == (1, 2)
    (answer,) = build_detector("precomputed").detect([np.full((6, 8, 3), 255, np.uint8)], [folder / "0.png"])
    assert answer.pixel_mask().all()


def test_other_settings_are_refused_unless_all_is_written_again(folder):
    run(folder, BrightPixels(), settings={"confidence": 0.5})
    with pytest.raises(ValueError, match=r"0\.5.*this run uses .*0\.1.*--overwrite"):
        run(folder, BrightPixels(), settings={"confidence": 0.1})
    assert run(folder, BrightPixels(), settings={"confidence": 0.1}, overwrite=True).written == 3


def test_a_line_that_a_killed_run_cut_off_is_written_again(folder):
    run(folder, BrightPixels(), "jsonl")
    file = folder / "objects.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:1]) + "\n" + lines[1][:40])
    summary = run(folder, BrightPixels(), "jsonl")
    assert (summary.written, summary.reused) == (2, 1)
    assert {record["picture"] for record in io.load(file)} == {"0.png", "1.png", "2.png", "sub/3.png"}


def test_a_clip_is_found_out_as_a_whole_folder_by_folder(tmp_path):
    for clip in ("a", "b"):
        (tmp_path / clip).mkdir()
        for step in range(4):
            shown = np.full((16, 16, 3), 50, np.uint8)
            shown[4:9, 3 * step : 3 * step + 4] = 250
            Image.fromarray(shown).save(tmp_path / clip / f"{step}.png")
    pictures, root = find_pictures(tmp_path)
    store = MaskStore("json", root, {"name": "motion"})
    summary = write_masks(pictures, GuardedDetector(build_detector("motion")), store, batch=1)
    assert summary.written == 8 and summary.objects >= 8
    file_beside(tmp_path / "a" / "2.png", "json").unlink()
    again = write_masks(pictures, GuardedDetector(build_detector("motion")), store, batch=1)
    assert (again.written, again.reused) == (4, 4)


def test_pictures_of_records_are_taken_once_and_missing_files_are_failures(folder):
    records = [
        {"image": "0.png"},
        {"images": ["0.png", {"path": "1.png"}]},
        {"frames": ["sub/3.png", "gone.png"]},
        {"conversations": []},
    ]
    io.save(folder / "train.jsonl", records)
    pictures, root = find_pictures(folder / "train.jsonl")
    assert [p.relative_to(root).as_posix() for p in pictures] == ["0.png", "1.png", "sub/3.png", "gone.png"]
    store = MaskStore("jsonl", root, {"name": "bright"}, folder / "masks" / "train.jsonl")
    summary = write_masks(pictures, GuardedDetector(BrightPixels()), store)
    assert summary.written == 3 and summary.failures == {str(folder / "gone.png"): "the file does not exist"}
    read = build_detector("precomputed", file=folder / "masks" / "train.jsonl", root=folder)
    assert read.read(folder / "sub" / "3.png").pixel_mask().sum() == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [({"a": 1}, "expected a list of records"), ([{"image": 3}], "image=3"), ([{"text": ""}], "no pictures in")],
)
def test_record_files_without_pictures_are_refused(tmp_path, content, message):
    io.save(tmp_path / "r.json", content)
    with pytest.raises(ValueError, match=message):
        find_pictures(tmp_path / "r.json")


def test_formats_and_files_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="format is 'tiff'"):
        MaskStore("tiff", tmp_path, {})
    with pytest.raises(ValueError, match="it goes with 'jsonl'"):
        MaskStore("json", tmp_path, {}, tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="it goes with a record file"):
        find_pictures(tmp_path, tmp_path)


def test_settings_that_change_no_answer_are_not_remembered_and_weights_are_by_content(tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"one")
    first = describe_detector("yolo", {"weights": str(weights), "batch": 4, "device": "cpu", "confidence": 0.5})
    weights.write_bytes(b"two")
    second = describe_detector("yolo", {"weights": str(weights), "batch": 8, "confidence": 0.5})
    assert set(first) == {"name", "weights", "confidence", "weights_sha256"}
    assert first["weights_sha256"] != second["weights_sha256"]
    assert json.loads(json.dumps(first)) == first


def test_the_command_writes_says_what_it_reused_and_its_help_fits_a_screen(tmp_path):
    for step in range(4):
        shown = np.full((16, 16, 3), 50, np.uint8)
        shown[4:9, 3 * step : 3 * step + 4] = 250
        Image.fromarray(shown).save(tmp_path / f"{step}.png")

    def call(*arguments):
        done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert "4 written, 0 reused" in call(tmp_path, "--detector", "motion", "--format", "png")[1]
    code, out, _ = call(tmp_path, "--detector", "motion", "--format", "png")
    assert code == 0 and "0 written, 4 reused" in out
    code, _, error = call(tmp_path, "--detector", "motion", "--confidence", "0.5")
    assert code == 1 and "--confidence has no meaning for the detector 'motion'" in error
    code, text, _ = call("--help")
    assert code == 0 and len(text.splitlines()) <= 50
