"""One clean folder from a checkpoint in any shape: .bin or safetensors, whole or in shards -> safetensors in shards.

python -m llava.model.consolidate --src checkpoints/run --dst checkpoints/clean

Weights keep their names, types and bits; config, tokenizer, processors and model card are copied, what only a training
run needs (optimiser, trainer state) is left behind. A folder of three parts stays one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.model.checkpoints import resolve_folder
from llava.model.checkpoints.beside import CARDS, SETTINGS, copy_beside
from llava.model.checkpoints.plan import PARTS
from llava.model.checkpoints.progress import byte_bar
from llava.model.checkpoints.shards import as_writable, require_no_weights, write_shards
from llava.model.checkpoints.stored import folder_headers, has_weights


def consolidate(source: str | Path, target: str | Path, max_shard_size: int | str = "5GB") -> Path:
    """Writes the folder; its config.json comes last, so that a broken run leaves nothing that looks whole.

    Raises:
        FileNotFoundError: the source lacks a shard. ValueError: no whole model there, or weights at the target.
    """
    source, target = resolve_folder(source), Path(target).expanduser()
    folders = folders_of_weights(source)
    for folder in folders:
        require_no_weights(target / folder.relative_to(source))
    for folder in folders:
        tensors = as_writable(folder_headers(folder))
        place = target / folder.relative_to(source)
        total = sum(tensor.num_bytes for tensor in tensors.values())
        with byte_bar(f"writing {place.name}", total) as on_written:
            write_shards(place, tensors, max_shard_size, on_written)
    for folder in sorted({source, *folders}, reverse=True):
        place = target / folder.relative_to(source)
        copy_beside(folder, place, (*SETTINGS, *CARDS), without=("config.json",))
        copy_beside(folder, place, ("config.json",))
    return target


def folders_of_weights(source: Path) -> list[Path]:
    """The folder itself, or its three parts.

    Raises:
        ValueError: for a folder that holds no whole model.
    """
    parts = [source / part for part in PARTS if has_weights(source / part)]
    if has_weights(source) and not parts:
        return [source]
    if len(parts) == len(PARTS) and not has_weights(source):
        return parts
    there = ", ".join(sorted(entry.name for entry in source.iterdir())[:12]) or "nothing"
    raise ValueError(
        f"{source} holds no single whole model (found {there}), expected model.safetensors, pytorch_model.bin, their "
        f"shards, or weights in each of {', '.join(PARTS)}; an adapter or a projector becomes a whole model with "
        "llava.load(path, model_base=...).save_pretrained(folder)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.consolidate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--src", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--dst", required=True, help="folder to write, without weights so far")
    parser.add_argument("--max-shard-size", default="5GB", help="of a weight file (default 5GB)")
    options = parser.parse_args(arguments)
    try:
        target = consolidate(options.src, options.dst, options.max_shard_size)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"consolidate: error: {error}\n")
        return 1
    sys.stdout.write(f"wrote {target}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
