"""What lies beside the weights of a checkpoint and belongs to it: settings, tokenizer, processors, the model's card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
CARDS = ("*.md", "LICENSE*", "NOTICE*")
_OF_WEIGHTS = ("*.index.json",)
_OF_TRAINING = ("trainer_state.json", "progress.jsonl", "all_results.json", "train_results.json")


def files_beside(folder: Path, patterns: Iterable[str] = SETTINGS) -> Iterator[Path]:
    """Files of a folder that travel with its weights; what only a training run needs stays behind."""
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            left = file.name in _OF_TRAINING or any(file.match(kind) for kind in _OF_WEIGHTS)
            if file.is_file() and not left:
                yield file


def copy_beside(source: Path, target: Path, patterns: Iterable[str] = SETTINGS, without: Iterable[str] = ()) -> None:
    """Copies them; a file that is there already stays as it is."""
    target.mkdir(parents=True, exist_ok=True)
    for file in files_beside(source, patterns):
        if file.name not in set(without) and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
