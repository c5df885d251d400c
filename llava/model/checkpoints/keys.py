"""Reading one part with transformers' loader, and refusing weights that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llava.model.checkpoints.renamed import JOINING_FAILED
from llava.model.checkpoints.stored import folder_headers, has_weights

WEIGHT_FILES = ("*.safetensors", "*.bin")


def require_part(folder: Path, part: str) -> Path:
    """The folder of a part, once it is sure that it holds a config and weights."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder.parent} has no {part}: expected {folder}/config.json and weights; "
            "copy the part there, or write the checkpoint again with save_pretrained"
        )
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        found = ", ".join(sorted(entry.name for entry in folder.iterdir()))
        raise FileNotFoundError(f"{folder} has no weights: expected *.safetensors or *.bin, found {found}")
    return folder


def read_part(
    load: Callable[..., Any],
    folder: Path | str,
    part: str,
    ignored_prefixes: tuple[str, ...] = (),
    accepted_missing: tuple[str, ...] = (),
    files_are_checked: bool = False,
    **kwargs: Any,
) -> Any:
    """Calls a transformers `from_pretrained` and checks the files before it and its report behind it.

    Args:
        ignored_prefixes: of stored weights that the part has no use for.
        accepted_missing: names of weights that need not be stored.
        files_are_checked: the headers of the weight files were read already.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: for a file that was cut, and for missing, unexpected or misshapen weights; names folder, key and
            what to do.
    """
    if not files_are_checked and Path(folder).is_dir() and has_weights(Path(folder)):
        folder_headers(Path(folder))
    try:
        model, info = load(str(folder), output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except RuntimeError as error:
        if JOINING_FAILED not in str(error):
            raise
        raise ValueError(
            f"{folder}: stored weights of the {part} cannot be joined, one is missing or has another shape; "
            "vila-inspect names it: copy its file again"
        ) from error
    misshapen = sorted(info.get("mismatched_keys") or [])
    if misshapen:
        key, stored, wanted = misshapen[0]
        raise ValueError(
            f"{folder}: {key} has shape {list(stored)}, expected {list(wanted)}{_more(misshapen)}; "
            f"the {part} belongs to a model of another width: check its config.json or train it for this model"
        )
    for kind, keys in (("lacks", info.get("missing_keys")), ("has unknown", info.get("unexpected_keys"))):
        wrong = _without(keys or (), ignored_prefixes if kind == "has unknown" else accepted_missing)
        if wrong:
            advice = "the config.json beside it describes another model, or the file was cut: copy the part again"
            raise ValueError(f"{folder} {kind} weights of the {part}: {wrong[0]}{_more(wrong)}; {advice}")
    return model


def _without(keys: Iterable[str], prefixes: tuple[str, ...]) -> list[str]:
    return sorted(key for key in keys if not key.startswith(prefixes))


def _more(rows: list[Any]) -> str:
    return f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
