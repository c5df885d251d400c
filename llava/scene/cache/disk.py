"""The disk tier: one safetensors file per entry in a folder that processes may share.

The folder is the truth: no index that could disagree with it. A file is written under another name and then renamed,
so that a reader sees all of it or nothing. Writers take a lock file, readers do not. What cannot be read, or is not
what its name says, is counted and not served.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava.scene.cache.entries import BackgroundValue, Entry, Origin
from llava.scene.cache.keys import as_bytes
from llava.scene.cache.stats import Counters

FORMAT = "llava background cache"
VERSION = "1"
SUFFIX = ".background.safetensors"
LOCK_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


class _NotOurs(Exception):
    """A whole file that is nothing for this cache."""

    def __init__(self, reason: str, told: str) -> None:
        super().__init__(told)
        self.reason = reason


UNSERVED = (_NotOurs, SafetensorError, OSError, ValueError, KeyError, TypeError)
"""What reading a file that is damaged, or not ours, can raise."""


class DiskTier:
    """Entries as files, the least recently used ones deleted first.

    Args:
        folder: made where it does not exist.
        limit: bytes of files, those of other processes included.
        counters: get refused files, evictions and failed writes.
    """

    def __init__(self, folder: Path, limit: int, counters: Counters) -> None:
        self.folder, self.limit, self._counters = folder, limit, counters
        self.writable = True
        self._lock = FileLock(folder / "writers.lock", timeout=LOCK_TIMEOUT_S)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock:  # nobody writes now, so every unfinished file is one that a killed process left
                for path in folder.glob("*.tmp"):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"disk_folder is {folder}, expected a folder that can be written to ({error}); give another one, or "
                "leave disk_folder and disk_bytes out"
            ) from error

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def size(self, key: str) -> int | None:
        """Bytes of the entry's file, None where there is none."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def used(self) -> tuple[int, int]:
        """(files, bytes)"""
        sizes = [size for _, size, _ in self._files()]
        return len(sizes), sum(sizes)

    def read(self, key: str) -> Entry | None:
        """The entry in main memory, or None for a miss; why a file that is there was not served is counted."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                entry = _from_file(file.metadata() or {}, tensors, key)
        except FileNotFoundError:
            return None
        except UNSERVED as error:
            return self._refuse(path, error)
        if path.exists():
            os.utime(path)  # used now: the order of eviction is the order of these times
        return entry

    def write(self, entry: Entry) -> bool:
        """Keep an entry. False where it does not fit or cannot be written; the first failure ends writing."""
        if not self.writable or entry.nbytes > self.limit:
            return False
        temporary = self.folder / f"{entry.key}.{os.getpid()}.tmp"
        try:
            with self._lock:
                tensors, metadata = _to_file(entry)
                save_file(tensors, temporary, metadata=metadata)
                if not self._make_room(temporary.stat().st_size):
                    temporary.unlink()
                    return False
                os.replace(temporary, self._path(entry.key))
        except (OSError, SafetensorError, Timeout) as error:
            self._give_up(temporary, error)
            return False
        return True

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def remove(self, matches: Callable[[Origin], bool]) -> int:
        """Delete the entries that match; files that cannot be read are left alone."""
        removed = 0
        for origin in self.origins():
            if matches(origin):
                self.delete(origin.key)
                removed += 1
        return removed

    def origins(self) -> Iterator[Origin]:
        """What the folder holds, from the heads of the files alone."""
        for path, _, _ in self._files():
            key = path.name.removesuffix(SUFFIX)
            try:
                with safe_open(path, framework="pt") as file:
                    named = {name: file.get_tensor(name) for name in ("ids", "signature") if name in file.keys()}  # noqa: SIM118
                    yield _origin(_checked(file.metadata() or {}, key), named)
            except FileNotFoundError:
                continue
            except UNSERVED as error:
                self._refuse(path, error)

    def _make_room(self, nbytes: int) -> bool:
        if nbytes > self.limit:
            return False
        files = sorted(self._files(), key=lambda file: file[2])
        used = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if used + nbytes <= self.limit:
                break
            path.unlink(missing_ok=True)
            used -= size
            self._counters.add("evictions", "disk")
        return True

    def _files(self) -> list[tuple[Path, int, int]]:
        """(path, bytes, time of last use) of every entry."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process evicted it meanwhile
                continue
            found.append((path, status.st_size, status.st_mtime_ns))
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _refuse(self, path: Path, error: Exception) -> None:
        reason = _reason(error)
        self._counters.add("refused_files", reason)
        logger.warning("%s is not served, %s: %s", path, reason, error)
        if reason == "corrupt":
            path.unlink(missing_ok=True)  # it would be refused again every time

    def _give_up(self, temporary: Path, error: Exception) -> None:
        temporary.unlink(missing_ok=True)
        self._counters.add("disk_errors")
        self.writable = False
        logger.warning(
            "the background cache cannot write to %s and goes on without: %s; make room there, then make a new cache",
            self.folder,
            error,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, _NotOurs):
        return error.reason
    return "unreadable" if isinstance(error, OSError) else "corrupt"


def _to_file(entry: Entry) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in entry.value.tensors.items()}
    tensors["leaves"] = torch.from_numpy(entry.leaves.copy())
    tensors["ids"] = torch.from_numpy(entry.origin.ids.copy())
    if entry.pixels is not None:
        tensors["pixels"] = entry.pixels.cpu().contiguous()
    if entry.origin.signature is not None:
        tensors["signature"] = torch.from_numpy(entry.origin.signature.copy())
    origin = {
        "kind": entry.origin.kind,
        "scope": entry.origin.scope.hex(),
        "model": entry.origin.model.hex(),
        "salt": entry.origin.salt.hex(),
        "grid": entry.origin.grid.decode(),
        "shape": list(entry.origin.shape),
        "created": entry.origin.created,
        "num_tokens": entry.origin.num_tokens,
    }
    head = {"format": FORMAT, "version": VERSION, "key": entry.key, "origin": json.dumps(origin)}
    return tensors, head | {"checksum": _checksum(head["origin"], tensors)}


def _from_file(metadata: dict[str, str], tensors: dict[str, Tensor], key: str) -> Entry:
    origin = _origin(_checked(metadata, key), tensors)
    if metadata["checksum"] != _checksum(metadata["origin"], tensors):
        raise ValueError("its bytes are not the ones that were written")
    leaves = tensors.pop("leaves").numpy()
    pixels = tensors.pop("pixels", None)
    value = {name: tensor for name, tensor in tensors.items() if name not in ("ids", "signature")}
    return Entry(origin=origin, value=BackgroundValue.from_tensors(value), leaves=leaves, pixels=pixels)


def _checked(metadata: dict[str, str], key: str) -> dict[str, Any]:
    if metadata.get("format") != FORMAT or metadata.get("key") != key:
        raise _NotOurs("foreign", f"its head says {metadata.get('format')!r}, key {metadata.get('key')!r}")
    if metadata.get("version") != VERSION:
        raise _NotOurs("version", f"it has version {metadata.get('version')!r}, this program reads {VERSION!r}")
    return json.loads(metadata["origin"]) | {"key": key}


def _origin(fields: dict[str, Any], tensors: dict[str, Tensor]) -> Origin:
    signature = tensors.get("signature")
    return Origin(
        key=fields["key"],
        kind=fields["kind"],
        scope=bytes.fromhex(fields["scope"]),
        model=bytes.fromhex(fields["model"]),
        salt=bytes.fromhex(fields["salt"]),
        grid=fields["grid"].encode(),
        shape=tuple(fields["shape"]),
        ids=tensors["ids"].numpy(),
        signature=None if signature is None else signature.numpy().astype(np.float32),
        created=fields["created"],
        num_tokens=fields["num_tokens"],
    )


def _checksum(origin: str, tensors: dict[str, Tensor]) -> str:
    """Of head, names and bytes: a flipped bit in a value is an answer about another picture, so it has to be found."""
    whole = hashlib.sha256(origin.encode())
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(as_bytes(tensors[name]))
    return whole.hexdigest()
