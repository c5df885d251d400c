"""The folder `scene_split/` beside the parts: what a model has of its own for the background/object split.

Its settings are `scene_split` of config.json, its separators lie in the tokenizer and the tables of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llava.model.scene_split.config import SceneSplitConfig
from llava.model.scene_split.separators import Separators

FOLDER = "scene_split"
PREFIX = "scene_split."
"""What every weight of the split is called in the state of a whole model."""


def is_of_split(name: str) -> bool:
    return name.startswith(PREFIX)


def write(model: Any, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Writes the weights of a model that has the split; nothing where all of them are shared with its parts.

    Args:
        state_dict: replaces the model's weights where they are split over ranks; names of the whole model.

    Raises:
        ValueError: a weight is not in `state_dict`.
    """
    module = model.scene_split
    if module is None:
        return
    state = None
    if state_dict is not None:
        state = {name.removeprefix(PREFIX): value for name, value in state_dict.items() if is_of_split(name)}
    module.save_weights(Path(folder) / FOLDER, state)


def attach(model: Any, folder: str | Path) -> None:
    """Gives a model whose config names the split its modules, separators and the weights of a folder.

    Raises:
        ValueError: the folder lacks weights that the config asks for, or the model cannot be split.
    """
    if model.config.scene_split is None:
        return
    if SceneSplitConfig.read(model.config.scene_split).separators and model.tokenizer is not None:
        Separators.of(model.tokenizer)  # tokens that were trained are not made up again
    model.initialize_scene_split()
    read_into(model, folder)


def read_into(model: Any, folder: str | Path) -> None:
    """The weights of a folder into the modules of a model that has them."""
    if model.scene_split is not None:
        model.scene_split.load_weights(Path(folder) / FOLDER)
