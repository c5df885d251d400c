"""8-bit and 4-bit language models behind towers and projectors of full precision, read from every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

import llava
from llava.model import builder
from llava.model.builder import build_model, load_pretrained_model
from llava.model.checkpoints.export import export_llava_hf
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import VOCAB, pictures, tiny_config, worst
from tests.unit.model.checkpoints.folders import write_original

IMAGE = VOCAB - 1
ERRORS = {"Linear8bitLt": 0.15, "Linear4bit": 1.0}  # of logits up to 3.1; measured worst: 0.080 and 0.61
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


@pytest.fixture(scope="module")
def model() -> Any:
    config = tiny_config("llama", "clip_vision_model", mm_projector_cfg="mlp2x_gelu", image_token_id=IMAGE)
    config["llm_cfg"].update(hidden_size=64, intermediate_size=128)  # 4-bit weights come in blocks of 64
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    model.save_pretrained(root / "three")
    export_llava_hf(model, root / "hf")
    return {"three folders": root / "three", "LLaVA-1.5": write_original(model, root), "llava-hf": root / "hf"}


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, -200, 5, 9, 3]]), images=pictures(1)).logits


def kinds(part: nn.Module) -> set[str]:
    return {type(layer).__name__ for layer in part.modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize("layout", ["three folders", "LLaVA-1.5", "llava-hf"])
@pytest.mark.parametrize(("asked", "kind"), [("load_8bit", "Linear8bitLt"), ("load_4bit", "Linear4bit")])
def test_only_the_language_model_is_quantised(model: Any, folders: Any, layout: str, asked: str, kind: str):
    pytest.importorskip("bitsandbytes")
    found = llava.load(folders[layout], device="cpu", **{asked: True})
    assert kinds(found.llm) == {kind, "Linear"}  # the head stays
    assert type(found.llm.get_output_embeddings()) is nn.Linear
    for part in (found.vision_tower, found.mm_projector):
        assert kinds(part) == {"Linear"}
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}
    assert 0 < worst(logits_of(found), logits_of(model)) < ERRORS[kind]
    answer = found.generate(torch.tensor([[1, -200, 5]]), pictures(1), do_sample=False, max_new_tokens=2)
    assert answer.shape == (1, 2)


def test_settings_of_the_quantisation_arrive(folders: Any):
    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=4.5, llm_int8_skip_modules=["lm_head", "q_proj"]
    )
    found = llava.load(folders["LLaVA-1.5"], device="cpu", quantization_config=settings)
    layer = found.llm.model.layers[0].self_attn
    assert type(layer.q_proj) is nn.Linear
    assert layer.k_proj.state.threshold == 4.5
    four = llava.load(folders["three folders"], device="cpu", quantization_config=BitsAndBytesConfig(**FOUR))
    layer = four.llm.model.layers[0].self_attn.q_proj
    assert (layer.compute_dtype, layer.weight.quant_type, layer.quant_state.nested) == (torch.float32, "nf4", False)


def test_a_quantised_model_is_saved_and_read_again(folders: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(**FOUR)
    found = llava.load(folders["three folders"], device="cpu", quantization_config=settings)
    found.save_pretrained(tmp_path)
    again = llava.load(tmp_path, device="cpu")
    assert kinds(again.llm) == {"Linear4bit", "Linear"}
    assert worst(logits_of(again), logits_of(found)) == 0


def test_a_plain_language_model_is_quantised_too(model: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    model.llm.save_pretrained(tmp_path)
    train_tokenizer(["go to the red ball"], 300, tmp_path)
    _, llm, processor, _ = load_pretrained_model(str(tmp_path), device="cpu", load_8bit=True)
    assert (kinds(llm), processor) == ({"Linear8bitLt", "Linear"}, None)


@pytest.mark.parametrize("asked", [{"load_8bit": True}, {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}])
def test_two_quantisations_at_once_are_refused(folders: Any, asked: dict[str, Any]):
    with pytest.raises(ValueError, match="load_8bit, load_4bit and quantization_config exclude each other"):
        llava.load(folders["three folders"], load_4bit=True, **asked)


def test_without_bitsandbytes_it_is_asked_for(folders: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builder, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="load_4bit needs bitsandbytes: pip install bitsandbytes"):
        llava.load(folders["three folders"], load_4bit=True)


def test_settings_of_the_quantisation_are_keywords(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("llava.model.builder.find_spec", lambda name: object())
    assert builder.quantization(load_4bit=False, llm_int8_threshold=3.5).llm_int8_threshold == 3.5
    four = builder.quantization(load_4bit=True, bnb_4bit_quant_type="fp4")
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("fp4", True)
    with pytest.raises(ValueError, match="llm_int8_threshold given without load_8bit or load_4bit"):
        load_pretrained_model(str(tmp_path), llm_int8_threshold=3.5)
