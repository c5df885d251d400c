"""The detector of the demo: trained on the true objects of the world, then used on pictures of other houses."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from playground.demo.phases import Command, Phase
from playground.demo.profiles import Level, Profile
from playground.scene.measure_yolo import CONFIDENCE

NUM_SHOWN = 6
"""Pictures that are drawn; the first ones of the detector's validation pictures."""
OVERHEAD_SECONDS = 25.0
"""Around the training: pictures, imports, measurements."""
DRAW_SECONDS = 10.0
PATCHES_PER_SIDE = 8


def why_no_detector() -> str | None:
    """The reason for which the demo goes without a detector, with the way out; None = it does not."""
    if find_spec("ultralytics") is not None:
        return None
    return "no object detector: the package ultralytics is not installed; pip install 'llava[yolo]' and run again"


def scene_phases(profile: Profile, run_dir: Path, level: Level, versions: Mapping[str, str]) -> list[Phase]:
    """Two phases of one core each; none where they cannot run."""
    if why_no_detector() is not None:
        return []
    return [_detector(profile, run_dir, level, versions), _pictures(profile, run_dir, versions)]


def _detector(profile: Profile, run_dir: Path, level: Level, versions: Mapping[str, str]) -> Phase:
    seconds = profile.detector_seconds
    argv = ("bash", "scripts/train/yolo_embedded.sh", "--minutes", f"{seconds / 60:g}", "--level", level.name)
    argv += ("--train", str(profile.detector_pictures), "--val", "200", "--seed", str(profile.seed))
    argv += ("--pixels", str(profile.image_size), "--patch-size", str(profile.image_size // PATCHES_PER_SIDE))
    output = run_dir / "detector"
    return Phase(
        name="detector",
        title="Object detector",
        commands=(Command(argv=argv, env={"OUTPUT": str(output)}),),
        outputs=(output,),
        seconds=seconds + OVERHEAD_SECONDS,
        settings=versions,
    )


def _pictures(profile: Profile, run_dir: Path, versions: Mapping[str, str]) -> Phase:
    detector, output = run_dir / "detector", run_dir / "scene"
    shown = (str(detector / "data" / "images" / "val" / f"{number:06d}.png") for number in range(NUM_SHOWN))
    argv = ("python", "-m", "llava.scene.draw", *shown, "--detector", "yolo")
    argv += ("--weights", str(detector / "best.pt"), "--confidence", f"{CONFIDENCE:g}")
    argv += ("--side", str(profile.image_size))
    argv += ("--patch-size", str(profile.image_size // PATCHES_PER_SIDE), "--out", str(output))
    return Phase(
        name="scene",
        title="Background and objects",
        commands=(Command(argv=argv, env={"YOLO_CONFIG_DIR": str(detector / "settings")}),),
        outputs=(output,),
        seconds=DRAW_SECONDS,
        needs=("detector",),
        settings=versions,
    )
