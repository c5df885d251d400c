"""Our configs and models under transformers' Auto classes, without importing transformers.

A finder on `sys.meta_path` (the import system's own extension point) waits for transformers' table of configs and adds
our rows through `AutoConfig.register` as soon as that table is there. Model classes are added when the first config is
made: `AutoModel...from_pretrained` always makes one, and by then torch is in use anyway.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CONFIG_TABLE = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Now, when transformers' config table is loaded already; else as soon as it is."""
    if CONFIG_TABLE in sys.modules:
        _register_configs()
    elif not any(isinstance(finder, _ConfigTableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ConfigTableFinder())


def _register_configs() -> None:
    from llava.model.configuration_llava import register_configs

    register_configs()


class _ConfigTableFinder(MetaPathFinder):
    """Finds one module with the other finders, and hands it to a loader that calls us back once."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != CONFIG_TABLE:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallBack(spec.loader)
        return spec


class _CallBack(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        _register_configs()
