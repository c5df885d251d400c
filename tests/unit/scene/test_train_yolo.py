"""The training of the world's own detector: mistakes in the call, and a tiny run with the network shut off."""

import json
import socket
import sys
from importlib.util import find_spec

import pytest

from playground.scene import train_yolo
from playground.scene.measure_yolo import CONFIDENCES, DILATIONS, cells_at


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path):
    """The training sets both for its whole process; they are put back here."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "before"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "0"], "--train is 0, expected at least 1"),
        (["--minutes", "0"], "--minutes is 0, expected more than 0"),
        (["--imgsz", "100"], "--imgsz is 100, expected a multiple of 32"),
        (["--seed", "1000"], "walks into the houses of the validation pictures"),
        (["--seed", "-1"], "walks into the houses of the validation pictures"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(tmp_path, capsys, flags, message):
    assert train_yolo.main(["--out", str(tmp_path / "run"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_the_package_the_pip_command_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    assert train_yolo.main(["--out", str(tmp_path), "--train", "4", "--val", "4"]) == 1
    assert "pip install 'llava[yolo]'" in capsys.readouterr().err


def test_seeds_walk_through_other_houses_and_never_through_those_of_the_measurement():
    parse = train_yolo.build_parser().parse_args
    first = train_yolo.picture_sets(parse(["--out", "x", "--train", "100"]))
    other = train_yolo.picture_sets(parse(["--out", "x", "--train", "100", "--seed", "3"]))
    assert (first["train"].first_seed, other["train"].first_seed) == (0, 300)
    assert first["val"].first_seed == train_yolo.VAL_SEED and other["val"].first_seed == train_yolo.VAL_SEED + 300


def test_the_row_of_a_confidence_is_found():
    rows = [{"confidence": c, "dilation": d, "recall": c + d} for c in CONFIDENCES for d in DILATIONS]
    assert cells_at({"cells": rows}, 0.25, 1)["recall"] == 1.25
    assert cells_at({"cells": rows})["recall"] == 0.1


@pytest.mark.slow
def test_a_tiny_training_needs_no_network_and_leaves_the_home_alone(tmp_path, monkeypatch):
    if find_spec("ultralytics") is None:
        pytest.skip("the extra 'yolo' is not installed: pip install 'llava[yolo]'")

    def refuse(*_: object) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    flags = ["--train", "16", "--val", "8", "--epochs", "1", "--batch", "8"]
    assert train_yolo.main(["--out", str(tmp_path / "run"), *flags]) == 0
    report = json.loads((tmp_path / "run" / "yolo.json").read_text())
    assert all(0 <= report[kind][key] <= 1 for kind in ("boxes", "masks") for key in ("mAP50", "mAP50_any"))
    assert len(report["cells"]) == len(CONFIDENCES) * len(DILATIONS)
    assert report["cells"][0]["object_cells"] + report["cells"][0]["background_cells"] == 8 * 64
    assert (tmp_path / "run" / "best.pt").is_file()
    assert {path.name for path in (tmp_path / "home").glob(".*/*")} <= {"matplotlib"}  # its own cache of fonts
