"""The settings of FSDP2 for accelerate's launcher."""

from __future__ import annotations

from pathlib import Path

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

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
