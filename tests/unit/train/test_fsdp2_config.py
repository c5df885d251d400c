"""The settings of FSDP2 for accelerate's launcher, and FSDP2 on CPU ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from llava.train.fsdp_on_cpu import shard_on_cpu

FILE = Path(__file__).resolve().parents[3] / "scripts" / "fsdp2.yaml"


def test_the_launcher_reads_the_file_and_knows_every_setting():
    config = load_config_from_file(str(FILE))  # refuses unknown keys outside fsdp_config
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert config.fsdp_config.keys() <= known.keys()
    assert config.fsdp_config["fsdp_version"] == 2


def test_the_wrapped_layers_are_classes_of_llama_and_siglip():
    from transformers.models.llama import modeling_llama
    from transformers.models.siglip import modeling_siglip

    names = yaml.safe_load(FILE.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert all(hasattr(modeling_llama, name) or hasattr(modeling_siglip, name) for name in names)


@pytest.fixture
def cpu_rank(monkeypatch):
    """An accelerator as a CPU rank of two gets it; what tests of this process find afterwards is as before."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    accelerator = Accelerator(cpu=True)
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.MULTI_CPU
    yield accelerator
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("by_launcher", [False, True])
def test_cpu_ranks_shard_where_a_flag_or_the_launcher_asks_for_it(cpu_rank, monkeypatch, by_launcher):
    if by_launcher:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    assert shard_on_cpu(cpu_rank, None if by_launcher else {"fsdp_version": 2})
    assert cpu_rank.is_fsdp2 and AcceleratorState().distributed_type == DistributedType.FSDP


def test_cpu_ranks_that_were_not_asked_copy_the_model(cpu_rank):
    assert not shard_on_cpu(cpu_rank, None)
    assert cpu_rank.distributed_type == DistributedType.MULTI_CPU


def test_the_older_fsdp_is_refused_on_cpu_ranks(cpu_rank):
    with pytest.raises(ValueError, match="fsdp_version is 1, expected 2"):
        shard_on_cpu(cpu_rank, {"fsdp_version": 1})
