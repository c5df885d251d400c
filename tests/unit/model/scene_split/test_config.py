"""Settings of the split are valid from birth, survive a file, and say what is wrong with those that are not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from llava.model.scene_split import SceneSplitConfig


def test_a_config_survives_a_file():
    config = SceneSplitConfig(
        detector="yolo", detector_options={"classes": ["cup"], "confidence": 0.3}, shared_encoder=False, dilation=1
    )
    assert SceneSplitConfig.read(json.loads(json.dumps(config.to_dict()))) == config
    assert SceneSplitConfig.read(config) is config
    assert SceneSplitConfig.read(None) == SceneSplitConfig() == SceneSplitConfig.read({})


def test_the_settings_need_no_torch():
    program = (
        "import sys; from llava.model.scene_split import SceneSplitConfig; "
        "SceneSplitConfig(detector='motion'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_rule_for_patches_takes_over_what_was_set():
    rule = SceneSplitConfig(dilation=2, bit_exact=False, min_share=0.5).patch_rule(patch_size=14, cell=2)
    assert (rule.patch_size, rule.cell, rule.dilation, rule.bit_exact, rule.min_share) == (14, 2, 2, False, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_encoders": True}, "no option 'shared_encoders'; did you mean 'shared_encoder'"),
        ({"positions": "in-place"}, "positions is 'in-place', expected one of .*did you mean 'in_place'"),
        ({"positions": 1}, "positions is 1"),
        ({"background_per": "video"}, "background_per is 'video'"),
        ({"separators": "yes"}, "separators is 'yes', expected True or False"),
        ({"bit_exact": 1}, "bit_exact is 1"),
        ({"prefusion_layers": -1}, "prefusion_layers is -1"),
        ({"prefusion_layers": True}, "prefusion_layers is True"),
        ({"dilation": 0.5}, "dilation is 0.5"),
        ({"min_share": "half"}, "min_share is 'half'"),
        ({"min_share": 0.5}, "min_share is 0.5 and bit_exact is on"),
        ({"min_share": 1.5, "bit_exact": False}, "min_share is 1.5"),
        ({"detector": ""}, "detector is ''"),
        ({"detector_options": {"confidence": 0.3}}, "there is no detector"),
        ({"detector": "yolo", "detector_options": [1]}, r"detector_options are \[1\]"),
        ({"detector": "yolo", "detector_options": {"model": object()}}, r"detector_options\['model'\] is <object"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SceneSplitConfig.read(options)
