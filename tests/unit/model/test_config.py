"""LlavaConfig keeps what it does not know, and the Auto classes know it without being asked to import it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.model import LlavaConfig
from llava.model.auto_classes import register_when_imported
from llava.model.configuration_llava import LlavaLlamaConfig, LlavaQwenConfig
from tests.numerics.models import tiny_config, tiny_model


def test_unknown_keys_survive_and_stored_paths_do_not(tmp_path: Path):
    config = LlavaLlamaConfig(**tiny_config(), ps3=True, _name_or_path="/somewhere/else")
    config.save_pretrained(tmp_path)
    again = LlavaConfig.from_pretrained(tmp_path)
    assert again.ps3 is True
    assert "/somewhere/else" not in (tmp_path / "config.json").read_text()


def test_settings_of_the_data_travel_with_the_weights(tmp_path: Path):
    stored = {
        "version": "llama_3",
        "navigation_prompt": {"format": "navila", "instruction": "normalised", "num_frames": 8},
        "camera_profile": {"height": 0.88, "pitch": 0.0},
        "tokenization_compat": {"double_bos": True, "chunkwise": True},
        "image_token_id": 63,
    }
    LlavaLlamaConfig(**tiny_config(), **{k: v for k, v in stored.items() if k != "image_token_id"}).save_pretrained(
        tmp_path
    )
    again = LlavaConfig.from_pretrained(tmp_path)
    assert {key: getattr(again, key) for key in stored} == stored


def test_features_of_later_times_are_absent_by_default():
    config = LlavaConfig()
    assert config.reconstruction is None
    assert config.scene_split is None


@pytest.mark.parametrize(
    ("size", "patch", "projector", "tokens"),
    [(384, 14, "mlp_downsample", 196), (448, 14, "mlp_downsample_3x3_fix", 121), (336, 14, "mlp2x_gelu", 576)],
)
def test_tokens_per_picture_of_published_models(size: int, patch: int, projector: str, tokens: int):
    tower = {"model_type": "siglip_vision_model", "image_size": size, "patch_size": patch}
    spec = LlavaConfig(vision_tower_cfg=tower, mm_projector_cfg={"mm_projector_type": projector}).visual_spec()
    assert spec.tokens_per_image == tokens
    assert spec.image_size == size


def test_tokens_of_a_picture_that_nvila_cuts():
    tower = {"model_type": "siglip_vision_model", "image_size": 448, "patch_size": 14}
    stored = {"image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": "448,896,1344", "max_tiles": 12}
    projector = {"mm_projector_type": "mlp_downsample_3x3_fix"}
    config = LlavaConfig(vision_tower_cfg=tower, mm_projector_cfg=projector, **stored, s2_resize_output_to_scale_idx=-1)
    spec = config.visual_spec()
    assert (spec.image_size, spec.tokens_per_image) == (448, 121)
    wide = spec.view_rule.layout(600, 1600)  # 1, 4 and 2 x 5 tiles
    assert (wide.grids[-1], wide.num_tiles, wide.num_tokens) == ((2, 5), 15, 1210)


def test_clip_brings_its_own_statistics_and_crop():
    spec = LlavaConfig(
        vision_tower_cfg={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        mm_projector_cfg="mlp2x_gelu",
    ).visual_spec()
    assert spec.image_mean[0] == pytest.approx(0.4815, abs=1e-4)
    assert spec.aspect_mode == "crop"


def test_a_tower_that_is_only_named_cannot_tell_its_size():
    with pytest.raises(ValueError, match="build or load the model"):
        LlavaConfig(vision_tower_cfg="google/siglip-so400m-patch14-384").visual_spec()


@pytest.mark.parametrize("part", ["llm_cfg", "vision_tower_cfg", "mm_projector_cfg"])
def test_a_part_without_settings_is_named(part: str):
    from llava.model import build_model

    with pytest.raises(ValueError, match=part):
        build_model({**tiny_config(), part: None})


AUTO = """
import sys
import llava
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder)
    models = [AutoModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder),
              AutoModelForCausalLM.from_config(config)]
    print(type(config).__name__, *[type(model).__name__ for model in models])
"""


def test_auto_classes_know_our_models_after_importing_the_package(tmp_path: Path):
    folders = [tmp_path / llm for llm in ("llama", "qwen3")]
    for folder in folders:
        tiny_model(folder.name).save_pretrained(folder)
    done = subprocess.run([sys.executable, "-c", AUTO, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [[f"Llava{family}Config", *[f"Llava{family}Model"] * 3] for family in ("Llama", "Qwen")]
    assert [line.split() for line in done.stdout.splitlines()] == lines


def test_auto_config_knows_us_when_transformers_came_first(tmp_path: Path):
    from transformers import AutoConfig

    register_when_imported()  # the table is loaded: rows are added at once, and again without harm
    register_when_imported()
    LlavaQwenConfig(**tiny_config("qwen2")).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LlavaQwenConfig)


def test_the_config_file_is_plain_json(tmp_path: Path):
    model: Any = tiny_model()
    model.config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["llm_cfg"]["model_type"] == "llama"
    assert "_name_or_path" not in stored["llm_cfg"]
