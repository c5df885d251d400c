"""What the flags of sequence parallelism mean for a run."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import pytest

from llava.model.sequence_parallel import SequenceGroup, SequenceParallelConfig
from llava.train import train_hybrid, train_long
from llava.train.args import TrainingArguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.parse import parse_args
from llava.train.sequence_parallel import attach_sequence_parallel, sequence_parallel_settings
from tests.unit.train.toy import ToyData, toy_model


def settings(tmp_path, *flags: str) -> Any:
    return sequence_parallel_settings(parse_args(["--output_dir", str(tmp_path), "--report_to", "none", *flags]))


@pytest.fixture
def eight_processes(monkeypatch):
    monkeypatch.setattr("llava.train.sequence_parallel.world_size", lambda: 8)


def test_a_degree_of_one_is_the_ordinary_path(tmp_path, eight_processes):
    assert settings(tmp_path) is None
    assert settings(tmp_path, "--seq_parallel_size", "1", "--seq_parallel_ring_size", "1") is None
    model = toy_model()
    attach_sequence_parallel(model, None)
    assert model.sequence_group is None


def test_the_ring_is_a_factor_of_the_degree_and_ulysses_the_rest(tmp_path, eight_processes):
    alone = settings(tmp_path, "--seq_parallel_size", "4")
    assert (alone.ulysses_size, alone.ring_size) == (4, 1)
    both = settings(tmp_path, "--seq_parallel_size", "8", "--seq_parallel_ring_size", "2")
    assert (both.ulysses_size, both.ring_size, both.is_zigzag) == (4, 2, False)
    flags = ["--seq_parallel_size", "2", "--seq_parallel_ring_size", "2"]
    assert settings(tmp_path, *flags, "--seq_parallel_ring_type", "zigzag_ring_varlen").is_zigzag


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seq_parallel_size", "3"], r"seq_parallel_size is 3 and the job has 8 processes.*\[1, 2, 4, 8\]"),
        (["--seq_parallel_size", "4", "--seq_parallel_ring_size", "3"], r"seq_parallel_ring_size is 3.*\[1, 2, 4\]"),
        (["--seq_parallel_size", "0"], "seq_parallel_size is 0"),
        (["--seq_parallel_ring_size", "2"], "set --seq_parallel_size 2"),
        (["--seq_parallel_size", "2", "--seq_parallel_ring_type", "strip"], "'strip', expected one of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(flags, message, tmp_path, eight_processes):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, *flags)


def test_a_ring_type_without_a_ring_is_answered(tmp_path, eight_processes, caplog):
    with caplog.at_level(logging.WARNING):
        settings(tmp_path, "--seq_parallel_size", "2", "--seq_parallel_ring_type", "zigzag_ring_varlen")
    assert "no effect without --seq_parallel_ring_size" in caplog.text


def test_a_weight_by_gradients_is_refused_where_each_rank_has_a_part_of_them():
    model = toy_model()
    model.initialize_continuous_autoregressive_modules({"embedding_dim": None, "gradient_share": 0.1, "num_heads": 2})
    with pytest.raises(ValueError, match=r"gradient_share is 0\.1.*set loss_weight"):
        attach_sequence_parallel(model, SequenceParallelConfig(size=2))


@pytest.mark.parametrize(("module", "size"), [(train_long, "16"), (train_hybrid, "8")])
def test_entries_share_a_sequence_over_the_job_or_over_a_machine(module, size, monkeypatch):
    """16 processes on 2 machines."""
    seen = {}
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(module, "_main", lambda argv, defaults: seen.update(defaults) or 0)
    assert module.main([]) == 0
    assert str(seen["seq_parallel_size"]) == size and seen["gradient_checkpointing"] is True


def test_processes_of_a_group_are_dealt_the_same_batches_and_groups_different_ones(tmp_path, monkeypatch):
    plans = []
    for rank in range(4):
        model = toy_model()
        config = SequenceParallelConfig(size=2)
        model.sequence_group = SequenceGroup(config=config, rank=rank % 2, everyone=None, ulysses=None, ring=None)
        monkeypatch.setattr(TrainingArguments, "process_index", rank)
        monkeypatch.setattr(TrainingArguments, "world_size", 4)
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        args.per_device_train_batch_size = 3
        trainer = LLaVATrainer(model, args, train_dataset=ToyData(12), lengths=ToyData(12).lengths)
        assert trainer.get_total_train_batch_size(args) == 3 * 2
        plans.append(list(trainer.batch_plan()))
    assert plans[0] == plans[1] and plans[2] == plans[3]
    assert sorted(index for batch in plans[0] + plans[2] for index in batch) == list(range(12))


@pytest.mark.parametrize("name", ["ulysses_attn", "hybrid_attn"])
def test_documented_paths_stay(name):
    module = importlib.import_module(f"llava.train.sequence_parallel.{name}")
    assert all(callable(getattr(module, exported)) for exported in module.__all__)
