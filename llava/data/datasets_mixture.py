"""Registry files say which data sets exist; a mixture text such as `a+b*2` says which of them, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llava.utils.registry import suggest

REGISTRY_FOLDER = Path(__file__).parent / "registry"

OLD_SPELLINGS = {
    "dataset_type": "type",
    "image_path": "media_dir",
    "image_folder": "media_dir",
    "_target_": "type",
}
"""Keys of older registries."""

OLD_TYPES = {
    "llava.data.LLaVADataset": "llava",
    "llava.data.LLaVANextDataset": "llava",
    "llava.data.VideoDataset": "video",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set of a registry file.

    Attributes:
        paths: data_path, media_dir and what else the type reads; already absolute or relative to the working folder.
        options: values of DataOptions that hold for this data set only.
    """

    name: str
    type: str
    paths: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Part:
    """A data set of a mixture and how often it occurs: 2 = every sample twice, 0.5 = a fixed random half."""

    name: str
    repeat: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DataRegistry:
    """All known data sets and named mixtures."""

    entries: Mapping[str, Entry]
    mixtures: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        return [*self.entries, *self.mixtures]

    def parts(self, mixture: str) -> list[Part]:
        """Parts in the order written, named mixtures opened; the same data set named twice stays two parts."""
        terms = [term.strip() for term in mixture.split("+")]
        if not all(terms):
            raise ValueError(f"mixture {mixture!r} has an empty part; expected names joined by '+', e.g. 'r2r+rxr*2'")
        return [part for term in terms for part in self._term(term, ())]

    def _term(self, term: str, open_mixtures: tuple[str, ...]) -> list[Part]:
        name, star, factor = (text.strip() for text in term.partition("*"))
        repeat = _factor(factor, term) if star else 1.0
        if name in self.entries:
            return [Part(name, repeat)]
        if name not in self.mixtures:
            raise ValueError(
                f"unknown data set or mixture '{name}'{suggest(name, self.names)} (else add it to a registry file)"
            )
        if name in open_mixtures:
            raise ValueError(f"mixture '{name}' contains itself: {' > '.join((*open_mixtures, name))}")
        inner = [part for text in self.mixtures[name] for part in self._term(text, (*open_mixtures, name))]
        return [Part(part.name, part.repeat * repeat) for part in inner]


def _factor(text: str, term: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(
            f"'{term}' repeats a data set {text!r} times; expected a number above 0, e.g. 'r2r*2' or 'r2r*0.5'"
        )
    return value


def load_registry(
    sources: str | Path | Iterable[str | Path] | None = None,
    *,
    data_root: str | Path | None = None,
    split: str = "train",
) -> DataRegistry:
    """Entries of several registry files; where a name occurs twice the later file counts.

    Args:
        sources: names of files in `llava/data/registry` or paths of YAML files, also as one comma-separated string;
            None = "default".
        data_root: folder that relative paths start from, in place of every entry's own `root`.
        split: put in place of "{split}" in paths.
    """
    listed = sources.split(",") if isinstance(sources, str) else [sources] if isinstance(sources, Path) else sources
    entries: dict[str, Entry] = {}
    mixtures: dict[str, tuple[str, ...]] = {}
    for source in listed or ["default"]:
        file = _registry_file(source)
        for name, value in _read_yaml(file).items():
            entries.pop(name, None)
            mixtures.pop(name, None)
            if isinstance(value, (list, str)):
                mixtures[name] = tuple(value.split("+") if isinstance(value, str) else map(str, value))
            else:
                entries[name] = _entry(name, value, file, data_root, split)
    return DataRegistry(entries=entries, mixtures=mixtures)


def _registry_file(source: str | Path) -> Path:
    text = str(source).strip()
    for candidate in (Path(text).expanduser(), REGISTRY_FOLDER / f"{text}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(file.stem for file in REGISTRY_FOLDER.glob("*.yaml"))
    raise FileNotFoundError(
        f"no data registry '{text}'{suggest(text, known)}; give the path of a YAML file or one of {known}"
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"registry {file} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"registry {file} holds a {type(content).__name__}, expected 'name: {{type: ..., data_path: ...}}'"
        )
    return content


def _entry(name: str, value: Any, file: Path, data_root: str | Path | None, split: str) -> Entry:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"data set '{name}' of {file} is {value!r}, expected '{{type: ..., data_path: ...}}' or a list of names"
        )
    renamed: dict[str, Any] = {OLD_SPELLINGS.get(str(key), str(key)): item for key, item in value.items()}
    kind = renamed.pop("type", None)
    if kind is None:
        raise ValueError(f"data set '{name}' of {file} has no 'type'; add one, e.g. 'type: llava'")
    base = Path(data_root if data_root is not None else renamed.get("root", ".")).expanduser()
    renamed.pop("root", None)
    description = renamed.pop("description", None) or ""
    is_path = {key: key.endswith(("_path", "_dir")) for key in renamed}
    paths = {
        key: base / str(renamed[key]).replace("{split}", split) for key in renamed if is_path[key] and renamed[key]
    }
    options = {key: item for key, item in renamed.items() if not is_path[key]}
    return Entry(
        name=name, type=OLD_TYPES.get(str(kind), str(kind)), paths=paths, options=options, description=description
    )


# Names by which older programs register a data set in code


@dataclass
class Dataset:
    """One data set, spelled as in NaVILA's own table. `to_entry` gives the form used here."""

    dataset_name: str
    dataset_type: str = field(default="torch")
    data_path: str | None = None
    meta_path: str | None = None
    image_path: str | None = None
    description: str | None = None

    def to_entry(self) -> Entry:
        paths = {"data_path": self.data_path, "media_dir": self.image_path, "meta_path": self.meta_path}
        known = {key: Path(path) for key, path in paths.items() if path}
        return Entry(name=self.dataset_name, type=self.dataset_type, paths=known, description=self.description or "")


def add_dataset(registry: DataRegistry, dataset: Dataset) -> DataRegistry:
    """The registry with one more data set; a known name is replaced."""
    entry = dataset.to_entry()
    return DataRegistry(entries={**registry.entries, entry.name: entry}, mixtures=registry.mixtures)


def register_datasets_mixtures(sources: str | Path | Iterable[str | Path] | None = None) -> DataRegistry:
    """`load_registry` under its older name. Nothing global is changed; pass the result to `build_dataset`."""
    return load_registry(sources)
