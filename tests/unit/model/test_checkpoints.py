"""What is written is read back to the bit; what is missing or does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llava
from llava.model import LlavaConfig, LlavaLlamaModel, LlavaQwenModel, build_model, load_pretrained_model
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import pictures, tiny_config, tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(["go to the red ball and stop", "turn left at the blue chair"] * 3, 300, folder)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model(version="llama_3", a_key_of_tomorrow={"depth": [1, 2]}).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("llm", "tower"),
    [
        ("llama", "siglip_vision_model"),
        ("llama", "clip_vision_model"),
        ("qwen2", "siglip_stem"),
        ("qwen3", "siglip_stem"),
    ],
)
def test_a_saved_model_reads_back_to_the_bit(tmp_path: Path, llm: str, tower: str):
    model = tiny_model(llm, tower)
    model.save_pretrained(tmp_path)
    again = llava.load(tmp_path)
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert type(again) is type(model)
    images, ids = pictures(1), torch.tensor([[1, -200, 5]])
    with torch.no_grad():
        assert torch.equal(model(ids, images).logits, again(ids, images).logits)


def test_tied_embeddings_stay_tied(tmp_path: Path):
    config = tiny_config("qwen2")
    config["llm_cfg"]["tie_word_embeddings"] = True
    model = build_model(config)
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    again = llava.load(tmp_path)
    assert again.llm.lm_head.weight is again.llm.get_input_embeddings().weight
    assert torch.equal(again.llm.lm_head.weight, model.llm.lm_head.weight)


def test_a_tower_of_several_scales_is_refused(saved: Path):
    edit_json(saved / "config.json", s2=True)
    with pytest.raises(ValueError, match=r"config.s2 is set"):
        llava.load(saved)


def test_the_three_folders_are_those_of_the_published_layout(saved: Path):
    parts = {"llm", "vision_tower", "mm_projector"}
    assert {entry.name for entry in saved.iterdir()} == {"config.json", "README.md", *parts}
    projector = json.loads((saved / "mm_projector" / "config.json").read_text())
    assert projector["model_type"] == "v2l_projector"
    assert projector["mm_projector_type"] == "mlp_downsample"
    assert projector["token_order"] == "row"
    assert set(load_file(saved / "mm_projector" / "model.safetensors")) == {
        f"layers.{index}.{kind}" for index in (1, 2, 4) for kind in ("weight", "bias")
    }
    assert "lm_head.weight" in load_file(saved / "llm" / "model.safetensors")
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "llava_llama"
    assert config["architectures"] == ["LlavaLlamaModel"]
    assert str(saved) not in (saved / "config.json").read_text()


def test_a_model_card_is_written_once_and_never_over_a_users_own(saved: Path):
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: llava\npipeline_tag: image-text-to-text\n---\n")
    assert "| visual tokens per picture | 4 |" in card
    assert "| conversation template | llama_3 |" in card
    assert 'llava.load("this folder")' in card
    (saved / "README.md").write_text("mine")
    llava.load(saved).save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


def test_keys_that_nobody_knows_survive(saved: Path, tmp_path: Path):
    llava.load(saved).save_pretrained(tmp_path / "again")
    config = LlavaConfig.from_pretrained(tmp_path / "again")
    assert config.a_key_of_tomorrow == {"depth": [1, 2]}
    assert config.version == "llama_3"


def test_a_state_dict_from_elsewhere_is_split_by_prefix(tmp_path: Path):
    model = tiny_model()
    doubled = {name: 2 * value for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=doubled)
    found = llava.load(tmp_path).state_dict()
    assert all(torch.equal(found[name], doubled[name]) for name in doubled)


def test_the_tokenizer_travels_in_the_folder_of_the_language_model(tmp_path: Path, tokenizer: Any):
    config = tiny_config(image_token_id=None)
    config["llm_cfg"]["vocab_size"] = len(tokenizer)
    model = build_model(config, tokenizer=tokenizer)
    model.save_pretrained(tmp_path)
    read_tokenizer, again, processor, context_len = load_pretrained_model(str(tmp_path))
    assert (tmp_path / "llm" / "tokenizer.json").is_file()
    assert read_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert again.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert processor is None
    assert context_len == 2048


def test_the_image_processor_travels_in_the_folder_of_the_tower(golden: Path, tmp_path: Path):
    model = llava.load(golden / "A_navila" / "checkpoint")
    model.save_pretrained(tmp_path)
    again = llava.load(tmp_path)
    assert again.image_processor.image_mean == model.image_processor.image_mean
    assert again.config.token_order == "column"
    assert json.loads((tmp_path / "mm_projector" / "config.json").read_text())["token_order"] == "column"
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_old_bin_files_and_shards_are_read(saved: Path, tmp_path: Path):
    expected = llava.load(saved).state_dict()
    for part in ("llm", "vision_tower", "mm_projector"):
        state = load_file(saved / part / "model.safetensors")
        torch.save(state, saved / part / "pytorch_model.bin")
        (saved / part / "model.safetensors").unlink()
    from_bin = llava.load(saved)
    assert all(torch.equal(from_bin.state_dict()[name], expected[name]) for name in expected)
    from_bin.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "llm" / "model.safetensors.index.json").is_file()
    from_shards = llava.load(tmp_path / "shards").state_dict()
    assert all(torch.equal(from_shards[name], expected[name]) for name in expected)


def test_paths_of_the_machine_that_wrote_a_config_are_ignored(saved: Path):
    stored = json.loads((saved / "config.json").read_text())
    for part in ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg"):
        stored[part]["_name_or_path"] = "/nowhere/else"
    edit_json(saved / "config.json", **{**stored, "_name_or_path": "/nowhere", "resume_path": "/nowhere"})
    model = llava.load(saved)
    model.save_pretrained(saved)
    assert "/nowhere/else" not in (saved / "config.json").read_text()


def test_parts_may_lie_elsewhere_before_the_first_save(saved: Path, tmp_path: Path):
    root = tmp_path / "start"
    root.mkdir()
    shutil.move(saved / "llm", tmp_path / "language")
    for entry in ("vision_tower", "mm_projector", "config.json"):
        shutil.move(saved / entry, root / entry)
    edit_json(root / "config.json", llm_cfg=str(tmp_path / "language"))
    assert llava.load(root).llm.config.vocab_size == 60


def test_a_model_is_started_from_a_language_model_and_a_tower(saved: Path):
    model = build_model(
        {
            "llm_cfg": str(saved / "llm"),
            "vision_tower_cfg": str(saved / "vision_tower"),
            "mm_projector_cfg": "mlp2x_gelu",
        },
        dtype=torch.bfloat16,
    )
    stored = load_file(saved / "llm" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.llm.lm_head.weight, stored.bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.vision_tower_cfg["model_type"] == "siglip_stem"


def test_the_sub_folder_model_is_preferred(saved: Path, tmp_path: Path):
    shutil.move(saved, tmp_path / "run" / "model")
    assert isinstance(llava.load(tmp_path / "run"), LlavaLlamaModel)


@pytest.mark.parametrize(
    ("stored", "config", "order"),
    [
        ({}, {}, "column"),
        ({}, {"max_tiles": 12}, "row"),
        ({}, {"image_encoder": "{}"}, "row"),
        ({"token_order": "column"}, {"max_tiles": 12}, "column"),
        ({}, {"token_order": "row"}, "row"),
    ],
)
def test_the_order_of_merged_tokens_is_stored_or_told_by_the_family(stored: Any, config: Any, order: str):
    from llava.model.checkpoints.three_folder import token_order_of

    assert token_order_of(stored, config) == order


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_a_missing_part_is_named(saved: Path, part: str):
    shutil.rmtree(saved / part)
    with pytest.raises(FileNotFoundError, match=rf"has no {part}.*save_pretrained"):
        llava.load(saved)


def test_a_part_without_weights_is_named(saved: Path):
    (saved / "llm" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"llm has no weights.*found.*config.json"):
        llava.load(saved)


def test_a_missing_weight_is_named(saved: Path):
    rewrite(saved / "llm", lambda state: state.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"llm lacks weights of the language model: model.norm.weight"):
        llava.load(saved)


def test_an_unknown_weight_is_named(saved: Path):
    rewrite(saved / "mm_projector", lambda state: state.update({"layers.9.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"mm_projector has unknown weights of the projector: layers.9.weight"):
        llava.load(saved)


def test_a_projector_of_another_width_is_named(saved: Path, tmp_path: Path):
    other = tiny_config()
    other["llm_cfg"] |= {"hidden_size": 64, "num_attention_heads": 4}
    build_model(other).save_pretrained(tmp_path / "other")
    shutil.rmtree(saved / "mm_projector")
    shutil.copytree(tmp_path / "other" / "mm_projector", saved / "mm_projector")
    with pytest.raises(ValueError, match=r"layers.2.bias has shape \[64\], expected \[32\].*projector"):
        llava.load(saved)


def test_a_cut_config_is_named(saved: Path):
    (saved / "config.json").write_text('{"llm_cfg": {')
    with pytest.raises(ValueError, match=r"config.json is not valid JSON.*copy it again"):
        llava.load(saved)


def test_an_unknown_tower_or_language_model_is_answered_with_the_nearest(saved: Path):
    with pytest.raises(ValueError, match="did you mean 'qwen2'"):
        build_model({**tiny_config(), "llm_cfg": {"model_type": "qwen_2"}})
    edit_json(saved / "vision_tower" / "config.json", model_type="siglip_vison_model")
    with pytest.raises(ValueError, match="did you mean 'siglip_vision_model'"):
        llava.load(saved)


def test_a_folder_that_is_no_checkpoint_is_described(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder.*hub id"):
        llava.load(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no known checkpoint layout \(found notes.txt\)"):
        llava.load(tmp_path)


def test_a_base_is_refused_for_a_complete_checkpoint(saved: Path):
    with pytest.raises(ValueError, match="complete checkpoint"):
        llava.load(saved, model_base="base")


def test_the_class_asked_for_must_be_the_one_in_the_folder(saved: Path):
    assert isinstance(LlavaLlamaModel.from_pretrained(saved), LlavaLlamaModel)
    with pytest.raises(ValueError, match="holds a LlavaLlamaModel, expected LlavaQwenModel"):
        LlavaQwenModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="did you mean 'device_map'"):
        LlavaLlamaModel.from_pretrained(saved, device_mapp="cpu")


def test_a_device_that_is_not_there_is_named(saved: Path):
    with pytest.raises(ValueError, match="CUDA device 99"):
        llava.load(saved, devices=[99])


def test_a_plain_language_model_is_read_without_vision(saved: Path, tokenizer: Any):
    tokenizer.save_pretrained(saved / "llm")
    read_tokenizer, llm, processor, _ = load_pretrained_model(str(saved / "llm"))
    assert type(llm).__name__ == "LlamaForCausalLM"
    assert processor is None
    assert len(read_tokenizer) == len(tokenizer)
