"""The layout of VILA-1.5, NaVILA and NVILA: `llm/`, `vision_tower/`, `mm_projector/` under one config.json.

What a config stores as `_name_or_path` is a path of the machine that wrote it and is never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoTokenizer

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions
from llava.model.checkpoints.keys import require_part
from llava.model.configuration_llava import ROW_ORDER_KEYS

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

PARTS = {"llm": "llm_cfg", "vision_tower": "vision_tower_cfg", "mm_projector": "mm_projector_cfg"}
PREFIXES = {"llm": "llm.", "vision_tower": "vision_tower.vision_tower.", "mm_projector": "mm_projector."}


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the file was cut or edited: copy it again") from error


def recognises(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    return any((folder / part).is_dir() for part in PARTS) or "llm_cfg" in read_json(folder / "config.json")


def part_folder(root: Path, part: str, stored: Any) -> Path:
    """`<root>/<part>`; before the first save a config may still name another folder (absolute, or relative to root)."""
    if not (root / part).is_dir() and isinstance(stored, str):
        for named in (Path(stored).expanduser(), root / stored):
            if named.is_dir():
                return require_part(named, part)
    return require_part(root / part, part)


def token_order_of(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The stored order; else row where keys that only NVILA writes are present, else column (VILA-1.5, NaVILA)."""
    stored = settings.get("token_order") or config.get("token_order")
    return stored or ("row" if any(key in config for key in ROW_ORDER_KEYS) else "column")


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    from llava.model.builder import attach_tokenizer, model_class_for
    from llava.model.language_model.base import Parts
    from llava.model.language_model.builder import read_llm
    from llava.model.multimodal_encoder.builder import read_vision_tower
    from llava.model.multimodal_projector.builder import read_mm_projector

    if options.model_base is not None:
        raise ValueError(f"{folder} is a complete checkpoint, found model_base={options.model_base!r}; leave it out")
    stored = read_json(folder / "config.json")
    where = {part: part_folder(folder, part, stored.get(key)) for part, key in PARTS.items()}
    model_class = model_class_for(read_json(where["llm"] / "config.json").get("model_type"))
    config = model_class.config_class.from_dict({k: v for k, v in stored.items() if k != "model_type"})
    llm = read_llm(where["llm"], options)
    tower = read_vision_tower(where["vision_tower"], config, options)
    order = token_order_of(read_json(where["mm_projector"] / "config.json"), stored)
    projector = read_mm_projector(
        where["mm_projector"], tower.hidden_size, llm.config.hidden_size, token_order=order, options=options
    )
    model = model_class(config, parts=Parts(llm=llm, vision_tower=tower, mm_projector=projector))
    model.name_or_path = str(folder)
    attach_tokenizer(model, read_tokenizer(where["llm"]))
    return model.eval()


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the language model, padding on the right; None where the folder has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(str(folder), padding_side="right")


def write(
    model: LlavaCausalLM,
    folder: str | Path,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes the three folders; state_dict (names of the whole model) replaces the model's weights, as under ZeRO-3."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    model.store_part_settings()
    parts = {"llm": model.llm, "vision_tower": model.vision_tower.vision_tower, "mm_projector": model.mm_projector}
    make_generation_config_valid(model.llm.generation_config)
    for part, module in parts.items():
        state = None if state_dict is None else strip_prefix(state_dict, PREFIXES[part])
        module.save_pretrained(str(root / part), state_dict=state, max_shard_size=max_shard_size)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(str(root / "llm"))
    if model.image_processor is not None:
        model.image_processor.save_pretrained(str(root / "vision_tower"))
    model.config.save_pretrained(str(root))


def make_generation_config_valid(config: Any) -> None:
    """Published folders set a temperature beside do_sample=False, which transformers refuses; sampling was meant."""
    if config is not None and not config.do_sample:
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
        if any(getattr(config, key, None) not in (None, default) for key, default in sampling.items()):
            config.do_sample = True


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


LAYOUTS.register("three_folder")(
    Layout(recognises=recognises, read=read, holds="config.json with llm/, vision_tower/ and mm_projector/")
)
