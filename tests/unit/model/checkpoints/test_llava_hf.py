"""transformers' LLaVA folders: three generations of names are read, one is written, and nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers import LlavaConfig as HFLlavaConfig

import llava
from llava.model.checkpoints.__main__ import main
from llava.model.checkpoints.export import export_llava_hf
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import VOCAB, worst
from tests.unit.model.checkpoints.folders import (
    IMAGE,
    edit_json,
    logits_of,
    model_of,
    same_weights,
    save_state,
    write_original,
)

LOGITS = 1e-5  # measured worst: 0, the same kernels in the same order
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**WIDTH, "vocab_size": VOCAB, "num_key_value_heads": 2, "max_position_embeddings": 128}
VISION = {**WIDTH, "image_size": 32, "patch_size": 8}


def hf_model(tower: str = "clip", seed: int = 0, **kw: Any) -> Any:
    torch.manual_seed(seed)
    clip = tower == "clip"
    settings = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default" if clip else "full", **kw}
    vision = CLIPVisionConfig(**VISION) if clip else SiglipVisionConfig(**VISION)
    config = HFLlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_index=IMAGE, image_seq_length=16, **settings
    )
    return LlavaForConditionalGeneration(config).eval()


def renamed(state: dict[str, Tensor], generation: str) -> dict[str, Tensor]:
    """From the names of transformers 5 in memory to those of a generation of files."""
    if generation == "5":
        return state
    found = {}
    for name, value in state.items():
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
        if generation == "legacy":
            name = name.replace("model.language_model.", "language_model.model.").removeprefix("model.")
            name = name.replace("lm_head", "language_model.lm_head")
        found[name] = value
    return found


def write_hf(model: Any, folder: Path, generation: str = "legacy", kind: str = "safetensors") -> Path:
    save_state(renamed(model.state_dict(), generation), folder, kind)
    model.config.save_pretrained(folder)
    return folder


def logits_hf(model: Any, ids: Tensor, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits


def inputs(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 50, (7,), generator=generator)
    ids = torch.cat([text[:2], torch.full((16,), IMAGE), text[2:]])[None]
    return ids, torch.randn(1, 3, 32, 32, generator=generator)


def test_the_legacy_names_of_this_test_are_those_that_transformers_writes(tmp_path: Path):
    model = hf_model()
    model.save_pretrained(tmp_path)
    written = set(load_file(tmp_path / "model.safetensors"))
    ours = {
        name.replace("vision_tower.vision_model.", "vision_tower.") for name in renamed(model.state_dict(), "legacy")
    }
    assert written == ours


@pytest.mark.parametrize("generation", ["legacy", "4.52", "5"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_there_and_back_again(tmp_path: Path, generation: str, tower: str):
    theirs = hf_model(tower)
    ours = llava.load(write_hf(theirs, tmp_path / "theirs", generation))
    ids, pixels = inputs()
    expected = logits_hf(theirs, ids, pixels)
    with torch.no_grad():
        assert worst(ours(ids, pixels).logits, expected) <= LOGITS
    again = LlavaForConditionalGeneration.from_pretrained(export_llava_hf(ours, tmp_path / "again")).eval()
    assert same_weights(again, theirs)
    assert worst(logits_hf(again, ids, pixels), expected) <= LOGITS
    for key in ("image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "image_seq_length"):
        assert getattr(again.config, key) == getattr(theirs.config, key)


@pytest.mark.parametrize("kind", ["bin", "bin shards", "safetensors shards"])
def test_every_kind_of_weight_file_is_read(tmp_path: Path, kind: str):
    theirs = hf_model()
    found = llava.load(write_hf(theirs, tmp_path, kind=kind))
    assert torch.equal(found.llm.lm_head.weight, theirs.lm_head.weight)
    assert found.config.version == "v1"
    assert found.config.image_token_id == IMAGE


def test_a_file_without_its_tower_is_refused(tmp_path: Path):
    theirs = hf_model()
    folder = write_hf(theirs, tmp_path)
    save_state({name: value for name, value in theirs.state_dict().items() if "vision" not in name}, folder)
    with pytest.raises(ValueError, match=r"lacks weights: vision_tower.embeddings.class_embedding \[32\] \(and"):
        llava.load(folder)


def test_half_precision_is_kept_on_the_way(tmp_path: Path):
    theirs = hf_model().bfloat16()
    ours = llava.load(write_hf(theirs, tmp_path / "theirs"))
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    again = LlavaForConditionalGeneration.from_pretrained(export_llava_hf(ours, tmp_path / "again"))
    assert same_weights(again, theirs)


def test_tied_embeddings_stay_tied(tmp_path: Path):
    ours = model_of("qwen2")
    ours.llm.config.tie_word_embeddings = True
    ours.llm.tie_weights()
    again = LlavaForConditionalGeneration.from_pretrained(export_llava_hf(ours, tmp_path / "out"))
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert same_weights(llava.load(tmp_path / "out"), ours)


def test_the_command_writes_tokenizer_processor_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = train_tokenizer(["go to the red ball and stop", "turn left at the blue chair"] * 3, 300, tmp_path / "t")
    model = model_of()
    model.llm.resize_token_embeddings(300)
    source = write_original(model, tmp_path)
    tokenizer.save_pretrained(source)
    assert main(["export", str(source), str(tmp_path / "out")]) == 0
    assert "wrote" in capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    given = processor(text="go to <image>", images=torch.zeros(3, 40, 32, dtype=torch.uint8), return_tensors="pt")
    assert (given["input_ids"] == image_token).sum() == 16
    assert type(processor.image_processor).__name__ == "LlavaImageProcessor"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "| visual tokens per picture | 16 |" in card
    again = llava.load(tmp_path / "out")
    assert again.config.aspect_mode() == "pad"
    assert same_weights(again, llava.load(source))


def test_a_table_too_short_for_the_placeholder_grows_by_its_mean(tmp_path: Path):
    ours = model_of(image_token_id=VOCAB + 3)
    again = LlavaForConditionalGeneration.from_pretrained(export_llava_hf(ours, tmp_path / "out"))
    table = ours.llm.get_input_embeddings().weight
    grown = again.get_input_embeddings().weight
    assert grown.shape[0] == 64
    assert torch.equal(grown[:VOCAB], table)
    assert torch.allclose(grown[VOCAB:], table.mean(dim=0), atol=1e-6)
    ids, pixels = inputs()
    ids = ids.masked_fill(ids == IMAGE, VOCAB + 3)
    with torch.no_grad():
        assert worst(logits_hf(again, ids, pixels)[..., :VOCAB], ours(ids, pixels).logits) <= LOGITS


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"mm_projector_cfg": "mlp_downsample"}, "the projector is 'mlp_downsample'.*mlp2x_gelu only.*save_pretrained"),
        ({"tower": "siglip_stem"}, "the vision tower is 'siglip_stem'"),
        ({"llm": "qwen3"}, "the language model is 'qwen3'"),
        ({"image_token_id": None}, "image_token_id is None"),
    ],
)
def test_what_transformers_cannot_express_is_refused(tmp_path: Path, model: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        export_llava_hf(model_of(**model), tmp_path)


@pytest.mark.parametrize(
    ("tower", "settings", "message"),
    [
        ("clip", {"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\]"),
        ("clip", {"projector_hidden_act": "silu"}, "projector_hidden_act is 'silu'"),
        ("siglip", {"vision_feature_select_strategy": "default"}, "drops a patch"),
    ],
)
def test_what_we_do_not_run_is_refused(tmp_path: Path, tower: str, settings: dict[str, Any], message: str):
    folder = write_hf(hf_model(tower), tmp_path)
    edit_json(folder / "config.json", **settings)
    with pytest.raises(ValueError, match=message):
        llava.load(folder)


def test_llava_next_is_read_with_its_newline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = LlavaNextConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=IMAGE
    )
    theirs = LlavaNextForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = llava.load(tmp_path)
    assert torch.equal(ours.mm_projector.image_newline, theirs.model.image_newline)
    assert ours.config.image_aspect_ratio == "anyres"
    assert main(["inspect", str(tmp_path)]) == 0
    report = capsys.readouterr().out
    assert "pictures   anyres" in report
    assert "missing: none" in report


def test_another_model_of_transformers_is_named(tmp_path: Path):
    folder = write_hf(hf_model(), tmp_path)
    edit_json(folder / "config.json", model_type="paligemma")
    with pytest.raises(
        ValueError, match=r"model_type is 'paligemma', expected one of \['llava', 'llava_next', 'llava_onevision'\]"
    ):
        llava.load(folder)


@pytest.mark.parametrize(
    ("processor", "mode"),
    [
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_center_crop": True}, "pad"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": True}, "crop"),
        ({"image_processor_type": "SiglipImageProcessor"}, "resize"),
    ],
)
def test_pictures_become_square_as_the_stored_processor_says(tmp_path: Path, processor: dict[str, Any], mode: str):
    from llava.model.checkpoints.llava_hf import aspect_of

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert aspect_of(tmp_path) == mode


def test_the_export_of_our_own_layout_answers_alike(tmp_path: Path):
    model = model_of()
    model.save_pretrained(tmp_path / "three")
    assert main(["export", str(tmp_path / "three"), str(tmp_path / "out")]) == 0
    assert torch.equal(logits_of(llava.load(tmp_path / "out")), logits_of(model))
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1
    with pytest.raises(ValueError, match="is the folder that the model was read from"):
        export_llava_hf(llava.load(tmp_path / "out"), tmp_path / "out")
