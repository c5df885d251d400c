"""A projector by itself (`mm_projector.bin` of the first training stage), used with a model_base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions
from llava.model.checkpoints.base_and_change import plan_on_language_model, read_on_base, require_base
from llava.model.checkpoints.names import explain_buffer, locate_original
from llava.model.checkpoints.plan import Part, Plan
from llava.model.checkpoints.stored import StoredTensor, has_weights, read_config, read_headers

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

FILES = ("mm_projector.safetensors", "mm_projector.bin")


def projector_file(path: Path) -> Path | None:
    """The file that is given, or lies in the folder that is given."""
    if path.is_file():
        return path if path.suffix in (".bin", ".safetensors") else None
    return next((path / name for name in FILES if (path / name).is_file()), None)


def recognises(path: Path) -> bool:
    alone = path.is_file() or not (has_weights(path) or (path / "adapter_config.json").is_file())
    return alone and projector_file(path) is not None


def _open(path: Path) -> tuple[Path, dict[str, Any], dict[str, StoredTensor]]:
    """(folder, config of the training run, tensors); intermediate files lie in `mm_projector/`, below their config."""
    file = projector_file(path)
    assert file is not None
    folder = file.parent
    stored = read_config(folder) or (read_config(folder.parent) if folder.name == "mm_projector" else {})
    tensors = read_headers([file])
    if not any("mm_projector" in name for name in tensors):
        raise ValueError(
            f"{file} holds {next(iter(tensors), 'nothing')}, expected names with mm_projector; "
            "save the projector under the names of the training run"
        )
    return folder, stored, tensors


def read(path: Path, options: ReadOptions) -> LlavaCausalLM:
    folder, stored, tensors = _open(path)
    return read_on_base(folder, require_base(path, options, stored.get("_name_or_path")), stored, tensors, options)


def make_plan(path: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    folder, stored, tensors = _open(path)
    if options.model_base is not None:
        base = require_base(path, options)
        if read_config(base) and has_weights(base) and "mm_vision_tower" not in read_config(base):
            plan = plan_on_language_model(folder, base, stored, tensors, options, fetch)
            plan.layout = "projector_only"
            return plan
    plan = Plan(layout="projector_only", folder=folder, config=stored, parts={"mm_projector": Part(), "llm": Part()})
    plan.distribute(tensors, locate_original, explain_buffer)
    plan.needs.append(f"model_base: a language model or a whole model (trained on {stored.get('_name_or_path')!r})")
    return plan


LAYOUTS.register("projector_only")(
    Layout(recognises=recognises, read=read, plan=make_plan, holds="mm_projector.bin, to be used with model_base")
)
