"""Records of preferences and of decisions as the data sets that trl reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.utils import read_records
from llava.navigation.prompt import NavilaFormat
from llava.train.trl_processor import BLACK, parts_of
from llava.video.frame_sampling import BLACK_FRAME

Record = Mapping[str, Any]


def preference_pairs(path: str | Path, folder: str | Path | None, prompt: NavilaFormat) -> list[dict[str, Any]]:
    """Rows of prompt, images, chosen and rejected for DPO.

    A record gives "prompt", "images" (paths, one per `<image>`), "chosen" and "rejected"; a NaVILA decision ("q", "a",
    "frames") becomes one with its "rejected".
    """
    rows = []
    for index, record in enumerate(read_records(Path(path))):
        row = _row(record, folder, prompt, index)
        chosen = record.get("chosen", record.get("a"))
        rows.append({**row, "chosen": _said(chosen, "chosen", index),
                     "rejected": _said(record.get("rejected"), "rejected", index)})  # fmt: skip
    return rows


def decisions(path: str | Path, folder: str | Path | None, prompt: NavilaFormat) -> list[dict[str, Any]]:
    """Rows of prompt, images and answer for GRPO, from "prompt", "images", "answer" or a NaVILA decision."""
    rows = []
    for index, record in enumerate(read_records(Path(path))):
        answer = record.get("answer", record.get("a"))
        _said(answer, "answer", index)
        rows.append({**_row(record, folder, prompt, index), "answer": answer})
    return rows


def _row(record: Record, folder: str | Path | None, prompt: NavilaFormat, index: int) -> dict[str, Any]:
    if "frames" in record:
        frames = record["frames"]
        question = prompt.question(record["q"])
        images = [BLACK if i == BLACK_FRAME else frames[i] for i in prompt.frame_indices(len(frames))]
    else:
        question, images = record.get("prompt"), list(record.get("images") or [])
    if not isinstance(question, str):
        raise ValueError(f"record {index} has the keys {sorted(record)}, expected 'prompt', or 'q' and 'frames'")
    if (count := question.count(DEFAULT_IMAGE_TOKEN)) != len(images):
        raise ValueError(
            f"record {index} has {count} {DEFAULT_IMAGE_TOKEN} and {len(images)} pictures; give one for each"
        )
    places = [name if name == BLACK else str(Path(folder or ".") / name) for name in images]
    return {"prompt": [{"role": "user", "content": parts_of(question)}], "images": places}


def _said(text: Any, key: str, index: int) -> list[dict[str, str]]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"record {index} has {key} {text!r}, expected a text")
    return [{"role": "assistant", "content": text}]


def as_dataset(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A `datasets.Dataset`; pictures stay paths until a batch is made."""
    from datasets import Dataset

    if not rows:
        raise ValueError("the data holds no record, expected at least one")
    return Dataset.from_list([dict(row) for row in rows])
