"""Flags of adapters: what they mean alone, and which of them contradict each other."""

from __future__ import annotations

import logging

import pytest
import torch

from llava.train import adapter_flags
from llava.train.adapter_flags import AdapterSettings, adapter_settings, quantisation
from llava.train.parse import parse_args

OUT = ["--output_dir", "out", "--report_to", "none"]
LORA = [*OUT, "--lora_enable", "True"]


def settings_of(*flags: str) -> AdapterSettings:
    found = adapter_settings(parse_args([*LORA, *flags]))
    assert found is not None
    return found


def test_lora_alone_adapts_the_language_model_and_trains_the_projector():
    found = settings_of()
    assert found.parts == ("language_model",)
    assert found.tuned == {"language_model": False, "vision_tower": False, "mm_projector": True}
    assert (found.rank, found.alpha, found.dropout, found.bias, found.use_dora) == (64, 16, 0.05, "none", False)
    assert adapter_settings(parse_args(OUT)) is None


def test_adapters_lie_where_the_flags_say_and_the_other_parts_follow_their_tune_flags():
    assert settings_of("--lora_vt", "True").parts == ("vision_tower",)
    assert settings_of("--lora_vt", "True", "--lora_llm", "True").parts == ("language_model", "vision_tower")
    assert settings_of("--tune_vision_tower", "True").tuned["vision_tower"]
    assert not settings_of("--tune_mm_projector", "False").tuned["mm_projector"]
    with pytest.raises(ValueError, match="leaves no part for adapters"):
        settings_of("--lora_llm", "False")


def test_a_part_is_trained_whole_or_by_adapters_never_both():
    with pytest.raises(ValueError, match="--tune_language_model True trains the whole part"):
        settings_of("--tune_language_model", "True")
    assert settings_of("--stage", "sft").tuned == {
        "language_model": False,  # the row of a stage is weaker than a flag
        "vision_tower": True,
        "mm_projector": True,
    }


@pytest.mark.parametrize(
    ("flag", "value"), [("use_dora", "True"), ("lora_vt", "True"), ("lora_weight_path", "x"), ("lora_llm", "True")]
)
def test_what_needs_adapters_is_refused_without_them(flag, value):
    with pytest.raises(ValueError, match=f"--{flag} .* add --lora_enable True"):
        parse_args([*OUT, f"--{flag}", value])


def test_numbers_without_an_adapter_are_answered(caplog):
    with caplog.at_level(logging.WARNING):
        parse_args([*OUT, "--lora_r", "8", "--double_quant", "False"])
    assert "--lora_r has no effect without --lora_enable True" in caplog.text
    assert "--double_quant has no effect without --bits 4" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_r", "0"], "lora_r is 0"),
        (["--lora_dropout", "1"], "lora_dropout is 1.0, expected"),
        (["--lora_bias", "lora"], "lora_bias is 'lora', expected none, all, lora_only"),
        (["--lora_bias", "all", "--model_dtype", "bfloat16"], "would train biases in half precision"),
        (["--bits", "5"], "bits is 5, expected 16, 8 or 4"),
        (["--bits", "4", "--quant_type", "int4"], "quant_type is 'int4', expected nf4 or fp4"),
        (["--bits", "4", "--lora_vt", "True", "--tune_language_model", "True"], "leaves no weights of the language"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_args([*LORA, *flags])


def test_quantised_weights_need_adapters_beside_them():
    with pytest.raises(ValueError, match=r"--bits 4 freezes the language model .* add --lora_enable True"):
        parse_args([*OUT, "--bits", "4"])
    assert quantisation(parse_args(LORA), settings_of()) is None


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(adapter_flags, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(ValueError, match=r'--bits 8 needs bitsandbytes.*pip install "llava\[quantised\]"'):
        parse_args([*LORA, "--bits", "8"])
    monkeypatch.setattr(adapter_flags, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--lora_enable True needs peft.*pip install "llava\[train\]"'):
        parse_args(LORA)


def test_four_bits_are_computed_in_the_dtype_of_the_run(monkeypatch):
    monkeypatch.setattr(adapter_flags, "find_spec", lambda name: object())
    flags = [*LORA, "--bits", "4", "--quant_type", "fp4", "--double_quant", "False"]
    args = parse_args(flags)
    found = quantisation(args, adapter_settings(args))
    assert found is not None
    assert (found.bnb_4bit_quant_type, found.bnb_4bit_use_double_quant) == ("fp4", False)
    assert found.bnb_4bit_compute_dtype == torch.float32
    args = parse_args([*flags, "--bf16", "True"])
    found = quantisation(args, adapter_settings(args))
    assert found is not None
    assert found.bnb_4bit_compute_dtype == torch.bfloat16
