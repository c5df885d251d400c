"""Reading annotation files, with errors that say where a file is broken."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import BatchEncoding

V = TypeVar("V")
_SPACE = re.compile(r"\s*")


class BrokenSampleError(ValueError):
    """One record cannot become a sample; `Dataset` counts it and goes on, or stops, as `on_error` says."""


class SmallCache(Generic[V]):
    """The most recently used values of a function of a hashable key."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self.capacity:
            self._values.popitem(last=False)
        return value


class CachingTokenizer:
    """A tokenizer that keeps the ids of the texts it has met (arrows, questions, instructions) and its vocabulary.

    Texts come one at a time or as a list; the answer has `input_ids` only. All other uses go to the tokenizer itself.
    """

    def __init__(self, tokenizer: Any, keep: int = 50_000) -> None:
        self._tokenizer = tokenizer
        self._ids: SmallCache[list[int]] = SmallCache(keep)
        self._vocabulary = tokenizer.get_vocab()

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True) -> BatchEncoding:
        def ids(one: str) -> list[int]:
            make = partial(self._tokenizer, one, add_special_tokens=add_special_tokens)
            return self._ids.get((one, add_special_tokens), lambda: make()["input_ids"])

        return BatchEncoding({"input_ids": ids(text) if isinstance(text, str) else [ids(one) for one in text]})

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


def read_text(path: Path) -> str:
    """Whole text of a plain or .gz file."""
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no complete gzip file ({error}); copy or download it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}; convert it, or download it again") from error


def read_json(path: str | Path) -> Any:
    """One JSON value, plain or .gz; a broken file is named with line and column."""
    path = Path(path)
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(_broken_json(path, text, error.pos, "the file", error.msg)) from error


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Records of a JSON list or of JSON lines, plain or .gz, told apart by their first character.

    Strings that repeat (frame paths, instructions) are stored once; every record of a NaVILA file lists all its frames.
    """
    path = Path(path)
    text = read_text(path)
    start = _SPACE.match(text, 0).end()  # pyright: ignore[reportOptionalMemberAccess]
    if start == len(text):
        raise ValueError(f"{path} is empty; expected a JSON list of records or one record per line")
    parse = _list_records if text[start] == "[" else _line_records
    records = []
    for number, record in enumerate(parse(path, text, start)):
        if not isinstance(record, dict):
            raise ValueError(
                f"record {number} of {path} is a {type(record).__name__}, expected an object such as {{'image': ...}}"
            )
        records.append(_shared_strings(record))
    return records


def _list_records(path: Path, text: str, start: int) -> Iterator[Any]:
    decode, position, number = json.JSONDecoder().raw_decode, start + 1, 0
    while True:
        position = _SPACE.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]
        if text[position : position + 1] == "]":
            return
        try:
            record, position = decode(text, position)
        except json.JSONDecodeError as error:
            raise ValueError(_broken_json(path, text, error.pos, f"record {number}", error.msg)) from error
        yield record
        number += 1
        position = _SPACE.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            raise ValueError(_broken_json(path, text, position, f"record {number - 1}", "expected ',' or ']' after it"))


def _line_records(path: Path, text: str, start: int) -> Iterator[Any]:
    offset, number = 0, 0
    for line in text.split("\n"):  # not splitlines(): JSON strings may hold U+2028
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(_broken_json(path, text, offset + error.pos, f"record {number}", error.msg)) from error
            number += 1
        offset += len(line) + 1


def _broken_json(path: Path, text: str, position: int, where: str, why: str) -> str:
    line = text.count("\n", 0, position) + 1
    complete = text.rstrip().endswith(("]", "}"))
    tail = (
        "correct the file there"
        if complete
        else "the file ends in the middle of a record: it is truncated, copy or download it again"
    )
    return f"{path} is broken in {where}, line {line}, character {position} of {len(text)}: {why}; {tail}"


def _shared_strings(record: dict[str, Any]) -> dict[str, Any]:
    for key, value in record.items():
        if isinstance(value, str):
            record[key] = sys.intern(value)
        elif isinstance(value, list) and value and isinstance(value[0], str):
            record[key] = [sys.intern(item) if isinstance(item, str) else item for item in value]
    return record
