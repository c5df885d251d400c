"""A model from its base and its delta.

python -m llava.model.apply_delta --base-model-path vicuna-7b --target-model-path out --delta-path llava-7b-delta

The base is a language model of transformers or an original LLaVA folder, the delta one that `make_delta` wrote or one
published for LLaVA's own `apply_delta`; both in .bin or safetensors. The rows of the embedding table and of the head
that only the delta has are taken as they are, and so is a vision part that the base has not. Tensors are read, added
and written one at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.model.checkpoints import resolve_folder
from llava.model.checkpoints.assemble import TOKENIZER_FILES, has_tokenizer
from llava.model.checkpoints.beside import copy_beside
from llava.model.checkpoints.delta import sums
from llava.model.checkpoints.pairs import MARK
from llava.model.checkpoints.progress import byte_bar
from llava.model.checkpoints.shards import as_writable, require_no_weights, write_shards
from llava.model.checkpoints.stored import read_config

TOKENIZER = (*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")


def apply_delta(base: str | Path, target: str | Path, delta: str | Path, max_shard_size: int | str = "5GB") -> Path:
    """Writes base + delta; its config.json comes last, so that a broken run leaves nothing that looks whole.

    Raises:
        FileNotFoundError: no such folder, or a shard is missing.
        ValueError: names file and key where base and delta do not belong together.
    """
    base, delta, target = resolve_folder(base), resolve_folder(delta), Path(target).expanduser()
    require_no_weights(target)
    tensors = as_writable(sums(delta, base))
    with byte_bar("base + delta", sum(tensor.num_bytes for tensor in tensors.values())) as on_written:
        write_shards(target, tensors, max_shard_size, on_written)
    copy_beside(delta, target, without=("config.json",))
    if not has_tokenizer(delta):
        copy_beside(base, target, TOKENIZER)
    copy_beside(base, target, ("generation_config.json",))
    settings = {key: value for key, value in read_config(delta).items() if key != MARK}
    (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.apply_delta",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-model-path", required=True, help="folder or hub id of the base")
    parser.add_argument("--target-model-path", required=True, help="folder to write, without weights so far")
    parser.add_argument("--delta-path", required=True, help="folder or hub id of the delta")
    parser.add_argument("--max-shard-size", default="5GB", help="of a weight file (default 5GB)")
    options = parser.parse_args(arguments)
    try:
        target = apply_delta(
            options.base_model_path, options.target_model_path, options.delta_path, options.max_shard_size
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"apply_delta: error: {error}\n")
        return 1
    sys.stdout.write(f"wrote {target}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
