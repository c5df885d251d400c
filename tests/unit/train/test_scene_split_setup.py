"""Flags of the background/object split: which parts are trained, how fast, from which masks; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import llava
from llava.data.collate import DataCollator
from llava.train.adapter_flags import adapter_settings
from llava.train.adapters import prepare_adapted_model
from llava.train.llava_trainer import LLaVATrainer
from llava.train.parse import RunArguments, parse_args
from llava.train.parts import part_of, set_trainable
from llava.train.scene_split_setup import attach_split, mask_options, split_keys, tune_last_layers, tuned_parts
from tests.unit.model.scene_split.model_toy import ANSWER, QUARTER, TEXT, make_model, pixels, row

OWN = '{"shared_projectors": false, "shared_encoder": false, "prefusion_layers": 1}'
MERGED = 5e-5
"""Logits of a merged adapter and of one beside its weights may differ by so much."""
PARTS = ("background_projector", "object_projector", "object_tower", "prefusion")


def arguments(tmp_path: Path, *flags: str) -> RunArguments:
    given = ["--version", "vicuna_v1", "--report_to", "none", "--use_cpu", "True", "--output_dir", str(tmp_path)]
    return parse_args([*given, *flags])


def split_model(tmp_path: Path, *flags: str):
    model, args = make_model(), arguments(tmp_path, "--scene_split", "True", *flags)
    attach_split(model, args)
    return model, args


@pytest.mark.parametrize("switch", ["--scene_split", "--image_cache"])
def test_both_names_of_the_switch_add_the_split(switch, tmp_path):
    (tmp_path / "split.yaml").write_text("positions: own_range\ndilation: 1\n")
    model = make_model()
    attach_split(model, arguments(tmp_path, switch, "True", "--scene_split_config", str(tmp_path / "split.yaml")))
    assert model.config.scene_split["positions"] == "own_range" and model.config.scene_split["dilation"] == 1


def test_a_run_without_the_switch_leaves_the_model_alone(tmp_path):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach_split(model, arguments(tmp_path))
    assert model.scene_split is None and mask_options(model, arguments(tmp_path)) is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(before) == len(model.state_dict())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scene_split", "True", "--image_cache", "False"), "two names of one switch"),
        (("--scene_split_config", "{}"), "is read with --scene_split True only; add it"),
        (("--object_masks", "masks"), "--object_masks is read with --scene_split True only"),
        (("--tune_prefusion", "True"), "--tune_prefusion is read with --scene_split True only"),
        (("--scene_split", "True", "--scene_split_config", '{"position": 1}'), "no option 'position'; did you mean"),
        (("--scene_split", "True", "--scene_split_config", "no.yaml"), "scene_split_config is 'no.yaml'"),
        (("--scene_split", "True", "--enable_autoregressive", "True"), "train them one after the other"),
        (("--scene_split", "True", "--scene_split_groups", "object"), "did you mean 'objects'"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        attach_split(make_model(), arguments(tmp_path, *flags))


def test_a_checkpoint_keeps_its_settings_and_takes_those_that_need_no_other_weights(tmp_path):
    model, _ = split_model(tmp_path, "--scene_split_config", '{"dilation": 1}')
    attach_split(model, arguments(tmp_path))  # without the switch it stays as it is
    assert model.config.scene_split["dilation"] == 1
    attach_split(
        model, arguments(tmp_path, "--scene_split", "True", "--scene_split_config", '{"missing_masks": "error"}')
    )
    assert model.config.scene_split["dilation"] == 1 and model.config.scene_split["missing_masks"] == "error"
    with pytest.raises(ValueError, match="--scene_split False was given"):
        attach_split(model, arguments(tmp_path, "--scene_split", "False"))
    with pytest.raises(ValueError, match="the model was built with True"):
        attach_split(model, arguments(tmp_path, "--scene_split", "True", "--scene_split_config", OWN))


def test_parts_follow_those_they_were_copied_from_unless_they_are_named(tmp_path):
    model, args = split_model(tmp_path, "--scene_split_config", OWN, "--tune_object_projector", "False")
    tuned = {"language_model": False, "vision_tower": False, "mm_projector": True}
    set_trainable(model, tuned, tuned_parts(args))
    trained = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"background_projector", "prefusion"}
    assert {part_of(name) for name, _ in model.named_parameters()} == {
        "language_model", "vision_tower", "mm_projector", *PARTS,
    }  # fmt: skip


def test_the_last_layers_of_the_language_model_can_be_trained_alone(tmp_path):
    model, args = make_model(), arguments(tmp_path, "--tune_language_model", "True", "--tune_last_layers", "1")
    set_trainable(model, {"language_model": True, "vision_tower": False, "mm_projector": False})
    tune_last_layers(model, args)
    trained = {
        name.split(".")[3] if ".layers." in name else name for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {"1", "llm.model.norm.weight"}
    with pytest.raises(ValueError, match="expected 1 to 2 layers"):
        tune_last_layers(model, arguments(tmp_path, "--tune_language_model", "True", "--tune_last_layers", "3"))


def test_masks_are_made_for_the_model_that_reads_them(tmp_path):
    keys = '{"dilation": 1, "background_per": "clip", "detector": "motion", "detector_options": {"min_pixels": 2}}'
    model, args = split_model(tmp_path, "--scene_split_config", keys, "--object_masks", str(tmp_path))
    found = mask_options(model, args)
    assert found is not None and found.folder == tmp_path and found.grid_side == 4
    assert (found.rule.patch_size, found.rule.cell, found.rule.dilation) == (4, 2, 1)
    assert found.shares_background and found.motion_options == {"min_pixels": 2} and found.missing == "background"


# ---- training ----


class SplitToys(torch.utils.data.Dataset):
    """Every third sample is text only, one has no object."""

    def __init__(self, model) -> None:
        self.samples = []
        for index in range(12):
            ids, labels = row(model, TEXT, 0, ANSWER) if index % 3 else row(model, TEXT, ANSWER)
            sample = {"input_ids": ids, "labels": labels, "sample_id": str(index)}
            if index % 3:
                sample |= {"images": pixels(1, seed=index), "object_patches": QUARTER & (index % 2 == 0)}
            self.samples.append(sample)
        self.lengths = [len(sample["input_ids"]) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


STEPS = "--max_steps 3 --logging_steps 1 --save_strategy no --lr_scheduler_type constant --learning_rate 1e-2".split()


def trainer_of(model, args: RunArguments, adapter=None) -> LLaVATrainer:
    collator = DataCollator(pad_token_id=0, max_length=64, mode="pack", rows="one", image_token_id=model.image_token_id)
    data = SplitToys(model)
    return LLaVATrainer(
        model, args.training, train_dataset=data, data_collator=collator, lengths=data.lengths, adapter=adapter
    )


def test_every_part_learns_at_its_own_rate(tmp_path):
    rates = ["--background_projector_lr", "0.005", "--mm_projector_lr", "0.002", "--vision_tower_lr", "0.001"]
    model, args = split_model(tmp_path, *STEPS, "--scene_split_config", OWN, *rates)
    set_trainable(model, {"language_model": True, "vision_tower": True, "mm_projector": True})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(model, args)
    rows = {row.part: row for row in trainer.parts_table()}
    found = [rows[part].learning_rate for part in (*PARTS, "mm_projector")]
    assert found == [0.005, 0.002, 0.001, 0.01, None]
    trainer.train()
    changed = {part_of(name) for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"language_model", "vision_tower", *PARTS}


def test_adapters_beside_a_split_model_come_back_in_one_call(tmp_path):
    pytest.importorskip("peft")
    base = tmp_path / "base"
    make_model().save_pretrained(base)  # the base knows nothing of the split
    flags = [
        "--model_name_or_path",
        str(base),
        "--lora_enable",
        "True",
        "--lora_r",
        "2",
        *STEPS,
        "--scene_split",
        "True",
    ]
    args = arguments(tmp_path / "lora", *flags, "--scene_split_config", '{"shared_projectors": false}')
    settings = adapter_settings(args)
    assert settings is not None
    prepared = prepare_adapted_model(args, settings, checkpoint=None, corpus=list)
    trainer = trainer_of(prepared.model, args, prepared.adapter)
    trainer.train()
    trainer.save_model(str(tmp_path / "lora"))
    model = prepared.model.eval()
    again = llava.load(str(tmp_path / "lora"), device="cpu")
    ids, labels = row(model, TEXT, 0, ANSWER)
    given = {"input_ids": ids[None], "labels": labels[None], "images": pixels(1), "object_patches": QUARTER}
    assert float((model(**given).logits - again(**given).logits).abs().max()) < MERGED
    assert again.scene_split.config == model.scene_split.config
    resumed = arguments(tmp_path / "more", *flags[:6], "--lora_weight_path", str(tmp_path / "lora"), *STEPS)
    settings = adapter_settings(resumed)
    assert settings is not None
    going_on = prepare_adapted_model(resumed, settings, checkpoint=None, corpus=list).model.eval()
    assert float((going_on(**given).logits - again(**given).logits).abs().max()) < MERGED


def test_keys_are_checked_before_anything_is_read(tmp_path):
    assert split_keys(arguments(tmp_path)) is None
    assert split_keys(arguments(tmp_path, "--image_cache", "True")) == {}
