"""Where the model of a run comes from, and which of its settings a command line may change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from llava.model.builder import build_model
from llava.train.model_setup import EMBEDDED_MODELS, load_projector, prepare_model, store_settings, weights_dtype
from llava.train.parse import parse_args
from llava.utils.tokenizer import train_tokenizer
from tests.unit.train.toy import toy_model

OUT = ["--output_dir", "out", "--report_to", "none"]


@pytest.mark.parametrize(("name", "least", "most", "tokens"), [("tiny", 2e6, 5e6, 4), ("gpu", 20e6, 60e6, 16)])
def test_embedded_models_have_their_promised_size(name, least, most, tokens):
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = build_model(EMBEDDED_MODELS[name].config_parts(vocab_size=1024, context=512, ids=ids))
    assert least < model.num_parameters() < most
    assert model.visual_spec.tokens_per_image == tokens


def test_a_plain_language_model_gains_a_tower_and_a_projector(tmp_path):
    tokenizer = train_tokenizer(["walk to the red ball"], 300, tmp_path / "llm")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "llm")
    SiglipVisionModel(SiglipVisionConfig(image_size=28, patch_size=14, **sizes)).save_pretrained(tmp_path / "tower")
    flags = ["--model_name_or_path", str(tmp_path / "llm"), "--vision_tower", str(tmp_path / "tower")]
    args = parse_args([*OUT, *flags, "--mm_projector", "mlp_downsample", "--mm_vision_select_layer", "-1"])
    prepared = prepare_model(args, checkpoint=None, corpus=list)
    assert prepared.template == "llama_3"
    assert prepared.model.config.version == "llama_3"
    assert prepared.model.config.image_token_id == prepared.tokenizer.convert_tokens_to_ids("<image>")
    assert prepared.model.visual_spec.tokens_per_image == 1
    assert prepared.model.dtype == torch.float32
    assert prepared.model.config.num_video_frames == 8


def test_an_embedded_model_takes_a_tower_and_a_projector_that_are_there(tmp_path):
    parts = EMBEDDED_MODELS["tiny"].config_parts(vocab_size=300, context=64, ids={})
    seen = build_model({**parts, "vision_tower_cfg": {**parts["vision_tower_cfg"], "image_size": 96}})
    seen.vision_tower.vision_tower.save_pretrained(tmp_path / "tower")
    seen.mm_projector.save_pretrained(tmp_path / "projector")
    flags = ["--vision_tower", str(tmp_path / "tower"), "--mm_projector", str(tmp_path / "projector")]
    args = parse_args(["--output_dir", str(tmp_path / "out"), "--model_name_or_path", "embedded", *flags])
    model = prepare_model(args, checkpoint=None, corpus=lambda: ["walk to the red ball"]).model
    assert model.visual_spec.image_size == 96
    for part in ("vision_tower", "mm_projector"):
        for (name, before), after in zip(
            getattr(seen, part).named_parameters(), getattr(model, part).parameters(), strict=True
        ):
            assert torch.equal(before, after), name


def test_a_new_tower_may_look_at_several_scales_and_another_size(tmp_path):
    tokenizer = train_tokenizer(["walk to the red ball"], 300, tmp_path / "llm")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "llm")
    SiglipVisionModel(SiglipVisionConfig(image_size=28, patch_size=14, **sizes)).save_pretrained(tmp_path / "tower")
    start = ["--model_name_or_path", str(tmp_path / "llm"), "--vision_tower", str(tmp_path / "tower")]
    start += ["--mm_projector", "linear", "--mm_vision_select_layer", "-1"]
    scales = ["--s2", "True", "--s2_scales", "28,56", "--s2_max_split_size", "28"]
    several = prepare_model(parse_args([*OUT, *start, *scales]), checkpoint=None, corpus=list).model
    assert several.vision_tower.hidden_size == 2 * 16
    larger = prepare_model(parse_args([*OUT, *start, "--vision_resolution", "56"]), checkpoint=None, corpus=list).model
    assert (larger.visual_spec.image_size, larger.tokens_per_image) == (56, 16)
    larger.save_pretrained(tmp_path / "saved")
    from_saved = parse_args([*OUT, "--model_name_or_path", str(tmp_path / "saved"), *scales])
    with pytest.raises(ValueError, match=r"--s2 shapes the tower of a new model, but .*saved is a checkpoint"):
        prepare_model(from_saved, checkpoint=None, corpus=list)
    again = prepare_model(parse_args([*OUT, *start, *scales]), checkpoint=tmp_path / "saved", corpus=list).model
    assert again.visual_spec.image_size == 56
    cut = ["--dynamic_s2", "True", "--image_aspect_ratio", "dynamic_s2", *scales[2:], "--max_tiles", "6"]
    cut += ["--s2_resize_output_to_scale_idx", "-1"]
    tiled = prepare_model(parse_args([*OUT, *start, *cut]), checkpoint=None, corpus=list).model
    assert (tiled.visual_spec.image_size, tiled.vision_tower.hidden_size) == (28, 2 * 16)
    assert tiled.visual_spec.dynamic_s2.layout(28, 100).num_tiles == 1 + 4
    tiled.save_pretrained(tmp_path / "tiled")
    repeated = parse_args([*OUT, "--model_name_or_path", str(tmp_path / "tiled"), *cut])  # as published scripts do
    assert prepare_model(repeated, checkpoint=None, corpus=list).model.visual_spec == tiled.visual_spec


def test_defaults_never_overwrite_what_a_checkpoint_stores_but_flags_do():
    config = SimpleNamespace(image_aspect_ratio="pad", mm_vision_select_layer=-2, num_video_frames=16)
    store_settings(config, parse_args([*OUT, "--num_video_frames", "4"]), only_given=True)
    assert config.image_aspect_ratio == "pad"
    assert config.mm_vision_select_layer == -2
    assert config.num_video_frames == 4


def test_the_dtype_is_float32_unless_something_asks_for_another():
    assert weights_dtype(parse_args(OUT)) == torch.float32
    assert weights_dtype(parse_args([*OUT, "--model_dtype", "torch.bfloat16"])) == torch.bfloat16
    with pytest.raises(ValueError, match="model_dtype is 'bfloat'"):
        weights_dtype(parse_args([*OUT, "--model_dtype", "bfloat"]))


def test_projector_weights_are_read_whatever_stands_before_their_names(tmp_path):
    source, target = toy_model(seed=1).mm_projector, toy_model(seed=2).mm_projector
    named = {f"model.mm_projector.{name}": value.contiguous() for name, value in source.state_dict().items()}
    save_file(named, tmp_path / "projector.safetensors")
    load_projector(target, tmp_path / "projector.safetensors")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    with pytest.raises(FileNotFoundError, match="mlp_path"):
        load_projector(target, tmp_path / "nothing")
    save_file({"mm_projector.other": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="do not fit --mm_projector"):
        load_projector(target, tmp_path / "wrong.safetensors")
