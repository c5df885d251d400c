"""Give a checkpoint the background/object split, untrained: what a frozen model loses by the split order alone.

python -m llava.model.scene_split --model runs/demo/models/8frames --out runs/split/untrained
python -m llava.model.scene_split --model llava-7b --out llava-7b-split --config '{"shared_projectors": false}'
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml


def main(arguments: Sequence[str] | None = None) -> int:
    head, examples = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.scene_split",
        description=head,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--config", default="{}", help="keys of SceneSplitConfig as JSON, or a YAML or JSON file")
    options = parser.parse_args(arguments)
    try:
        split_checkpoint(options.model, options.out, options.config)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"llava.model.scene_split: error: {error}\n")
        return 1
    sys.stdout.write(f"wrote {options.out}\n")
    return 0


def split_checkpoint(model_path: str, out: Path, source: str) -> None:
    """Writes the checkpoint with separators and own parts, as `source` asks for.

    Raises:
        ValueError: settings that are none, a folder that is not empty, or a model that cannot be split.
    """
    from llava.model.builder import load_pretrained_model
    from llava.model.scene_split.config import SceneSplitConfig

    keys = json.loads(source) if source.strip().startswith("{") else yaml.safe_load(Path(source).read_text("utf-8"))
    config = SceneSplitConfig.read(keys)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder")
    _, model, _, _ = load_pretrained_model(model_path, device="cpu")
    if not hasattr(model, "initialize_scene_split"):
        raise ValueError(f"{model_path} is a language model without a vision tower, expected a vision-language model")
    model.initialize_scene_split(config)
    model.save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
