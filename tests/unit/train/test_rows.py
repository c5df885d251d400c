"""`--packing auto`: rows without padding wherever that costs less, and never a silent change of what a batch holds."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from llava.train.parse import parse_args
from llava.train.rows import obstacle_to_packing, packs_rows
from tests.unit.train.toy import toy_model

OUT = ["--output_dir", "out", "--report_to", "none", "--use_cpu", "True"]


def obstacle(name: str, device: str, *, half: bool = True, has_branches: bool = False) -> str | None:
    config = SimpleNamespace(_attn_implementation=name)
    return obstacle_to_packing(config, device, half=half, has_branches=has_branches)


def model_with(attention: str):
    model = toy_model()
    model.llm.config._attn_implementation = attention
    return model


@pytest.mark.parametrize(
    ("name", "device", "half", "has_branches"),
    [
        ("llava_packed", "cpu", False, True),
        ("sdpa", "cpu", False, False),
        ("llava_packed", "cuda", True, False),
        ("flash_attention_2", "cuda", True, False),
        ("flex_attention", "cuda", False, True),
    ],
)
def test_attention_with_a_kernel_for_packed_rows_packs(name, device, half, has_branches):
    assert obstacle(name, device, half=half, has_branches=has_branches) is None


def test_attention_that_needs_a_dense_mask_pads_and_says_why():
    assert "'eager' needs a dense mask" in (obstacle("eager", "cpu") or "")
    assert "needs --bf16 True" in (obstacle("llava_packed", "cuda", half=False) or "")
    assert "hide some of their own tokens" in (obstacle("llava_packed", "cuda", has_branches=True) or "")


def test_auto_packs_on_the_processor_and_pads_for_eager_attention(caplog):
    args = parse_args(OUT)
    assert packs_rows(args, model_with("llava_packed"), has_branches=True)
    with caplog.at_level(logging.INFO):
        assert not packs_rows(args, model_with("eager"), has_branches=False)
    assert "rows are padded, because" in caplog.text and "--packing True" in caplog.text


@pytest.mark.parametrize("flags", [["--packing", "True"], ["--packing"], ["--tokens_per_batch", "64"]])
def test_who_asks_for_packed_rows_gets_them(flags):
    assert packs_rows(parse_args([*OUT, *flags]), model_with("eager"), has_branches=False)


def test_who_refuses_packed_rows_gets_none():
    args = parse_args([*OUT, "--packing", "False"])
    assert not packs_rows(args, model_with("llava_packed"), has_branches=False)


def test_two_sizes_of_a_batch_are_answered(caplog):
    with caplog.at_level(logging.WARNING):
        budget = parse_args([*OUT, *"--packing False --tokens_per_batch 64".split()]).training.tokens_per_batch
        parse_args([*OUT, *"--per_device_train_batch_size 4 --tokens_per_batch 64 --sampler length".split()])
    assert budget == -1
    assert "--tokens_per_batch 64 has no effect with --packing False" in caplog.text
    assert "--per_device_train_batch_size 4 has no effect with --tokens_per_batch 64" in caplog.text
    assert "--sampler length has no effect with --tokens_per_batch" in caplog.text
    with pytest.raises(ValueError, match="packing is 'maybe', expected True, False or auto"):
        parse_args([*OUT, "--packing", "maybe"])
