"""A folder that holds a vision tower and nothing else."""

from __future__ import annotations

from pathlib import Path

from llava.model.checkpoints.assemble import compare_tower
from llava.model.checkpoints.names import explain_buffer, locate_tower
from llava.model.checkpoints.plan import Part, Plan
from llava.model.checkpoints.stored import folder_headers


def plan_tower(folder: Path, select_layer: int | None = None) -> Plan:
    """What lies there beside what its config.json asks for; layers behind the selected one may be missing."""
    from llava.model.multimodal_encoder.builder import read_tower_config

    plan = Plan(layout="vision tower alone", folder=folder, config={"mm_vision_select_layer": select_layer})
    plan.parts["vision_tower"] = Part(config=read_tower_config(folder))
    plan.distribute(folder_headers(folder), locate_tower, lambda name: explain_buffer(f"vision_tower.{name}"))
    compare_tower(plan)
    return plan
