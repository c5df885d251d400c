"""LLaVA's own single folder: every kind of weight file, the tower inside or beside it, and what goes wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llava
from llava.model import load_pretrained_model
from llava.model.checkpoints import ReadOptions
from llava.model.checkpoints.original import make_plan
from tests.unit.model.checkpoints.folders import (
    edit_json,
    logits_of,
    model_of,
    original_state,
    rewrite,
    same_weights,
    save_state,
    write_original,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of()


@pytest.mark.parametrize("kind", ["safetensors", "safetensors shards", "bin", "bin shards"])
@pytest.mark.parametrize("tower", [True, False])
def test_every_kind_of_weight_file_gives_the_same_weights(model: Any, tmp_path: Path, kind: str, tower: bool):
    found = llava.load(write_original(model, tmp_path, tower=tower, kind=kind))
    assert same_weights(found, model)
    assert torch.equal(logits_of(found), logits_of(model))
    assert found.config.version == "v1"
    assert found.config.aspect_mode() == "pad"
    assert found.config.tokenization_compat == {"chunkwise": True}


@pytest.mark.parametrize(("llm", "name"), [("qwen2", "LlavaQwenModel"), ("mistral", "LlavaMistralModel")])
def test_the_family_is_told_by_its_model_type(tmp_path: Path, llm: str, name: str):
    model = model_of(llm)
    found = llava.load(write_original(model, tmp_path))
    assert type(found).__name__ == name
    assert same_weights(found, model)


def test_experts_are_read_under_their_published_names(tmp_path: Path):
    model = model_of("mixtral")
    folder = write_original(model, tmp_path)
    model.llm.save_pretrained(tmp_path / "published")
    published = load_file(tmp_path / "published" / "model.safetensors")
    others = {name: value for name, value in original_state(model).items() if ".mm_" in name or "vision" in name}
    save_state(published | others, folder)
    assert any("experts.3.w2" in name for name in published)
    assert same_weights(llava.load(folder), model)


def test_a_tower_inside_the_folder_wins_over_the_one_it_is_named_after(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    key = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    rewrite(folder, lambda state: state[key].fill_(3.0))
    assert llava.load(folder).vision_tower.vision_tower.embeddings.class_embedding.eq(3.0).all()


def test_layers_that_are_never_run_need_not_be_stored(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    behind = "model.vision_tower.vision_tower.vision_model.encoder.layers.1."
    rewrite(folder, lambda state: [state.pop(key) for key in list(state) if key.startswith(behind)])
    assert "never run" in make_plan(folder, ReadOptions()).explained["vision_tower.encoder.layers.1.mlp.fc1.weight"]
    assert torch.equal(logits_of(llava.load(folder)), logits_of(model))


def test_tied_heads_and_old_buffers_are_explained(tmp_path: Path):
    model = model_of()
    folder = write_original(model, tmp_path)
    edit_json(folder / "config.json", tie_word_embeddings=True)

    def change(state: dict[str, Any]) -> None:
        state.pop("lm_head.weight")
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    rewrite(folder, change)
    found = llava.load(folder)
    assert found.llm.lm_head.weight is found.llm.get_input_embeddings().weight
    plan = make_plan(folder, ReadOptions())
    assert plan.explained["llm.lm_head.weight"] == "tied to the input embeddings"
    assert plan.explained["model.layers.0.self_attn.rotary_emb.inv_freq"] == "computed from the config"


def test_what_was_read_is_saved_as_three_folders(model: Any, tmp_path: Path):
    llava.load(write_original(model, tmp_path)).save_pretrained(tmp_path / "again")
    again = llava.load(tmp_path / "again")
    assert same_weights(again, model)
    assert again.config.version == "v1"


@pytest.mark.parametrize(
    ("settings", "order"), [({}, "column"), ({"max_tiles": 2}, "row"), ({"token_order": "row"}, "row")]
)
def test_merged_tokens_follow_the_order_of_the_family(tmp_path: Path, settings: dict[str, Any], order: str):
    model = model_of(mm_projector_cfg="mlp_downsample")
    folder = write_original(model, tmp_path)
    edit_json(folder / "config.json", **settings)
    found = llava.load(folder)
    assert found.config.token_order == order
    assert torch.equal(logits_of(found), logits_of(model)) == (order == "row")
    found.save_pretrained(tmp_path / "again")
    assert llava.load(tmp_path / "again").config.token_order == order


def test_half_precision_stays_or_becomes_what_is_asked_for(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    state = {name: value.half() for name, value in original_state(model).items()}
    save_state(state, folder)
    assert {p.dtype for p in llava.load(folder).parameters()} == {torch.float16}
    assert {p.dtype for p in llava.load(folder, dtype=torch.float32).parameters()} == {torch.float32}


def test_a_path_of_another_machine_is_named_with_the_way_out(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path, tower=False)
    edit_json(folder / "config.json", mm_vision_tower="/data/models/clip-vit")
    with pytest.raises(ValueError, match=r"mm_vision_tower '/data/models/clip-vit'.*no such folder.*vision_tower="):
        llava.load(folder)
    found = load_pretrained_model(str(folder), device="cpu", vision_tower=str(tmp_path / "tower"))[1]
    assert same_weights(found, model)


def test_a_tiled_model_without_its_newline_is_refused(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    side = model.vision_tower.image_size
    how = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[side, 2 * side], [2 * side, side]]}
    edit_json(folder / "config.json", **how, mm_patch_merge_type="spatial")
    assert llava.load(folder).visual_spec.anyres.resolutions == ((2 * side, side), (side, 2 * side))
    edit_json(folder / "config.json", **how, mm_patch_merge_type="spatial_unpad")
    with pytest.raises(ValueError, match=r"lacks weights: mm_projector.image_newline"):
        llava.load(folder)


def test_a_missing_weight_is_named(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    rewrite(folder, lambda state: state.pop("model.mm_projector.2.bias"))
    with pytest.raises(ValueError, match=r"lacks weights: mm_projector.layers.2.bias \[32\].*vila-inspect"):
        llava.load(folder)


def test_an_unknown_weight_is_named_with_its_file(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    rewrite(folder, lambda state: state.update({"model.vision_resampler.queries": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"unknown weights in .*model.safetensors: model.vision_resampler.queries"):
        llava.load(folder)


def test_a_wrong_shape_is_named_with_its_file(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    rewrite(folder, lambda state: state.update({"model.norm.weight": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"model.safetensors: model.norm.weight has shape \[5\], expected \[32\]"):
        llava.load(folder)


def test_a_cut_safetensors_file_is_named(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is no complete safetensors file.*copy it again"):
        llava.load(folder)


def test_a_cut_bin_file_is_named(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path, kind="bin")
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"pytorch_model.bin is no complete torch file.*copy it again"):
        llava.load(folder)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(model: Any, tmp_path: Path, index: bool):
    folder = write_original(model, tmp_path, kind="safetensors shards")
    (folder / "model-00002-of-00002.safetensors").unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the shard model-00002-of-00002.safetensors.*\(1 of 2"):
        llava.load(folder)


class Evil:
    def __reduce__(self) -> Any:
        return (open, ("/tmp/should-not-exist-llava", "w"))


def test_code_in_a_pickle_is_not_run(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path, kind="bin")
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin holds more than tensors .*was not run.*safetensors"):
        llava.load(folder)
    assert not Path("/tmp/should-not-exist-llava").exists()


def test_a_folder_with_two_layouts_is_refused(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    model.save_pretrained(tmp_path / "three")
    (tmp_path / "three" / "llm").rename(folder / "llm")
    with pytest.raises(ValueError, match=r"holds 2 checkpoints \(three_folder.*original.*expected one"):
        llava.load(folder)


def test_an_unknown_model_type_is_answered_with_the_nearest(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    edit_json(folder / "config.json", model_type="llava_lama")
    with pytest.raises(ValueError, match=r"config.json: unknown model_type.*did you mean 'llava_llama'"):
        llava.load(folder)
    (folder / "config.json").write_text('{"model_type": "llava_lama"}')
    with pytest.raises(ValueError, match=r"model_type is 'llava_lama', unknown here.*did you mean 'llava_llama'"):
        llava.load(folder)
