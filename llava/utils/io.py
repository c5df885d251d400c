"""Files of records: one pair of functions for json, jsonl, yaml and text, gzip or not; written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava.utils.registry import suggest


def load(path: str | Path) -> Any:
    """What the file holds, by its ending: .json, .jsonl, .yaml, .yml or .txt, each also with .gz behind.

    Raises:
        ValueError: naming the file, and the line where the content is cut off or malformed.
    """
    path = Path(path).expanduser()
    read, _ = _format_of(path)
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist (working folder {Path.cwd()})") from None
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}; it is cut off or of another kind") from error
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is malformed: {error}; it may be cut off ({len(raw)} bytes), write it again"
        ) from error


def save(path: str | Path, content: Any) -> None:
    """The reverse of `load`. A killed process leaves the old file or the new one, never half of one."""
    path = Path(path).expanduser()
    _, write = _format_of(path)
    data = write(content).encode("utf-8")
    with atomic_path(path) as temporary:
        # no time stamp inside: the same content gives the same bytes
        temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends without an error."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode & 0o777)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _read_jsonl(text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return records


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _write_yaml(content: Any) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _write_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write_jsonl(content: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content)


_FORMATS: dict[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    ".json": (json.loads, _write_json),
    ".jsonl": (_read_jsonl, _write_jsonl),
    ".yaml": (_read_yaml, _write_yaml),
    ".yml": (_read_yaml, _write_yaml),
    ".txt": (str, str),
}


def _format_of(path: Path) -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if ending not in _FORMATS:
        raise ValueError(f"{path} ends in '{ending}', which is not known{suggest(ending, list(_FORMATS))}")
    return _FORMATS[ending]
