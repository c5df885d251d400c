"""Describe a checkpoint, or write it as llava-hf.

python -m llava.model.checkpoints [inspect] PATH
python -m llava.model.checkpoints export SOURCE TARGET
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from llava.model.checkpoints import ReadOptions, read_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[Sequence[str]], int]] = {"inspect": run_inspect, "export": run_export}
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stderr.write(f"{(__doc__ or '').strip()}\n")
        return 0 if arguments else 2
    if arguments[0] not in commands:  # a path alone is inspected
        return run_inspect(arguments)
    return commands[arguments[0]](arguments[1:])


def run_inspect(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when the checkpoint can be loaded as it is, 1 otherwise."""
    from llava.model.checkpoints.summary import describe, plan_checkpoint

    parser = argparse.ArgumentParser(
        prog="vila-inspect", description="what a checkpoint folder holds, from its headers"
    )
    parser.add_argument("path", help="folder (or projector file)")
    _add_sources(parser)
    options = parser.parse_args(arguments)
    try:
        plan = plan_checkpoint(options.path, _read_options(options))
    except (ValueError, OSError) as error:
        return _failed("vila-inspect", error)
    sys.stdout.write(describe(plan) + "\n")
    return int(bool(plan.obstacle or plan.missing or plan.unexpected or plan.misshapen))


def run_export(arguments: Sequence[str] | None = None) -> int:
    from llava.model.checkpoints.export import export_llava_hf

    parser = argparse.ArgumentParser(prog="export", description="write a checkpoint as transformers' LLaVA (llava-hf)")
    parser.add_argument("source", help="checkpoint of any known layout")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--max-shard-size", default="5GB", help="of a weight file (default 5GB)")
    _add_sources(parser)
    options = parser.parse_args(arguments)
    try:
        target = export_llava_hf(
            read_checkpoint(options.source, _read_options(options)), options.target, options.max_shard_size
        )
    except (ValueError, OSError) as error:
        return _failed("export", error)
    sys.stdout.write(f"wrote {target}\n")
    return 0


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-base", help="folder of the base, for adapters and projectors")
    parser.add_argument("--vision-tower", help="folder or hub id, where the checkpoint only names its tower")


def _read_options(options: argparse.Namespace) -> ReadOptions:
    return ReadOptions(model_base=options.model_base, vision_tower=options.vision_tower)


def _failed(program: str, error: Exception) -> int:
    sys.stderr.write(f"{program}: error: {error}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
