"""Checkpoints on disk: one reader per layout, chosen by what lies in the folder; the three-folder layout is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.utils.registry import Registry

if TYPE_CHECKING:
    from llava.model.checkpoints.plan import Plan
    from llava.model.language_model.base import LlavaCausalLM


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How weights are brought into memory.

    Attributes:
        dtype: torch dtype, its name, or "auto" = as stored.
        device_map: as transformers' `from_pretrained` takes it; None = CPU.
        max_memory: bytes per device, for device_map="auto".
        attn_implementation: kernel of the language model; None = "sdpa".
        quantization_config: for the language model only.
        model_base: folder of the base model, for layouts that hold a difference to one.
        vision_tower: folder or hub id of the tower, for layouts that only name it.
        cache_dir: where downloads are kept.
    """

    dtype: Any = "auto"
    device_map: Any = None
    max_memory: Any = None
    attn_implementation: str | None = None
    quantization_config: Any = None
    model_base: str | None = None
    vision_tower: str | None = None
    cache_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """recognises looks at file names and config.json; read returns the model with its tokenizer attached.

    plan says what lies where without loading it; fetch=False looks at nothing outside this machine.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], LlavaCausalLM]
    plan: Callable[[Path, ReadOptions, bool], Plan]
    holds: str  # said in errors


LAYOUTS: Registry[Layout] = Registry("checkpoint layout")
"""A new layout is one module with one row; exactly one must recognise a folder."""

_MODULES = ("three_folder", "original", "llava_hf", "projector_only", "lora", "delta")


def find_layout(folder: Path) -> Layout | None:
    """The layout of a folder (or file); None where nobody knows it.

    Raises:
        ValueError: a folder that holds two checkpoints.
    """
    for module in _MODULES:
        import_module(f"llava.model.checkpoints.{module}")
    found = {name: layout for name, layout in LAYOUTS.items() if layout.recognises(folder)}
    if len(found) > 1:
        both = "; ".join(f"{name}: {layout.holds}" for name, layout in found.items())
        raise ValueError(f"{folder} holds {len(found)} checkpoints ({both}), expected one; move one to another folder")
    return next(iter(found.values()), None)


def require_layout(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        ValueError: names what was found and what is known.
    """
    layout = find_layout(folder)
    if layout is not None:
        return layout
    found = ", ".join(sorted(entry.name for entry in folder.glob("*"))[:12]) or "nothing"
    known = "; ".join(f"{name}: {row.holds}" for name, row in LAYOUTS.items())
    raise ValueError(f"{folder} holds no known checkpoint layout (found {found}); expected {known}")


def read_checkpoint(path: str | Path, options: ReadOptions | None = None) -> LlavaCausalLM:
    """The model in a folder (or in its sub-folder `model/`), or of a hub id.

    Raises:
        FileNotFoundError: no such folder, or a part of it is missing.
        ValueError: no known layout, or weights that do not fit their config.
    """
    options = options or ReadOptions()
    folder = resolve_folder(path, options.cache_dir)
    return require_layout(folder).read(folder, options)


def resolve_folder(path: str | Path, cache_dir: str | None = None) -> Path:
    """Expands `~`, prefers `<path>/model` where it exists, and downloads what looks like a hub id and is no folder."""
    folder = Path(path).expanduser()
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if folder.exists():  # a file may hold a projector
        return folder
    name = str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.is_dir():
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, cache_dir=cache_dir))
    raise FileNotFoundError(f"no checkpoint folder at {folder}; give an existing folder or a hub id such as org/name")
