"""consolidate: whatever shape a checkpoint has, one clean folder comes out, to the bit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llava
from llava.model.checkpoints.progress import byte_bar
from llava.model.checkpoints.shards import Writable, bytes_of, write_shards
from llava.model.checkpoints.stored import folder_headers, read_headers
from llava.model.consolidate import consolidate, main
from tests.unit.model.checkpoints.folders import model_of, original_state, same_weights, write_original


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of()


@pytest.mark.parametrize("kind", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_every_kind_of_weight_file_becomes_shards_of_safetensors(model: Any, tmp_path: Path, capsys: Any, kind: str):
    source = write_original(model, tmp_path, kind=kind)
    for name, text in (("special_tokens_map.json", "{}"), ("README.md", "mine"), ("trainer_state.json", "{}")):
        (source / name).write_text(text)
    (source / "training_args.bin").write_bytes(b"no weights")
    target = tmp_path / "clean"
    assert main(["--src", str(source), "--dst", str(target), "--max-shard-size", "30KB"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"wrote {target}")
    index = json.loads((target / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    beside = {"config.json", "model.safetensors.index.json", "special_tokens_map.json", "README.md"}
    assert {entry.name for entry in target.iterdir()} == {*shards, *beside}
    found = {name: value for shard in shards for name, value in load_file(target / shard).items()}
    expected = original_state(model)
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert same_weights(llava.load(target), model)


def test_three_folders_stay_three(model: Any, tmp_path: Path):
    model.save_pretrained(tmp_path / "run")
    for part in ("llm", "vision_tower", "mm_projector"):
        file = tmp_path / "run" / part / "model.safetensors"
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    (tmp_path / "run" / "checkpoint-5").mkdir()
    target = consolidate(tmp_path / "run", tmp_path / "clean")
    assert same_weights(llava.load(target), model)
    assert not list(target.rglob("*.bin"))
    assert not (target / "checkpoint-5").exists()


def test_types_and_shapes_of_every_kind_are_written(tmp_path: Path):
    values = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "odd": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 5, dtype=torch.bfloat16),
        "ids": torch.arange(4),
        "turned": torch.randn(4, 6).T,
    }
    rows = {name: Writable(shape=tuple(v.shape), dtype=v.dtype, make=lambda v=v: v) for name, v in values.items()}
    written: list[int] = []
    write_shards(tmp_path, rows, on_written=written.append)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) and found[name].dtype == values[name].dtype for name in values)
    assert sum(written) == sum(row.num_bytes for row in rows.values())
    assert read_headers([tmp_path / "model.safetensors"])["half"].shape == (3, 5)


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path):
    rows = {name: Writable(shape=(n,), dtype=torch.uint8, make=lambda n=n: torch.zeros(n, dtype=torch.uint8))
            for name, n in (("a", 4), ("b", 20), ("c", 4), ("d", 4))}  # fmt: skip
    write_shards(tmp_path, rows, 10)
    assert [tensor.file.name[:11] for tensor in folder_headers(tmp_path).values()] == [
        "model-00001", "model-00002", "model-00003", "model-00003"
    ]  # fmt: skip


def test_sizes_are_read_as_transformers_reads_them():
    assert [bytes_of(size) for size in ("5GB", "1.5 MB", "2GiB", 7)] == [5 * 10**9, 1_500_000, 2**31, 7]
    for size in ("5 lightyears", "", "-1GB", "0"):
        with pytest.raises(ValueError, match="expected a number of bytes or a size such as 5GB"):
            bytes_of(size)


def test_what_is_no_whole_model_is_named(model: Any, tmp_path: Path, capsys: Any):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no single whole model \(found adapter_model.bin\).*model_base"):
        consolidate(tmp_path / "adapter", tmp_path / "clean")
    source = write_original(model, tmp_path)
    assert main(["--src", str(source), "--dst", str(source)]) == 1
    assert "holds weights already" in capsys.readouterr().err
    assert main(["--src", str(tmp_path / "nothing"), "--dst", str(tmp_path / "clean")]) == 1
    assert "no checkpoint folder" in capsys.readouterr().err


def test_a_cut_source_leaves_nothing_that_looks_whole(model: Any, tmp_path: Path):
    source = write_original(model, tmp_path, kind="safetensors shards")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the shard model-00002-of-00002"):
        consolidate(source, tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_a_terminal_gets_a_bar_and_a_file_gets_none():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(), io.StringIO()):
        with byte_bar("writing clean", 2_000_000, stream) as on_written:
            on_written(500_000)
            on_written(1_500_000)
        assert ("writing clean" in stream.getvalue()) == stream.isatty()
        assert ("2.0/2.0 MB" in stream.getvalue()) == stream.isatty()


def test_the_weights_are_not_held_together_in_memory(tmp_path: Path):
    """16 tensors of 4 MB, each made when its turn comes and dropped before the next."""
    alive: list[int] = []
    held: set[int] = set()

    class Tracked(torch.Tensor):
        def __del__(self) -> None:
            held.discard(id(self))

    def make() -> torch.Tensor:
        value = torch.zeros(2**20).as_subclass(Tracked)
        held.add(id(value))
        alive.append(len(held))
        return value

    rows = {f"w{number}": Writable(shape=(2**20,), dtype=torch.float32, make=make) for number in range(16)}
    write_shards(tmp_path, rows, "20MB")
    assert max(alive) <= 2
