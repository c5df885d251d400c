"""Projectors alone and LoRA / DoRA folders: on a language model, on a whole model, and on the wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import llava
from llava.model.checkpoints.lora import with_adapter
from llava.utils.merge_lora_weights_and_save_hf_model import main as merge_command
from tests.numerics.models import worst
from tests.unit.model.checkpoints.folders import (
    edit_json,
    logits_of,
    model_of,
    original_config,
    original_state,
    same_weights,
    write_original,
)

peft = pytest.importorskip("peft")

MERGED = 1e-5  # measured worst: 2.3e-6; the adapter moves logits by up to 4.6


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of()


def base_of(model: Any, root: Path) -> Path:
    """The language model alone, and its tower beside it."""
    model.llm.save_pretrained(root / "base")
    model.vision_tower.vision_tower.save_pretrained(root / "tower")
    return root / "base"


def projector_state(model: Any) -> dict[str, Tensor]:
    state = original_state(model, tower=False)
    return {name: value.clone() for name, value in state.items() if "mm_projector" in name}


def write_projector(model: Any, root: Path) -> Path:
    folder = root / "stage1"
    folder.mkdir()
    torch.save(projector_state(model), folder / "mm_projector.bin")
    (folder / "config.json").write_text(json.dumps(original_config(model, "./tower")))
    return folder


@pytest.mark.parametrize("path", ["stage1", "stage1/mm_projector.bin"])
def test_a_projector_joins_a_language_model(model: Any, tmp_path: Path, path: str):
    base = base_of(model, tmp_path)
    write_projector(model, tmp_path)
    assert same_weights(llava.load(tmp_path / path, model_base=str(base)), model)


def test_an_intermediate_projector_finds_its_config_above(model: Any, tmp_path: Path):
    base, folder = base_of(model, tmp_path), write_projector(model, tmp_path)
    (folder / "mm_projector").mkdir()
    (folder / "mm_projector.bin").rename(folder / "mm_projector" / "checkpoint-10.bin")
    shutil_tower = folder / "tower"
    (tmp_path / "tower").rename(shutil_tower)
    found = llava.load(folder / "mm_projector" / "checkpoint-10.bin", model_base=str(base))
    assert same_weights(found, model)


def test_a_projector_replaces_that_of_a_whole_model(model: Any, tmp_path: Path):
    other = model_of(seed=5)
    folder = write_projector(other, tmp_path)
    base = write_original(model, tmp_path)
    found = llava.load(folder, model_base=str(base))
    assert same_weights(found.mm_projector, other.mm_projector)
    assert same_weights(found.llm, model.llm)
    assert same_weights(llava.load(base), model)  # the files of the base are as they were


def test_a_base_must_be_given_and_must_fit(model: Any, tmp_path: Path):
    folder = write_projector(model, tmp_path)
    with pytest.raises(ValueError, match=r"model_base=None \(it was trained on '/train/runs/base'\); give the base"):
        llava.load(folder)
    wide = model_of(llm="llama", mm_projector_cfg="linear")
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"mm_projector.bin: .*mm_projector.0.weight.*give the base"):
        llava.load(folder, model_base=str(tmp_path / "wide"))
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json that names mm_vision_tower.*put the config.json"):
        llava.load(folder, model_base=str(base_of(model, tmp_path)))


def test_a_file_that_is_no_projector_is_named(model: Any, tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"mm_projector.bin holds weight, expected names with mm_projector"):
        llava.load(tmp_path, model_base="base")


def random_adapter(llm: Any, **settings: Any) -> Any:
    """An adapter beside the language model whose every weight differs from its start."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **settings)
    adapted = peft.get_peft_model(llm, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(weight + 0.1 * noise if "magnitude" in name else 0.2 * noise)
    return adapted.eval()


def write_adapter(root: Path, *, projector: Any, style: str = "llava", **settings: Any) -> tuple[Path, Any]:
    """(folder, the same adapter not merged); style says whose names the files carry."""
    model, folder = model_of(), root / "lora"
    adapted = random_adapter(model.llm, **settings)
    adapted.save_pretrained(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="/train/runs/base")
    others = {f"base_model.model.{name}": value for name, value in projector_state(projector).items()}
    if style == "vila":
        file = folder / "adapter_model.safetensors"
        state = load_file(file)
        save_file({name.replace("base_model.model.", "base_model.model.llm."): v for name, v in state.items()}, file)
        layers = projector.mm_projector.state_dict()
        others = {f"base_model.model.mm_projector.{name}": value for name, value in layers.items()}
    else:
        (folder / "config.json").write_text(json.dumps(original_config(projector, "./tower")))
    torch.save(others, folder / "non_lora_trainables.bin")
    model.mm_projector.load_state_dict(projector.mm_projector.state_dict())
    return folder, model


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("style", ["llava", "vila"])
def test_merged_logits_are_those_of_the_adapter_beside_the_base(
    model: Any, tmp_path: Path, style: str, settings: dict[str, Any]
):
    folder, unmerged = write_adapter(tmp_path, projector=model_of(seed=5), style=style, **settings)
    base = base_of(model, tmp_path) if style == "llava" else tmp_path / "whole"
    if style == "vila":
        model.save_pretrained(base)
    merged = llava.load(folder, model_base=str(base))
    assert type(merged) is type(model)
    assert not any("lora" in name for name in merged.state_dict())
    expected = logits_of(unmerged)
    assert worst(logits_of(merged), expected) <= MERGED
    assert worst(logits_of(merged), logits_of(model)) > 0.1


def test_merged_and_saved_it_is_a_checkpoint_like_any_other(model: Any, tmp_path: Path):
    folder, _ = write_adapter(tmp_path, projector=model)
    merged = llava.load(folder, model_base=str(write_original(model, tmp_path)))
    assert same_weights(llava.load(tmp_path / "llava"), model)  # the files of the base are as they were
    merged.save_pretrained(tmp_path / "merged")
    assert same_weights(llava.load(tmp_path / "merged"), merged)


def test_an_adapter_beside_the_base_is_that_which_was_saved(model: Any, tmp_path: Path):
    folder, unmerged = write_adapter(tmp_path, projector=model)
    settings = json.loads((folder / "adapter_config.json").read_text())
    beside = with_adapter(model_of(), folder, settings)
    assert torch.equal(logits_of(beside.base_model.model), logits_of(unmerged))


def test_the_adapter_of_another_model_is_refused(model: Any, tmp_path: Path):
    folder, _ = write_adapter(tmp_path, projector=model)
    base = write_original(model, tmp_path)
    state = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({**state, key: torch.zeros(4, 64)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: .*q_proj.lora_A.weight has shape \[4, 64\].*32"):
        llava.load(folder, model_base=str(base))
    deeper = {name.replace("layers.1.", "layers.7."): value for name, value in state.items()}
    save_file(deeper, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"no module for .*layers.7.*another model.*model_base"):
        llava.load(folder, model_base=str(base))


def test_an_adapter_without_base_weights_or_method_says_so(model: Any, tmp_path: Path):
    folder, _ = write_adapter(tmp_path, projector=model)
    with pytest.raises(ValueError, match=r"model_base=None \(it was trained on '/train/runs/base'\)"):
        llava.load(folder)
    base = str(write_original(model, tmp_path))
    edit_json(folder / "adapter_config.json", peft_type="IA3")
    with pytest.raises(ValueError, match="peft_type is 'IA3', expected 'LORA'"):
        llava.load(folder, model_base=base)
    (folder / "adapter_model.safetensors").unlink()
    edit_json(folder / "adapter_config.json", peft_type="LORA")
    with pytest.raises(FileNotFoundError, match=r"no adapter weights: expected adapter_model.safetensors"):
        llava.load(folder, model_base=base)


def test_other_weights_of_the_adapter_folder_must_fit_the_base(model: Any, tmp_path: Path):
    folder, _ = write_adapter(tmp_path, projector=model)
    torch.save({"base_model.model.model.mm_projector.9.weight": torch.zeros(2)}, folder / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"non_lora_trainables.bin: the base has no weight for .*mm_projector.9"):
        llava.load(folder, model_base=str(write_original(model, tmp_path)))


@pytest.mark.parametrize("method", ["saved", "biases"])
def test_whole_weights_in_the_adapter_file_are_read_too(tmp_path: Path, method: str):
    """What `modules_to_save` and `bias` of peft put there."""
    model = model_of(llm="qwen2")
    model.save_pretrained(tmp_path / "base")
    settings = {"modules_to_save": ["lm_head"]} if method == "saved" else {"bias": "all"}
    adapted = random_adapter(model.llm, **settings)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name or ("lora_" not in name and weight.requires_grad):
                weight.add_(0.3)
    adapted.save_pretrained(tmp_path / "lora")
    found = llava.load(tmp_path / "lora", model_base=str(tmp_path / "base"))
    assert worst(logits_of(found), logits_of(model)) <= MERGED
    changed = "lm_head.weight" if method == "saved" else "model.layers.0.self_attn.q_proj.bias"
    before = llava.load(tmp_path / "base").llm.state_dict()[changed]
    assert torch.allclose(found.llm.state_dict()[changed], before + 0.3, atol=1e-6)


def test_a_whole_weight_of_another_shape_is_refused(model: Any, tmp_path: Path):
    folder, _ = write_adapter(tmp_path, projector=model)
    state = load_file(folder / "adapter_model.safetensors")
    table = {"base_model.model.model.embed_tokens.weight": torch.zeros(99, 32)}
    save_file({**state, **table}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"embed_tokens.weight has shape \[99, 32\], the base has"):
        llava.load(folder, model_base=str(write_original(model, tmp_path)))


def test_the_base_that_the_adapter_names_is_taken_where_it_is_here(model: Any, tmp_path: Path):
    folder, unmerged = write_adapter(tmp_path / "run", projector=model)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(write_original(model, tmp_path)))
    assert worst(logits_of(llava.load(folder)), logits_of(unmerged)) <= MERGED
    edit_json(folder / "adapter_config.json", base_model_name_or_path="/train/runs/lora/adapter_base")
    model.save_pretrained(tmp_path / "run" / "adapter_base")  # beside a checkpoint of a run that was moved
    assert worst(logits_of(llava.load(folder)), logits_of(unmerged)) <= MERGED


def test_the_command_writes_a_merged_model_in_either_layout(model: Any, tmp_path: Path, capsys: Any):
    folder, unmerged = write_adapter(tmp_path, projector=model)
    base = str(tmp_path / "whole")
    model.save_pretrained(base)
    words = ["--model-path", str(folder), "--model-base", base]
    assert merge_command([*words, "--save-model-path", str(tmp_path / "ours")]) == 0
    assert merge_command([*words, "--save-model-path", str(tmp_path / "hf"), "--layout", "llava-hf"]) == 0
    for name in ("ours", "hf"):
        assert worst(logits_of(llava.load(tmp_path / name)), logits_of(unmerged)) <= MERGED
    assert (tmp_path / "ours" / "llm").is_dir() and not (tmp_path / "hf" / "llm").exists()
    capsys.readouterr()
    assert merge_command([*words, "--save-model-path", str(tmp_path / "ours")]) == 2
    assert "is not empty; choose another --save-model-path" in capsys.readouterr().err
    assert merge_command(["--model-path", base, "--save-model-path", str(tmp_path / "twice")]) == 2
    assert "has no adapter to merge" in capsys.readouterr().err
