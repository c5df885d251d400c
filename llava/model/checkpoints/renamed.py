"""Parts whose stored names transformers changes or joins while it reads them, checked by its own loader.

The loader is given tensors that have shapes and no numbers (torch's "meta" device). What it renames, joins, misses and
finds too much is then what it will do with the files, and nothing of its tables is repeated here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from llava.model.checkpoints.quiet import quiet_transformers
from llava.model.checkpoints.stored import StoredTensor

if TYPE_CHECKING:
    from llava.model.checkpoints.plan import Plan

JOINING_FAILED = "conversion of the weights"
"""In the error of transformers where stored weights cannot be joined."""


def compare_as_loaded(
    plan: Plan, part: str, kind: Any, config: Any, explain: Callable[[str], str | None] = lambda _: None
) -> None:
    """Adds what transformers' loader says of a part to the plan.

    Args:
        kind: transformers' class. explain: name in the model -> why it need not be stored.
    """
    stored = plan.parts[part].tensors
    state = {name: torch.empty(row.shape, dtype=row.dtype, device="meta") for name, row in stored.items()}
    try:
        info = _load_nothing(kind, config, state)
    except RuntimeError as error:
        if JOINING_FAILED not in str(error):
            raise
        plan.misshapen.append(_odd_one_out(stored) or f"{plan.folder}: weights of the {part} cannot be joined")
        return
    for name in sorted(info["missing_keys"]):
        reason = explain(name)
        if reason:
            plan.explained[f"{part}.{name}"] = reason
        else:
            plan.missing.append(f"{part}.{name}")
    plan.unexpected += [_said(plan, stored, name) for name in sorted(info["unexpected_keys"])]
    for name, found, wanted in sorted(info["mismatched_keys"]):
        plan.misshapen.append(f"{_said(plan, stored, name)} has shape {list(found)}, expected {list(wanted)}")


def _load_nothing(kind: Any, config: Any, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The loader's report; it writes into the config that it is given."""
    with quiet_transformers():
        _, info = kind.from_pretrained(
            None,
            config=deepcopy(config),
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return info


def _said(plan: Plan, stored: Mapping[str, StoredTensor], name: str) -> str:
    """File and key; the folder and the name in the model for a weight that is stored under another name."""
    return f"{stored[name].file}: {stored[name].name}" if name in stored else f"{plan.folder}: {name}"


def _odd_one_out(stored: Mapping[str, StoredTensor]) -> str | None:
    """Of weights that differ in one number only (the experts of a layer): the one of another shape, or the lacking."""
    series: dict[str, list[StoredTensor]] = {}
    for name, row in stored.items():
        series.setdefault(re.sub(r"^(.*)\.\d+\.", r"\1.*.", name), []).append(row)
    usual: dict[str, Counter[tuple[int, ...]]] = {}
    for pattern, rows in series.items():
        usual.setdefault(re.sub(r"\d+", "*", pattern), Counter()).update(row.shape for row in rows)
    counts = Counter({pattern: len(rows) for pattern, rows in series.items()})
    for pattern, rows in series.items():
        alike = re.sub(r"\d+", "*", pattern)
        shape = usual[alike].most_common(1)[0][0]
        for row in rows:
            if row.shape != shape:
                return f"{row.file}: {row.name} has shape {list(row.shape)}, its neighbours have {list(shape)}"
        wanted = Counter(n for other, n in counts.items() if re.sub(r"\d+", "*", other) == alike).most_common(1)[0][0]
        if len(rows) != wanted:
            return f"{rows[0].file.parent}: {pattern} has {len(rows)} weights, its neighbours have {wanted}"
    return None
