"""vila-inspect: what a folder holds, in a table that fits a terminal, without reading one weight."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llava
from llava.cli.inspect import main
from llava.model.checkpoints.__main__ import main as module_main
from tests.unit.model.checkpoints.folders import edit_json, model_of, rewrite, write_original
from tests.unit.model.checkpoints.test_on_a_base import base_of, write_adapter, write_projector


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of()


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()  # what other libraries said while the folder was written
    code = main(arguments)
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80, out
    return code, out


def test_parts_counts_sizes_type_and_template(model: Any, tmp_path: Path, capsys: Any):
    code, out = report_of(capsys, str(write_original(model, tmp_path, kind="safetensors shards")))
    assert code == 0
    assert "layout     original" in out
    assert "template   v1" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("mm_projector"))
    count = sum(p.numel() for p in model.mm_projector.parameters())
    assert row[:7] == ["mm_projector", "v2l_projector", "4", f"{count:,}", f"{count * 4 / 1024:.1f}", "KiB", "float32"]
    total = next(line.split() for line in out.splitlines() if line.startswith("total"))
    assert total[2] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert row[7] == "2"  # files
    assert "missing: none" in out
    assert "loading: possible" in out


def test_what_does_not_fit_is_listed(model: Any, tmp_path: Path, capsys: Any):
    folder = write_original(model, tmp_path)

    def change(state: dict[str, Any]) -> None:
        del state["model.mm_projector.0.bias"]
        state |= {"model.a": torch.zeros(1), "model.norm.weight": torch.zeros(3), "x.inv_freq": torch.zeros(1)}

    rewrite(folder, change)
    code, out = report_of(capsys, str(folder))
    assert code == 1
    assert "missing: 1" in out
    assert "mm_projector.layers.0.bias [32]" in out
    assert "model.a" in out
    assert "has shape [3], expected [32]" in " ".join(out.split())
    assert "loading: not possible" in out


def test_three_folders_and_a_plain_language_model(model: Any, tmp_path: Path, capsys: Any):
    model.save_pretrained(tmp_path / "three")
    code, out = report_of(capsys, str(tmp_path / "three"))
    assert code == 0
    assert "layout     three_folder" in out
    assert "missing: none" in out
    code, out = report_of(capsys, str(tmp_path / "three" / "llm"))
    assert code == 0
    assert "language model without vision" in out


@pytest.mark.parametrize("llm", ["mixtral", "gemma2", "qwen3"])
@pytest.mark.parametrize("tower", ["siglip_stem", "dinov2", "radio"])
def test_other_families_are_described_without_false_alarms(tmp_path: Path, capsys: Any, llm: str, tower: str):
    model_of(llm, tower, mm_projector_cfg="mlp_downsample").save_pretrained(tmp_path)
    code, out = report_of(capsys, str(tmp_path))
    assert code == 0, out
    assert "order of the merged tokens: row" in out
    assert "missing: none" in out
    assert "unexpected: none" in out


@pytest.mark.parametrize(
    ("part", "stored", "change", "said"),
    [
        ("vision_tower", "embeddings.cls_token", None, "missing: 1 vision_tower.embeddings.cls_token"),
        ("vision_tower", "encoder.layer.0.norm1.weight", torch.zeros(3), "norm1.weight has shape [3], expected [24]"),
        ("vision_tower", "encoder.layer.0.norm9.weight", torch.zeros(24), "layer.0.norm9.weight wrong shape: none"),
        ("vision_tower", "layernorm.weight", None, "explained: 1 keys such as vision_tower.layernorm.weight"),
        ("vision_tower", "encoder.layer.1.norm1.weight", None, "behind the selected layer of the tower, never run"),
        ("llm", "model.layers.0.block_sparse_moe.experts.2.w1.weight", None, "experts.*.w1.weight has 3 weights, its"),
        ("llm", "model.layers.0.block_sparse_moe.experts.2.w1.weight", torch.zeros(5, 5), "experts.2.w1.weight has"),
        ("llm", "model.layers.1.block_sparse_moe.gate.weight", None, "missing: 1 llm.model.layers.1.mlp.gate.weight"),
        ("llm", "model.layers.7.input_layernorm.weight", torch.zeros(32), "model.layers.7.input_layernorm.weight"),
    ],
)
def test_names_that_transformers_changes_are_checked_by_its_own_loader(
    tmp_path: Path, capsys: Any, part: str, stored: str, change: Any, said: str
):
    model_of("mixtral", "dinov2", mm_vision_select_layer=-2).save_pretrained(tmp_path)

    def edit(state: dict[str, Any]) -> None:
        state.pop(stored, None)
        if change is not None:
            state[stored] = change

    rewrite(tmp_path / part, edit)
    code, out = report_of(capsys, str(tmp_path))
    assert said in " ".join(out.split())
    assert code == int("explained" not in said and "never run" not in said)
    if "experts" in said:
        with pytest.raises(ValueError, match=r"llm: stored weights of .* cannot be joined.*vila-inspect"):
            llava.load(tmp_path)


def test_the_report_is_all_that_is_said(tmp_path: Path, capsys: Any):
    """transformers' bars and load reports would speak of a load that is none."""
    model_of("mixtral", "dinov2").save_pretrained(tmp_path)
    rewrite(tmp_path / "vision_tower", lambda state: state.pop("embeddings.cls_token"))
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == ""


def test_the_order_of_old_merged_tokens_is_said(golden: Path, capsys: Any):
    code, out = report_of(capsys, str(golden / "A_navila" / "checkpoint"))
    assert code == 0
    assert "order of the merged tokens: column" in out


def test_a_tower_on_the_hub_is_said_and_not_fetched(model: Any, tmp_path: Path, capsys: Any):
    folder = write_original(model, tmp_path, tower=False)
    edit_json(folder / "config.json", mm_vision_tower="nobody/no-such-tower")
    code, out = report_of(capsys, str(folder))
    assert code == 0
    assert "needs the whole vision tower nobody/no-such-tower" in out
    edit_json(folder / "config.json", mm_vision_tower="/data/clip")
    code, out = report_of(capsys, str(folder))
    assert code == 1
    assert "obstacle: config.json names mm_vision_tower '/data/clip'" in out
    code, out = report_of(capsys, str(folder), "--vision-tower", str(tmp_path / "tower"))
    assert code == 0


def test_a_projector_says_that_it_needs_a_base(model: Any, tmp_path: Path, capsys: Any):
    folder = write_projector(model, tmp_path)
    code, out = report_of(capsys, str(folder))
    assert code == 0
    assert "layout     projector_only" in out
    assert "needs model_base" in out
    code, out = report_of(capsys, str(folder), "--model-base", str(base_of(model, tmp_path)))
    assert code == 0
    assert "missing: none" in out


def test_an_adapter_says_what_it_was_trained_on(model: Any, tmp_path: Path, capsys: Any):
    folder, _ = write_adapter(tmp_path, projector=model, use_dora=True)
    code, out = report_of(capsys, str(folder))
    assert code == 0
    assert "layout     lora" in out
    assert "model_base: the DoRA of rank 4 was trained on '/train/runs/base'" in " ".join(out.split())


def test_only_headers_are_read(model: Any, tmp_path: Path, capsys: Any):
    """A file of 40 GB that takes no room on the disk is described at once."""
    folder = write_original(model, tmp_path)
    size = 40 * 2**30
    header = {"model.norm.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    code, out = report_of(capsys, str(folder))
    assert code == 1
    assert "40.00 GiB" in out


def test_what_is_no_checkpoint_is_an_error_of_one_line(tmp_path: Path, capsys: Any):
    assert main([str(tmp_path / "nothing")]) == 1
    assert "an inspection downloads nothing" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "no known checkpoint layout" in capsys.readouterr().err


def test_the_module_takes_a_path_alone(model: Any, tmp_path: Path, capsys: Any):
    folder = str(write_original(model, tmp_path, kind="safetensors"))
    capsys.readouterr()  # what was said while the folder was written
    reports = []
    for arguments in ([folder], ["inspect", folder]):
        assert module_main(arguments) == 0
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1] and "layout     original" in reports[0]


def test_both_commands_are_there(model: Any, tmp_path: Path):
    folder = write_original(model, tmp_path)
    module = [sys.executable, "-m", "llava.model.checkpoints"]
    run = subprocess.run([*module, "inspect", str(folder)], capture_output=True, text=True, check=True)
    assert "layout     original" in run.stdout
    assert "[inspect] PATH" in subprocess.run(module, capture_output=True, text=True, check=False).stderr
