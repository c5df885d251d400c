"""The weights of a model (or of its delta) beside those of its base: who belongs to whom, and is it the right base."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from llava.model.checkpoints.names import explain_buffer, locate_original
from llava.model.checkpoints.stored import StoredTensor, folder_headers, has_weights, open_tensors, read_config

MARK = "llava_delta_of"
"""Key of config.json that says: these weights are a difference to a base."""
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ADVICE = "give the base that it was trained on"

Pairs = dict[str, StoredTensor | None]
"""Name -> the base's weight of that name; None for a weight of the vision part that the base has not."""


def weights_of(folder: Path) -> dict[str, StoredTensor]:
    """The weights of a single folder, without what is computed from the config; a tied head is the embedding table.

    Raises:
        ValueError: for a folder whose weights do not lie directly in it.
    """
    if not has_weights(folder):
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        advice = f"; of a folder of three parts give the part: {folder / 'llm'}" if (folder / "llm").is_dir() else ""
        raise ValueError(
            f"{folder} holds no weights of a model (found {found}), expected *.safetensors or *.bin{advice}"
        )
    return {name: tensor for name, tensor in folder_headers(folder).items() if explain_buffer(name) is None}


def pair(tensors: Mapping[str, StoredTensor], base: Path, *, is_tied: bool = False) -> Pairs:
    """The base's weight for each tensor.

    Args:
        is_tied: the head of the model is its embedding table and need not be stored.

    Raises:
        ValueError: names file and key of what does not fit.
    """
    theirs = weights_of(base)
    if HEAD not in theirs and EMBEDDINGS in theirs and read_config(base).get("tie_word_embeddings"):
        theirs[HEAD] = theirs[EMBEDDINGS]
    elif HEAD not in tensors and is_tied:
        theirs.pop(HEAD, None)
    for name, tensor in tensors.items():
        _require_partner(name, tensor, theirs.get(name), base)
    lost = [name for name in theirs if name not in tensors and name != HEAD and not _is_vision(name)]
    if lost:
        file = next(iter(tensors.values())).file
        raise ValueError(
            f"{file.parent} lacks {lost[0]} (and {len(lost) - 1} more), which the base {base} holds; {ADVICE}"
        )
    return {name: theirs.get(name) for name in tensors}


def _is_vision(name: str) -> bool:
    """Projector, newline and tower: what a base without vision has not."""
    place = locate_original(name)
    return place is not None and place[0] != "llm"


def _require_partner(name: str, tensor: StoredTensor, partner: StoredTensor | None, base: Path) -> None:
    if partner is None:
        if not _is_vision(name):
            raise ValueError(
                f"the base {base} lacks {name}, which {tensor.file} holds, and only weights of the vision part may be "
                f"missing there; {ADVICE}"
            )
        return
    may_grow = name in (EMBEDDINGS, HEAD)  # further tokens are further rows
    if tensor.shape[may_grow:] != partner.shape[may_grow:]:
        raise ValueError(
            f"{tensor.file}: {name} has shape {list(tensor.shape)}, the base's in {partner.file} has "
            f"{list(partner.shape)}; {ADVICE}"
        )


def fingerprint(pairs: Pairs) -> str:
    """Tells one base from another (and from itself in another number type) by the first numbers of each weight."""
    used = {name: tensor for name, tensor in sorted(pairs.items()) if tensor is not None}
    digest = hashlib.sha256()
    for name, value in open_tensors(used).items():
        first = value[:1] if len(used[name].shape) > 1 else value[...][:1024]
        digest.update(f"{name} {used[name].dtype} ".encode())
        digest.update(first.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
