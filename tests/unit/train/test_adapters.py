"""Adapters in training: where they lie, what is trained, folders that load by one call, and runs that go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import llava
from llava.data.collate import DataCollator
from llava.train.adapter_flags import adapter_settings, quantisation
from llava.train.adapters import adapted_layers, prepare_adapted_model
from llava.train.llava_trainer import LLaVATrainer
from llava.train.model_setup import PreparedModel
from llava.train.parse import parse_args
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import tiny_model
from tests.unit.train.toy import ToyData, toy_model

pytest.importorskip("peft")

FLAGS = "--version llama_3 --report_to none --use_cpu True --lora_enable True".split()
SHORT = "--learning_rate 2e-2 --max_steps 4 --logging_steps 1 --save_strategy no --lr_scheduler_type constant".split()
BOTH = ("--lora_llm", "True", "--lora_vt", "True")
MERGED = 1e-5  # measured worst: 7.2e-7 of logits up to 2.8, which the adapters move by up to 3.9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model on disk with weights large enough that a lost adapter shows."""
    return written(large_model(), tmp_path_factory.mktemp("toy"))


def written(model: Any, folder: Path) -> Path:
    train_tokenizer(["walk to the red ball"], 300, folder / "tokenizer")
    model.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model.save_pretrained(folder / "base")
    return folder / "base"


def large_model(seed: int = 0, width: int = 16) -> Any:
    model = toy_model(seed, width)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def adapted(base: Path, output: Path, *flags: str, checkpoint: Path | None = None) -> tuple[PreparedModel, Any]:
    flags = ("--lora_r", "2", *flags) if "--lora_weight_path" not in flags else flags
    args = parse_args([*FLAGS, *SHORT, "--model_name_or_path", str(base), "--output_dir", str(output), *flags])
    settings = adapter_settings(args)
    assert settings is not None
    return prepare_adapted_model(args, settings, checkpoint=checkpoint, corpus=list), args


def trainer_of(prepared: PreparedModel, args: Any, **more: Any) -> LLaVATrainer:
    token = prepared.model.config.image_token_id
    collator = DataCollator(pad_token_id=0, max_length=64, mode="pad", rows="one", image_token_id=token)
    return LLaVATrainer(
        prepared.model,
        args.training,
        adapter=prepared.adapter,
        train_dataset=ToyData(24, token),
        data_collator=collator,
        **more,
    )


def trained(base: Path, output: Path, *flags: str) -> LLaVATrainer:
    trainer = trainer_of(*adapted(base, output, *flags))
    trainer.train()
    trainer.save_model()
    return trainer


def losses(trainer: LLaVATrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def logits(model: Any) -> Tensor:
    sample = ToyData(1, model.config.image_token_id)[0]
    with torch.no_grad():
        return model.eval()(sample["input_ids"][None], sample["images"]).logits


def worst(found: Any, expected: Any) -> float:
    return (logits(found).float() - logits(expected).float()).abs().max().item()


# ---- where adapters lie, and what is trained ----


def test_every_linear_layer_of_the_chosen_parts_is_adapted_but_no_head_and_no_projector():
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = adapted_layers(toy_model(), ["language_model"])
    assert len(names) == 2 * len(layers)
    assert {name.rpartition(".")[2] for name in names} == set(layers)
    assert all(name.startswith("llm.model.layers.") for name in names)


def test_layers_behind_the_selected_one_get_no_adapter():
    model = tiny_model(tower="clip_vision_model", mm_vision_select_layer=-2)  # 2 layers, of which the first is run
    names = adapted_layers(model, ["vision_tower"])
    assert len(names) == 6
    assert all(name.startswith("vision_tower.vision_tower.encoder.layers.0.") for name in names)


def test_the_table_says_what_carries_adapters_and_rates_of_parts_reach_them(base: Path, tmp_path: Path):
    rates = ("--vision_tower_lr", "1e-4", "--mm_projector_lr", "1e-3")
    trainer = trainer_of(*adapted(base, tmp_path, *BOTH, "--use_dora", "True", "--lora_bias", "all", *rates))
    rows = {row.part: row for row in trainer.parts_table()}
    assert {part: row.method for part, row in rows.items()} == {
        "language_model": "frozen",  # a Llama has no biases
        "language_model adapters": "DoRA r=2",
        "vision_tower": "biases",
        "vision_tower adapters": "DoRA r=2",
        "mm_projector": "whole",
    }
    parameters = dict(trainer.model.named_parameters())
    for part, folder in (("language_model", "llm."), ("vision_tower", "vision_tower.")):
        free = [p.numel() for name, p in parameters.items() if name.startswith(folder) and p.requires_grad]
        assert rows[part].trainable + rows[f"{part} adapters"].trainable == sum(free)
    rate_of = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    found = {(name.split(".")[0], rate_of[id(p)]) for name, p in parameters.items() if p.requires_grad}
    assert found == {("llm", 2e-2), ("vision_tower", 1e-4), ("mm_projector", 1e-3)}
    assert rate_of.keys() == {id(p) for p in parameters.values() if p.requires_grad}


def test_frozen_parts_stay_frozen(base: Path, tmp_path: Path):
    prepared, _ = adapted(base, tmp_path, "--tune_mm_projector", "False")
    free = [name for name, p in prepared.model.named_parameters() if p.requires_grad]
    assert free
    assert all(".lora_" in name for name in free)


def test_every_adapter_learns_also_where_activations_are_recomputed(base: Path, tmp_path: Path):
    flags = ("--tune_mm_projector", "False", "--lora_dropout", "0", "--max_steps", "2", *BOTH)
    plain = trained(base, tmp_path / "a", *flags)
    again = trained(base, tmp_path / "b", *flags, "--gradient_checkpointing", "True")
    assert losses(again) == pytest.approx(losses(plain), abs=1e-6)
    ends = [p for name, p in again.model.named_parameters() if ".lora_B." in name]
    assert len(ends) == 14 + 6
    assert all(p.abs().max() > 0 for p in ends)  # they start as zeros


# ---- folders ----


@pytest.mark.parametrize(
    "flags",
    [(), ("--use_dora", "True"), ("--lora_vt", "True", "--lora_bias", "lora_only"), (*BOTH, "--use_dora", "True")],
    ids=["lora", "dora", "tower", "dora everywhere"],
)
def test_one_call_loads_what_was_trained(base: Path, tmp_path: Path, flags: tuple[str, ...]):
    trainer = trained(base, tmp_path, *flags)
    found = llava.load(tmp_path, device="cpu")
    assert worst(found, trainer.model) <= MERGED
    assert worst(found, llava.load(base, device="cpu")) > 0.1
    assert not any("lora" in name or "base_layer" in name for name in found.state_dict())
    files = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "non_lora_trainables.bin"} <= files
    assert "llm" not in files


def test_an_adapted_model_is_not_written_as_three_folders(base: Path, tmp_path: Path):
    prepared, _ = adapted(base, tmp_path)
    with pytest.raises(ValueError, match="carries an adapter beside its weights"):
        prepared.model.save_pretrained(tmp_path / "whole")


def test_settings_of_the_run_are_those_of_the_loaded_model(base: Path, tmp_path: Path):
    trained(base, tmp_path, "--image_aspect_ratio", "pad", "--num_video_frames", "3", "--max_steps", "1")
    config = llava.load(tmp_path, device="cpu").config
    assert (config.image_aspect_ratio, config.num_video_frames, config.version) == ("pad", 3, "llama_3")
    assert llava.load(base, device="cpu").config.image_aspect_ratio is None


def test_another_base_is_refused(base: Path, tmp_path: Path):
    trained(base, tmp_path / "lora", "--max_steps", "1")
    large_model(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained on another base: .* begins with .*delete base_sample.json"):
        llava.load(tmp_path / "lora", model_base=str(tmp_path / "other"))
    tiny_model().save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"llm_cfg has hidden_size 16, .*wide has 32; give the base"):
        llava.load(tmp_path / "lora", model_base=str(tmp_path / "wide"))
    shutil.copytree(base, tmp_path / "copy")
    assert worst(llava.load(tmp_path / "lora", model_base=str(tmp_path / "copy")), llava.load(tmp_path / "lora")) == 0


def test_beside_a_half_precision_base_everything_trained_is_float32(base: Path, tmp_path: Path):
    trainer = trained(base, tmp_path, "--model_dtype", "bfloat16")
    kinds = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    merged = llava.load(tmp_path, device="cpu", dtype=torch.float32)
    scale = logits(merged).abs().max().item()
    assert worst(merged, trainer.model) < 2e-2 * scale  # bfloat16 rounds by 4e-3; measured: 7.5e-3


# ---- going on ----


@pytest.mark.parametrize("flags", [(), (*BOTH, "--use_dora", "True")], ids=["lora", "dora everywhere"])
def test_a_resumed_run_repeats_the_losses_to_the_bit(base: Path, tmp_path: Path, flags: tuple[str, ...]):
    flags = (*flags, "--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "5e-3")
    whole = trained(base, tmp_path, *flags)
    half = tmp_path / "checkpoint-2"
    assert not (half / "llm").exists()  # the base is not written again
    prepared, args = adapted(base, tmp_path, *flags, checkpoint=half)
    again = trainer_of(prepared, args, restored_from=half)
    fresh = trainer_of(*adapted(base, tmp_path, *flags))  # reads the checkpoint into itself
    for trainer in (again, fresh):
        trainer.train(resume_from_checkpoint=str(half))
        assert losses(trainer) == losses(whole)
        end = dict(trainer.model.named_parameters())
        assert all(torch.equal(end[name], p) for name, p in whole.model.named_parameters())


def test_adapters_of_an_earlier_run_are_gone_on_with(base: Path, tmp_path: Path):
    first = trained(base, tmp_path / "first", "--lora_r", "3")
    start = ("--lora_weight_path", str(tmp_path / "first"))
    prepared, args = adapted(base, tmp_path / "second", *start, "--tune_mm_projector", "False", "--max_steps", "1")
    assert worst(prepared.model, first.model) == 0
    second = trainer_of(prepared, args)
    second.train()
    second.save_model()
    assert worst(prepared.model, first.model) > 0
    assert worst(llava.load(tmp_path / "second", device="cpu"), second.model) <= MERGED  # with the first's projector
    with pytest.raises(ValueError, match=r"--lora_r is 2, the adapters of .*first have 3"):
        adapted(base, tmp_path / "third", *start, "--lora_r", "2")
    with pytest.raises(ValueError, match=r"--lora_vt is True, the adapters of .*first have False"):
        adapted(base, tmp_path / "third", *start, *BOTH)
    with pytest.raises(ValueError, match=r"lora_weight_path is .*base, where no adapter_config.json is"):
        adapted(base, tmp_path / "third", "--lora_weight_path", str(base))


# ---- quantised bases ----


@pytest.fixture(scope="module")
def kernels() -> None:
    """bitsandbytes that works on this machine: since 0.49 also without a GPU."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32).to("cpu")
    try:
        layer(torch.zeros(1, 64))
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"bitsandbytes {bitsandbytes.__version__} has no kernels for this machine: {error}")


@pytest.mark.parametrize(("bits", "dtype"), [("4", "nf4"), ("8", "int8")])
def test_adapters_learn_beside_a_quantised_language_model(kernels: None, tmp_path: Path, bits: str, dtype: str):
    wide = large_model(width=64)  # on the CPU, 4 bits are packed by rows of 32
    base = written(wide, tmp_path)
    whole = sum(p.numel() for p in wide.llm.parameters())
    flags = ("--bits", bits, "--save_strategy", "steps", "--save_steps", "2")
    trainer = trained(base, tmp_path, *flags)
    rows = {row.part: row for row in trainer.parts_table()}
    assert rows["language_model"].dtype == "+".join(sorted(["float32", dtype]))
    assert rows["language_model"].parameters == whole
    assert rows["language_model adapters"].dtype == "float32"
    assert rows["language_model adapters"].parameters == rows["language_model adapters"].trainable > 0
    assert rows["vision_tower"].dtype == rows["mm_projector"].dtype == "float32"
    prepared, args = adapted(base, tmp_path, *flags, checkpoint=tmp_path / "checkpoint-2")
    again = trainer_of(prepared, args, restored_from=tmp_path / "checkpoint-2")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(again) == losses(trainer)
    beside = llava.load(tmp_path, device="cpu", quantization_config=quantisation(args, adapter_settings(args)))
    assert worst(beside, trainer.model) == 0
    merged = llava.load(tmp_path, device="cpu")
    assert 0 < worst(merged, trainer.model) < worst(wide, trainer.model)
    assert "quantization_config" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
