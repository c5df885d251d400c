"""Merge a LoRA or DoRA folder into its base and write a whole model.

python -m llava.utils.merge_lora_weights_and_save_hf_model --model-path LORA --save-model-path OUT

A command at the path where scripts look for it: nothing imports it, and it alone of this folder knows the model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.model.checkpoints import ReadOptions, read_checkpoint, require_layout, resolve_folder
from llava.model.checkpoints.export import export_llava_hf
from llava.model.checkpoints.lora import recognises as is_adapter

LAYOUTS = ("three-folder", "llava-hf")


def merge(source: str, target: Path, *, model_base: str | None, dtype: str, layout: str, max_shard_size: str) -> Path:
    """Read `source` with its adapter merged and write it to `target`.

    Raises:
        ValueError: `source` holds no adapter, or `target` holds something already.
    """
    folder = resolve_folder(source)
    if not is_adapter(folder):
        require_layout(folder)
        raise ValueError(f"{folder} has no adapter to merge (no adapter_config.json); it is a whole model already")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; choose another --save-model-path, nothing is written over")
    model = read_checkpoint(folder, ReadOptions(model_base=model_base, dtype=dtype))
    if layout == "llava-hf":
        return export_llava_hf(model, target, max_shard_size)
    model.save_pretrained(target, max_shard_size=max_shard_size)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        written = merge(
            options.model_path,
            Path(options.save_model_path).expanduser(),
            model_base=options.model_base,
            dtype=options.dtype,
            layout=options.layout,
            max_shard_size=options.max_shard_size,
        )
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"wrote {written}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merge_lora_weights_and_save_hf_model", description="merge an adapter into its base and write the model"
    )
    parser.add_argument("--model-path", required=True, help="folder with adapter_config.json")
    parser.add_argument("--model-base", help="folder or hub id of the base; default: what the adapter names")
    parser.add_argument("--save-model-path", required=True, help="folder to write")
    parser.add_argument("--dtype", default="auto", help="auto (as the base is stored), float32, bfloat16, float16")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="layout of the folder to write")
    parser.add_argument("--max-shard-size", default="5GB", help="of a weight file (default 5GB)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
