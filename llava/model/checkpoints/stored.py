"""What weight files hold, told from their headers; tensors are read one by one, when they are wanted."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llava.model.checkpoints.difference import Sum

STORED_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_STEMS = (("model", "safetensors"), ("pytorch_model", "bin"))
_COPY_AGAIN = "the file was cut or changed on its way: copy it again and compare its size with the source"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a weight file, not yet read.

    Attributes:
        plus: tensor of a base that is added when this one, a difference, is read; dtype is then the type of the sum.
        rows: the first row that is read and the first behind them (`rows_of`), None = all; shape is what is read.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    plus: StoredTensor | None = None
    rows: tuple[int, int] | None = None

    @property
    def num_elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


def rows_of(stored: StoredTensor, start: int, stop: int) -> StoredTensor:
    """Some rows of a stored tensor as a tensor of its own; the others are not read with it."""
    assert stored.rows is None and 0 <= start < stop <= stored.shape[0], (stored, start, stop)
    base = None if stored.plus is None else rows_of(stored.plus, start, stop)
    return replace(stored, shape=(stop - start, *stored.shape[1:]), rows=(start, stop), plus=base)


class Rows:
    """Rows of a slice of a file, read when it is indexed with `...`, as transformers' loader indexes such a slice."""

    def __init__(self, whole: Any, start: int, stop: int) -> None:
        self.whole, self.start, self.stop = whole, start, stop

    def __getitem__(self, index: Any) -> Tensor:
        assert index is ..., f"rows are read together, found index {index}"
        return self.whole[self.start : self.stop]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the file was cut or edited: copy it again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; empty where there is none."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def has_weights(folder: Path) -> bool:
    """Whether the weights of a whole model lie directly in a folder (adapters and optimiser files do not count)."""
    return any(
        next(folder.glob(pattern), None)
        for stem, kind in _STEMS
        for pattern in (f"{stem}.{kind}", f"{stem}.{kind}.index.json", f"{stem}-*-of-*.{kind}")
    )


def weight_files(folder: Path) -> list[Path]:
    """The one file or all shards; safetensors win over .bin.

    Raises:
        FileNotFoundError: no weights, or a shard is missing.
    """
    for stem, kind in _STEMS:
        index = folder / f"{stem}.{kind}.index.json"
        if index.is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
        elif (folder / f"{stem}.{kind}").is_file():
            names = [f"{stem}.{kind}"]
        else:
            names = _all_of_a_series(sorted(entry.name for entry in folder.glob(f"{stem}-*-of-*.{kind}")))
        if names:
            _require(folder, names, index)
            return [folder / name for name in names]
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
    raise FileNotFoundError(f"{folder} has no weights: expected *.safetensors or *.bin, found {found}")


def _all_of_a_series(names: list[str]) -> list[str]:
    """Every name of a series such as model-00001-of-00003.safetensors, of which at least one lies there."""
    match = re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\..*)", names[0]) if names else None
    if match is None:
        return names
    width, total = len(match[2]), int(match[4])
    return [f"{match[1]}{number:0{width}d}{match[3]}{match[4]}{match[5]}" for number in range(1, total + 1)]


def _require(folder: Path, names: list[str], index: Path) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        lost = ""
        if index.is_file():
            keys = [key for key, file in read_json(index)["weight_map"].items() if file == missing[0]]
            lost = f" with {len(keys)} tensors, such as {keys[0]}"
        raise FileNotFoundError(
            f"{folder} lacks the shard {missing[0]}{lost} ({len(missing)} of {len(names)} shards missing); "
            "copy it from where the checkpoint came from"
        )


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Name -> what is stored, of all files together; no weights are read."""
    stored: dict[str, StoredTensor] = {}
    for file in files:
        stored |= _safetensors_header(file) if file.suffix == ".safetensors" else _bin_header(file)
    return stored


def folder_headers(folder: Path) -> dict[str, StoredTensor]:
    """The headers of a folder's weights, which must be those that its index promises."""
    files = weight_files(folder)
    stored = read_headers(files)
    index = next(iter(folder.glob(f"*{files[0].suffix}.index.json")), None)
    if index is not None:
        for key, name in read_json(index)["weight_map"].items():
            if key not in stored:
                raise ValueError(f"{folder / name} lacks {key}, which {index.name} promises there; {_COPY_AGAIN}")
    return stored


def _safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """The JSON text at the start of the file (its length stands in the first 8 bytes); nothing else is touched."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if length <= size else b""
    try:
        rows = {name: row for name, row in json.loads(text).items() if name != "__metadata__"}
    except ValueError as error:
        raise ValueError(f"{file} is no complete safetensors file (its header is cut); {_COPY_AGAIN}") from error
    wanted = 8 + length + max((row["data_offsets"][1] for row in rows.values()), default=0)
    if wanted != size:
        raise ValueError(f"{file} is no complete safetensors file ({size} bytes, expected {wanted}); {_COPY_AGAIN}")
    for name, row in rows.items():
        if row["dtype"] not in STORED_TYPES:
            raise ValueError(
                f"{file}: {name} has type {row['dtype']}, expected one of {', '.join(STORED_TYPES)}; convert it first"
            )
    return {
        name: StoredTensor(file=file, name=name, shape=tuple(row["shape"]), dtype=STORED_TYPES[row["dtype"]])
        for name, row in rows.items()
    }


def _bin_header(file: Path) -> dict[str, StoredTensor]:
    state = _load_bin(file, "meta")
    return {
        name: StoredTensor(file=file, name=name, shape=tuple(value.shape), dtype=value.dtype)
        for name, value in state.items()
    }


def _load_bin(file: Path, device: str) -> dict[str, Tensor]:
    """A pickled state dict without running anything that lies in it; on "meta" the numbers stay on disk."""
    try:
        mapped = device != "meta" and _is_zip(file)  # files of torch < 1.6 cannot be mapped into memory
        state = torch.load(file, map_location=device, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0][:160]
        raise ValueError(
            f"{file} holds more than tensors ({reason}), expected a plain state dict, and was not run; "
            "write it again where you trust it: safetensors.torch.save_file(state_dict, 'model.safetensors')"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file} is no complete torch file ({str(error).splitlines()[0][:120]}); {_COPY_AGAIN}"
        ) from error
    other = next(
        (f"{key}: {type(value).__name__}" for key, value in state.items() if not isinstance(value, Tensor)), None
    )
    if other is not None:
        raise ValueError(f"{file} holds {other}, expected names and tensors only; save the state_dict alone")
    return state


def _is_zip(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(2) == b"PK"


def open_tensors(wanted: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """New name -> slice that is read from disk when it is indexed, so that transformers holds one tensor at a time."""
    opened = _open(wanted)
    bases = _open({name: stored.plus for name, stored in wanted.items() if stored.plus is not None})
    return opened | {name: Sum(opened[name], base, wanted[name].dtype) for name, base in bases.items()}


def _open(wanted: Mapping[str, StoredTensor]) -> dict[str, Any]:
    opened: dict[str, Any] = {}
    for file in sorted({stored.file for stored in wanted.values()}):
        here = {name: stored for name, stored in wanted.items() if stored.file == file}
        if file.suffix == ".safetensors":
            handle = safe_open(file, framework="pt")
            opened |= {name: _part(handle.get_slice(stored.name), stored) for name, stored in here.items()}
        else:
            state = _load_bin(file, "cpu")
            opened |= {name: _part(state[stored.name], stored) for name, stored in here.items()}
    return opened


def _part(whole: Any, stored: StoredTensor) -> Any:
    return whole if stored.rows is None else Rows(whole, *stored.rows)


def common_dtype(stored: Iterable[StoredTensor]) -> torch.dtype:
    """The float type of most numbers; float32 where there are none."""
    counts: dict[torch.dtype, int] = {}
    for tensor in stored:
        if tensor.dtype.is_floating_point:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.num_elements
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
