"""vila-eval: measure a checkpoint on tasks, one results.json each, a table at the end.

vila-eval -m runs/train/demo/model -t navigation-embedded
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava.utils.registry import suggest

DEFAULT_ROOT = Path("runs/eval")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vila-eval", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model-path", "-m", required=True, help="checkpoint folder")
    add("--model-name", help="name of the result folder (default: the checkpoint folder's name)")
    add("--conv-mode", "-c", help="conversation template (default: the one stored in the checkpoint)")
    add("--nproc-per-node", "-n", type=int, default=1, help="processes that share the episodes (default 1)")
    add("--tasks", "-t", help="comma-separated names")
    add("--include-tags", "--tags-include", "-i", "-ti", help="tasks with any of these tags")
    add("--exclude-tags", "--tags-exclude", "-e", "-te", help="no task with any of these tags")
    add("--output-dir", type=Path, help="default runs/eval/<model name>")
    add("--data-root", type=Path, help="folder of the data sets (default: what a task makes by itself)")
    add("--episodes", type=int, help="at most so many per task")
    add("--floors", action=argparse.BooleanOptionalAction, default=True, help="measure the floor policies as well")
    add("--pictures", type=int, default=0, metavar="N", help="draw N episodes, successes and failures")
    add("--allow-camera-mismatch", action="store_true", help="measure through another camera than the training's")
    add("--overwrite", action="store_true", help="move old results aside and measure again")
    add("--option", "-o", action="append", default=[], metavar="NAME=VALUE", help="replace an option of the task's row")
    add("--registry", type=Path, help="another table of tasks")
    add("--num-chunks", type=int, default=1, help="evaluate one of N shares of the episodes ...")
    add("--chunk-idx", type=int, default=0, help="... this one; a later run without both joins them")
    add("--list", action="store_true", help="print the tasks and stop")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every task has a complete result."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--list" in arguments:
        return list_tasks()
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        tasks = _chosen_tasks(options)
        checkpoint = checkpoint_facts(options.model_path)
        root = options.output_dir or DEFAULT_ROOT / model_name(options.model_path, options.model_name)
    except (ValueError, FileNotFoundError, KeyError) as error:
        return _fail(str(error.args[0] if isinstance(error, KeyError) else error))
    load = lru_cache(maxsize=1)(lambda: load_model(options.model_path))
    failed = [task.name for task in tasks if not run_task(task, options, arguments, root, checkpoint, load)]
    report(tasks, root)
    return _fail(f"no complete result for {', '.join(failed)}") if failed else 0


def _fail(message: str) -> int:
    print(f"vila-eval: error: {message}", file=sys.stderr)
    return 1


def list_tasks() -> int:
    from llava.eval.tasks import load_tasks

    for task in load_tasks().values():
        print(f"{task.name:28} {' '.join(task.tags)}")
    return 0


def _chosen_tasks(options: argparse.Namespace) -> list[Any]:
    from llava.eval.tasks import REGISTRY_FILE, load_tasks, select_tasks

    if options.episodes is not None and options.episodes < 1:
        raise ValueError(f"--episodes is {options.episodes}, expected at least 1")
    for name in ("nproc_per_node", "num_chunks"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if not 0 <= options.chunk_idx < options.num_chunks:
        raise ValueError(
            f"--chunk-idx is {options.chunk_idx}, expected 0 to {options.num_chunks - 1} (--num-chunks - 1)"
        )
    tasks = load_tasks(options.registry or REGISTRY_FILE)
    words = (options.tasks, options.include_tags, options.exclude_tags)
    names, include, exclude = ([w.strip() for w in (text or "").split(",") if w.strip()] for text in words)
    return select_tasks(tasks, names=names, include=include, exclude=exclude)


def model_name(path: str, given: str | None = None) -> str:
    """Lower-case folder name of a checkpoint; a last folder that says nothing is joined with the one above it."""
    if given:
        return given
    parts = [part for part in Path(path).parts if part not in ("/", ".", "..")]
    plain = parts[-1:] and (parts[-1] in ("model", "final", "output") or parts[-1].startswith("checkpoint-"))
    return "-".join(parts[-2:] if plain else parts[-1:]).lower()


def checkpoint_facts(path: str) -> dict[str, str]:
    """Path and fingerprint of a checkpoint for the protocol card.

    Raises:
        FileNotFoundError: there is no checkpoint at a local path; the nearest folder name is suggested.
    """
    folder = Path(path).expanduser()
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = suggest(folder.name, siblings) if siblings and not folder.exists() else ""
        what = "is no checkpoint folder (no config.json)" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"checkpoint {path} {what}{hint}; train one with scripts/train/, or check --model-path")
    return {"checkpoint": str(path), "fingerprint": fingerprint(folder)}


def fingerprint(folder: Path) -> str:
    """Twelve digits that change with the configs or the weights (names, sizes, and both ends of each file)."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.name == "config.json" or p.suffix in (".safetensors", ".bin")):
        inside = file.relative_to(folder)
        if any(part.startswith("checkpoint-") for part in inside.parts):
            continue  # a training's own, not this model
        digest.update(f"{inside} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()[:12]


def load_model(path: str) -> Any:
    import llava

    return llava.load(path)


def run_task(
    task: Any,
    options: argparse.Namespace,
    arguments: Sequence[str],
    root: Path,
    checkpoint: dict[str, str],
    load: Callable[[], Any],
) -> bool:
    """Measure one task unless it is finished; True when its result is complete."""
    from llava.eval.results import is_finished

    folder = root / task.name
    if options.num_chunks > 1:
        folder = folder / f"chunk-{options.chunk_idx}-of-{options.num_chunks}"
    try:
        if options.overwrite:
            move_aside(folder / "results.json")
        elif is_finished(folder) and same_checkpoint(folder, checkpoint):
            print(f"{task.name}: finished before, skipped ({folder / 'results.json'}; --overwrite measures again)")
            return True
        if options.nproc_per_node > 1:
            run_chunks(task.name, arguments, options)
        request = make_request(task, options, folder, checkpoint, load)
        task.load_runner()(task, request)
        return is_finished(folder)
    except (ValueError, FileNotFoundError, KeyError, ImportError) as error:
        _fail(f"{task.name}: {error.args[0] if isinstance(error, KeyError) else error}")
        return False


def make_request(
    task: Any, options: argparse.Namespace, folder: Path, checkpoint: dict[str, str], load: Callable[[], Any]
) -> Any:
    from llava.eval.tasks import Request

    return Request(
        model=load,
        folder=folder,
        checkpoint=checkpoint,
        conv_mode=options.conv_mode,
        data_root=options.data_root,
        episodes=options.episodes,
        floors=options.floors and options.num_chunks == 1,
        num_chunks=options.num_chunks,
        chunk_index=options.chunk_idx,
        pictures=options.pictures if options.num_chunks == 1 else 0,
        allow_camera_mismatch=options.allow_camera_mismatch,
        say=lambda line: print(f"{task.name}: {line}", flush=True),
        overrides=dict(_pair(text) for text in options.option),
    )


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text!r} is no NAME=VALUE, for example --option max_steps=100")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def same_checkpoint(folder: Path, checkpoint: dict[str, str]) -> bool:
    """True unless the result was measured on other weights; foreign results say nothing and are kept."""
    from llava.eval.results import read_results

    policy = ((read_results(folder) or {}).get("protocol") or {}).get("policy", {})
    return policy.get("fingerprint") in (None, checkpoint["fingerprint"])


def move_aside(path: Path) -> None:
    """results.json becomes results.1.json, results.2.json, ...: nothing measured is ever deleted."""
    number = 1
    while path.exists():
        target = path.with_name(f"{path.stem}.{number}{path.suffix}")
        number += 1
        if not target.exists():
            path.rename(target)


def run_chunks(task_name: str, arguments: Sequence[str], options: argparse.Namespace) -> None:
    """One process per share of the episodes, each with a GPU where there are some; the results are joined later."""
    count = options.nproc_per_node
    own = ["--tasks", task_name, "--nproc-per-node", "1", "--no-floors", "--num-chunks", str(count)]
    processes = []
    for index in range(count):
        env = dict(os.environ)
        gpus = visible_gpus()
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        command = [sys.executable, "-m", "llava.cli.eval", *arguments, *own, "--chunk-idx", str(index)]
        processes.append(subprocess.Popen(command, env=env))
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    if any(codes):
        raise ValueError(
            f"{sum(map(bool, codes))} of {count} processes failed (exit codes {codes}); see their messages above"
        )


def visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def report(tasks: Sequence[Any], root: Path) -> None:
    """Tables of what there is, and metrics.json with all metrics of the registry."""
    from llava.eval.results import read_results, value_at, write_json
    from llava.eval.tables import breakdown_table, metric_table, navigation_table, summary_lines, text_of

    rows = []
    for task in tasks:
        content = read_results(root / task.name)
        if content is None:
            continue
        rows += [(task.name, name, value_at(content, path)) for name, path in task.metrics.items()]
        if "summary" in content and "protocol" in content:
            columns = {"model": content["summary"]}
            columns |= {name: floor["summary"] for name, floor in content.get("floors", {}).items()}
            missing = "" if content["complete"] else f" (INCOMPLETE: {content['missing_episodes']} episodes missing)"
            title = f"{task.name}: {content['protocol']['population']}{missing}"
            lines = summary_lines(content["summary"])
            print(text_of(navigation_table(columns, title), breakdown_table(content["summary"]), *lines))
    if rows:
        write_json(root / "metrics.json", {f"{task}/{name}": value for task, name, value in rows})
        print(text_of(metric_table(rows)) + f"results: {root}")


if __name__ == "__main__":
    raise SystemExit(main())
