"""What preference and RL training say and forward, with and without trl."""

from __future__ import annotations

import sys

import pytest

from llava.train import dpo, grpo


@pytest.mark.parametrize("entry", [dpo, grpo])
def test_without_trl_a_command_ends_with_one_line_and_the_command_that_installs_it(entry, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert entry.main(["--model_name_or_path", "model", "--data_path", "pairs.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "pip install 'llava[rl]'" in line


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(tmp_path, capsys):
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    (tmp_path / "file").write_text("")
    flags = "--model_name_or_path model --data_path pairs.json --use_cpu True --bf16 False --output_dir".split()
    assert dpo.main([*flags, str(tmp_path / "file" / "out")]) == 2
    assert f"nothing can be written to --output_dir {tmp_path / 'file' / 'out'}" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "name"), [("llava.trl", "DPOTrainer"), ("llava.trl.trainer", "GRPOTrainer")])
def test_the_documented_path_of_trl_forwards_to_it(module, name):
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    forwarding = __import__(module, fromlist=[name])
    assert getattr(forwarding, name) is getattr(trl, name)
    with pytest.raises(AttributeError):
        _ = forwarding.NoSuchTrainer


@pytest.mark.parametrize("module", ["llava.trl", "llava.trl.trainer"])
def test_without_trl_the_documented_path_names_the_command(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "trl.trainer", None)
    with pytest.raises(ImportError, match=r"pip install 'llava\[rl\]'"):
        _ = __import__(module, fromlist=["DPOTrainer"]).DPOTrainer
