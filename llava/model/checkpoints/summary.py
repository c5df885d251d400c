"""A checkpoint described from its headers: layout, parts, sizes, what does not fit, what loading needs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from llava.model.checkpoints import ReadOptions, find_layout, require_layout, resolve_folder
from llava.model.checkpoints.plan import Part, Plan, compare_llm, sizes
from llava.model.checkpoints.stored import StoredTensor, folder_headers, has_weights, read_config
from llava.model.checkpoints.tower_folder import plan_tower
from llava.model.multimodal_encoder.families import family_of

WIDTH = 80
ROWS = 6
"""Of a list of keys so many are shown."""


def plan_checkpoint(path: str | Path, options: ReadOptions | None = None) -> Plan:
    """The plan of a folder of any layout, or of a plain language model or tower; reads headers, downloads nothing.

    Raises:
        FileNotFoundError: no such folder here.
    """
    options = options or ReadOptions()
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"no checkpoint at {path}; an inspection downloads nothing: give an existing folder")
    folder = resolve_folder(path)
    if find_layout(folder) is None and "model_type" in read_config(folder) and has_weights(folder):
        return _one_part(folder)
    return require_layout(folder).plan(folder, options, False)


def _one_part(folder: Path) -> Plan:
    from llava.model.multimodal_encoder.builder import VISION_TOWERS

    if read_config(folder)["model_type"] in VISION_TOWERS:
        return plan_tower(folder)
    part = Part(config=AutoConfig.from_pretrained(str(folder)), tensors=folder_headers(folder))
    plan = Plan(layout="language model without vision", folder=folder, parts={"llm": part})
    compare_llm(plan)
    return plan


def describe(plan: Plan) -> str:
    """The report of `vila-inspect`, at most 80 columns wide."""
    lines = [*_wrapped(f"{plan.folder}"), f"layout     {plan.layout}", *_facts(plan), "", *_table(plan)]
    for title, keys in (("missing", plan.missing), ("unexpected", plan.unexpected), ("wrong shape", plan.misshapen)):
        lines += _keys(title, keys)
    lines += ["", *_reasons(plan)] if plan.explained else []
    lines += ["", *_loading(plan)]
    return "\n".join(lines)


def _facts(plan: Plan) -> list[str]:
    """What the config says of the whole model; nothing for a part alone."""
    if len(plan.parts) == 1:
        return []
    projector: Any = getattr(plan.parts.get("mm_projector"), "config", None)
    kind = getattr(projector, "mm_projector_type", None) or plan.config.get("mm_projector_type")
    facts = {"template": plan.config.get("version"), "pictures": _pictures(plan), "projector": kind}
    if "downsample" in str(kind) and projector is not None:
        facts["tokens"] = f"order of the merged tokens: {projector.token_order}"
    return [f"{name:<11}{value or 'not stored'}" for name, value in facts.items()]


def _pictures(plan: Plan) -> str | None:
    """How pictures are read: the stored mode, else that of the encoder's family; scales where there are several."""
    tower: Any = getattr(plan.parts.get("vision_tower"), "config", None)
    mode = plan.config.get("image_aspect_ratio")
    if mode is None and tower is not None:
        mode = f"{family_of(tower.model_type).aspect_mode} (the encoder's own way)"
    scales = plan.config.get("s2_scales") if plan.config.get("s2") or plan.config.get("dynamic_s2") else None
    return f"{mode}, at the scales {scales}" if scales else mode


def _table(plan: Plan) -> list[str]:
    head = ["part", "kind", "tensors", "parameters", "size", "type", "files"]
    rows = [_row(name, part) for name, part in plan.parts.items()]
    stored = [tensor for part in plan.parts.values() for tensor in part.tensors.values()]
    rows.append(["total", "", str(_count(stored)), f"{sizes(stored)[0]:,}", _bytes(sizes(stored)[1]), "", ""])
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]]  # fmt: skip


def _row(name: str, part: Part) -> list[str]:
    kind = str(getattr(part.config, "model_type", "") or "").removesuffix("_model").removesuffix("_vision")[:13]
    parameters, size = sizes(part.tensors.values())
    if not part.tensors:
        return [name, kind, "0", "", "", "", "away" if part.source else "none"]
    types = {tensor.dtype for tensor in part.tensors.values()}
    main = "mixed" if len(types) > 1 else str(next(iter(types))).removeprefix("torch.")
    files = {tensor.file for tensor in part.tensors.values()}
    return [name, kind, str(_count(part.tensors.values())), f"{parameters:,}", _bytes(size), main, str(len(files))]


def _count(tensors: Iterable[StoredTensor]) -> int:
    """Tensors in the files; one may hold several weights."""
    return len({(tensor.file, tensor.name) for tensor in tensors})


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _keys(title: str, keys: list[str]) -> list[str]:
    if not keys:
        return [f"{title}: none"] if title != "missing" else ["", f"{title}: none"]
    lines = [f"{title}: {len(keys)}"] if title != "missing" else ["", f"{title}: {len(keys)}"]
    for key in keys[:ROWS]:
        lines += _wrapped(key, "  ")
    return lines + ([f"  and {len(keys) - ROWS} more"] if len(keys) > ROWS else [])


def _reasons(plan: Plan) -> Iterable[str]:
    """Explained keys, counted by their reason."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in plan.explained.items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in by_reason.items():
        yield from _wrapped(f"explained: {len(keys)} keys such as {keys[0]}: {reason}")


def _loading(plan: Plan) -> list[str]:
    size = sum(sizes(part.tensors.values())[1] for part in plan.parts.values())
    wrong = bool(plan.obstacle or plan.missing or plan.unexpected or plan.misshapen)
    lines = [f"loading: {'not possible as it is' if wrong else 'possible'}; memory for what lies here {_bytes(size)}"]
    lines += _wrapped(f"obstacle: {plan.obstacle}", "  ") if plan.obstacle else []
    for need in plan.needs:
        lines += _wrapped(f"needs {need}", "  ")
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
