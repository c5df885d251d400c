"""Where the vision tower of a single folder is: inside, beside it, given by the caller, or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from llava.model.checkpoints import ReadOptions
from llava.model.checkpoints.plan import Plan


def looks_like_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def find_tower(plan: Plan, named: Any, options: ReadOptions, fetch: bool) -> tuple[str | None, PreTrainedConfig | None]:
    """(folder or hub id, settings) of the tower; what cannot be found becomes the obstacle of the plan.

    A path in a config is a path of the machine that wrote it: a relative one is looked for in the checkpoint's folder
    and beside it.
    """
    source = _source(plan.folder, named, options.vision_tower)
    advice = "give its folder or hub id: llava.load(path, vision_tower='openai/clip-vit-large-patch14-336')"
    if source is None:
        plan.obstacle = f"config.json names mm_vision_tower {named!r}, and there is no such folder here; {advice}"
        return None, None
    is_local = Path(source).is_dir()
    if not is_local and not fetch:
        return source, _settings_of(source, options, local_files_only=True)
    settings = _settings_of(source, options, local_files_only=False)
    if settings is None:
        where = f"{source}/config.json" if is_local else f"the hub (no answer for {source})"
        plan.obstacle = f"the settings of the vision tower are not to be had from {where}; {advice}"
    return source, settings


def _source(folder: Path, named: Any, given: str | None) -> str | None:
    if given is not None:
        return given
    if not isinstance(named, str) or not named:
        return None
    root = folder if folder.is_dir() else folder.parent
    place = next((place for place in (root / named, root.parent / named) if place.is_dir()), None)
    if place is not None:
        return str(place)
    return named if looks_like_hub_id(named) else None


def _settings_of(source: str, options: ReadOptions, *, local_files_only: bool) -> PreTrainedConfig | None:
    from llava.model.multimodal_encoder.builder import read_tower_config

    how: dict[str, Any] = {"cache_dir": options.cache_dir, "local_files_only": local_files_only}
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source, **how)
    except OSError:
        return None
    if not stored.get("model_type"):
        return None
    return read_tower_config(source, **how)
