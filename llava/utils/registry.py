"""A named table of choices: unknown names are answered with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


def suggest(name: str, known: list[str]) -> str:
    """A sentence part such as `; did you mean 'siglip'?`, or the list of known names when nothing is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known)) or '(none)'}"


class Registry(Mapping[str, T], Generic[T]):
    """Mapping from names to rows, filled by the decorator `register`.

    >>> TOWERS = Registry[type]("vision tower")
    >>> @TOWERS.register("siglip")
    ... class SiglipTower: ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        def add(row: T) -> T:
            for name in names:
                if name in self._rows:
                    raise ValueError(f"{self.kind} '{name}' is registered twice")
                self._rows[name] = row
            return row

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._rows:
            raise KeyError(f"unknown {self.kind} '{name}'{suggest(name, list(self._rows))}")
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
