"""The delta of a model: its difference to the base that it was trained on, to be published without that base.

python -m llava.model.make_delta --base-model-path vicuna-7b --target-model-path llava-7b --delta-path llava-7b-delta

Every sum is tried before it is stored. float32 always comes back to the bit: a difference for which float32 is not
enough is stored in float64. Half precision stays in its own type, and what comes back differently is counted and said;
--exact stores such differences in float32. `llava.load(delta, model_base=base)` reads the folder in one call.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.model.checkpoints import resolve_folder
from llava.model.checkpoints.beside import copy_beside
from llava.model.checkpoints.difference import Rounding, best_type, subtract
from llava.model.checkpoints.pairs import MARK, Pairs, fingerprint, pair, weights_of
from llava.model.checkpoints.progress import byte_bar
from llava.model.checkpoints.shards import Writable, require_no_weights, write_shards
from llava.model.checkpoints.stored import StoredTensor, open_tensors, read_config
from llava.model.checkpoints.tower import looks_like_hub_id


@dataclass(frozen=True, kw_only=True)
class DeltaReport:
    """What was written to `folder`, and by how much base + delta misses the model.

    Attributes:
        num_numbers: of the model. num_changed: of these come back differently; worst: by at most so much.
        wider: names of differences that are stored in a wider type than the model.
    """

    folder: Path
    num_numbers: int
    num_changed: int = 0
    worst: float = 0.0
    wider: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        back = "base + delta is the model to the bit"
        if self.num_changed:
            share = f"{self.num_changed:,} of {self.num_numbers:,} numbers"
            back = f"{share} come back differently, by at most {self.worst:.3g} (see --exact)"
        wider = f"; {len(self.wider)} tensors in a wider type" if self.wider else ""
        return f"wrote {self.folder}: {back}{wider}"


def make_delta(
    base: str | Path, target: str | Path, delta: str | Path, *, exact: bool = False, max_shard_size: int | str = "5GB"
) -> DeltaReport:
    """Writes target - base to `delta`.

    Args:
        exact: half precision too comes back to the bit, at up to twice the size.

    Raises:
        FileNotFoundError: no such folder, or a shard is missing.
        ValueError: names file and key where the two do not belong together.
    """
    named = str(base)
    base, target, delta = resolve_folder(base), resolve_folder(target), Path(delta).expanduser()
    settings = read_config(target)
    if MARK in settings:
        raise ValueError(f"{target} is a delta itself, expected a whole model; apply it first: llava.model.apply_delta")
    require_no_weights(delta)
    tensors = weights_of(target)
    pairs = pair(tensors, base, is_tied=bool(settings.get("tie_word_embeddings")))
    roundings = _choose_types(tensors, pairs, exact=exact)
    writable = _differences(tensors, pairs, roundings)
    with byte_bar("writing", sum(tensor.num_bytes for tensor in writable.values())) as on_written:
        write_shards(delta, writable, max_shard_size, on_written)
    copy_beside(target, delta, without=("config.json",))
    wider = {name: tensors[name].dtype for name in tensors if roundings[name].dtype != tensors[name].dtype}
    mark = {
        "base": named if looks_like_hub_id(named) and not Path(named).exists() else base.name,
        "fingerprint": fingerprint(pairs),
        "types": {name: str(dtype).removeprefix("torch.") for name, dtype in wider.items()},
    }
    (delta / "config.json").write_text(json.dumps({**settings, MARK: mark}, indent=2) + "\n", encoding="utf-8")
    return _report(delta, tensors, roundings, wider)


def _report(
    folder: Path, tensors: dict[str, StoredTensor], roundings: dict[str, Rounding], wider: Iterable[str]
) -> DeltaReport:
    return DeltaReport(
        folder=folder,
        num_numbers=sum(tensor.num_elements for tensor in tensors.values()),
        num_changed=sum(row.num_changed for row in roundings.values()),
        worst=max(row.worst for row in roundings.values()),
        wider=sorted(wider),
    )


def _choose_types(tensors: dict[str, StoredTensor], pairs: Pairs, *, exact: bool) -> dict[str, Rounding]:
    """Tries every sum: a file says its types before its numbers, so they must be known before it is written."""
    bases = open_tensors({name: partner for name, partner in pairs.items() if partner is not None})
    opened, found = open_tensors(tensors), {}
    with byte_bar("comparing", sum(tensor.num_bytes for tensor in tensors.values())) as on_read:
        for name, tensor in tensors.items():
            must = exact or tensor.dtype == torch.float32
            whole = Rounding(dtype=tensor.dtype)
            found[name] = best_type(opened[name][...], bases[name][...], exact=must) if name in bases else whole
            on_read(tensor.num_bytes)
    return found


def _differences(tensors: dict[str, StoredTensor], pairs: Pairs, roundings: dict[str, Rounding]) -> dict[str, Writable]:
    bases = open_tensors({name: partner for name, partner in pairs.items() if partner is not None})
    opened = open_tensors(tensors)
    return {
        name: Writable(
            shape=tensor.shape,
            dtype=roundings[name].dtype,
            make=partial(_make, opened[name], bases.get(name), roundings[name].dtype),
        )
        for name, tensor in tensors.items()
    }


def _make(target: Any, base: Any, dtype: torch.dtype) -> Tensor:
    return target[...] if base is None else subtract(target[...], base[...], dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.make_delta",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-model-path", required=True, help="folder or hub id of the base")
    parser.add_argument("--target-model-path", required=True, help="folder or hub id of the model")
    parser.add_argument("--delta-path", required=True, help="folder to write, without weights so far")
    parser.add_argument("--exact", action="store_true", help="half precision too to the bit, at up to twice the size")
    parser.add_argument("--max-shard-size", default="5GB", help="of a weight file (default 5GB)")
    options = parser.parse_args(arguments)
    try:
        report = make_delta(
            options.base_model_path,
            options.target_model_path,
            options.delta_path,
            exact=options.exact,
            max_shard_size=options.max_shard_size,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"make_delta: error: {error}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
