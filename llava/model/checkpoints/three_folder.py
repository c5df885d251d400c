"""The layout of VILA-1.5, NaVILA and NVILA: `llm/`, `vision_tower/`, `mm_projector/` under one config.json.

What a config stores as `_name_or_path` is a path of the machine that wrote it and is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoConfig

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions, autoregressive, scene_split
from llava.model.checkpoints.assemble import compare_vision, read_tokenizer
from llava.model.checkpoints.card import own_card, write_card
from llava.model.checkpoints.keys import require_part
from llava.model.checkpoints.names import explain_buffer, locate_tower
from llava.model.checkpoints.plan import Part, Plan, compare_llm
from llava.model.checkpoints.stored import folder_headers, read_json
from llava.model.configuration_llava import ROW_ORDER_KEYS
from llava.utils.tokenizer import TokenizationCompat

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

PARTS = {"llm": "llm_cfg", "vision_tower": "vision_tower_cfg", "mm_projector": "mm_projector_cfg"}
PREFIXES = {"llm": "llm.", "vision_tower": "vision_tower.vision_tower.", "mm_projector": "mm_projector."}


def recognises(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    if any((folder / part).is_dir() for part in PARTS):
        return True
    return "llm_cfg" in read_json(folder / "config.json") and not (folder / "adapter_config.json").is_file()


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


def compat_of(config: Mapping[str, Any]) -> dict[str, bool] | None:
    """How VILA-1.5 and NaVILA cut texts, whose folders do not store it; None (not so) for those of NVILA and ours."""
    is_older = "token_order" not in config and not any(key in config for key in ROW_ORDER_KEYS)
    return config.get("tokenization_compat") or (asdict(TokenizationCompat.navila()) if is_older else None)


def kind_of(folder: Path, find: Callable[[str | None], Any]) -> Any:
    """What `find` knows of the model_type of a part; its error names the file."""
    try:
        return find(read_json(folder / "config.json").get("model_type"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: model_type: {error}") from None


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    from llava.model.builder import attach_tokenizer, model_class_for
    from llava.model.language_model.base import Parts
    from llava.model.language_model.builder import read_llm
    from llava.model.multimodal_encoder.builder import read_vision_tower, tower_class
    from llava.model.multimodal_projector.builder import read_mm_projector

    for name in ("model_base", "vision_tower"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{folder} is a complete checkpoint, found {name}={getattr(options, name)!r}; leave it out"
            )
    stored = read_json(folder / "config.json")
    where = {part: part_folder(folder, part, stored.get(key)) for part, key in PARTS.items()}
    model_class = kind_of(where["llm"], model_class_for)
    kind_of(where["vision_tower"], tower_class)
    config = model_class.config_class.from_dict({k: v for k, v in stored.items() if k != "model_type"})
    config.tokenization_compat = compat_of(stored)
    llm = read_llm(where["llm"], options)
    tower = read_vision_tower(where["vision_tower"], config, options)
    order = token_order_of(read_json(where["mm_projector"] / "config.json"), stored)
    projector = read_mm_projector(
        where["mm_projector"], tower.hidden_size, llm.config.hidden_size, token_order=order, options=options
    )
    model = model_class(config, parts=Parts(llm=llm, vision_tower=tower, mm_projector=projector))
    model.name_or_path = str(folder)
    attach_tokenizer(model, read_tokenizer(where["llm"]))
    scene_split.attach(model, folder)
    return model.eval()


def make_plan(folder: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    """What lies in the three folders, for a description; `read` leaves the checks to transformers."""
    from llava.model.builder import model_class_for
    from llava.model.multimodal_encoder.builder import read_tower_config, tower_class
    from llava.model.multimodal_projector.base_projector import MultimodalProjectorConfig

    stored = read_json(folder / "config.json")
    plan = Plan(layout="three_folder", folder=folder, config=stored)
    where = {part: part_folder(folder, part, stored.get(key)) for part, key in PARTS.items()}
    kind_of(where["llm"], model_class_for)
    llm: Any = AutoConfig.from_pretrained(str(where["llm"]))
    kind_of(where["vision_tower"], tower_class)
    tower: Any = read_tower_config(where["vision_tower"])
    projector = MultimodalProjectorConfig.from_pretrained(str(where["mm_projector"]))
    projector.token_order = token_order_of(read_json(where["mm_projector"] / "config.json"), stored)
    projector.mm_hidden_size = stored.get("mm_hidden_size") or tower.hidden_size  # a multiple with several scales
    projector.hidden_size = llm.hidden_size
    for part, config in zip(PARTS, (llm, tower, projector), strict=True):
        plan.parts[part] = Part(config=config)
        plan.distribute(
            folder_headers(where[part]),
            lambda name, part=part: locate_tower(name) if part == "vision_tower" else (part, name),
            lambda name, part=part: explain_buffer(f"{part}.{name}"),
        )
    compare_llm(plan)
    compare_vision(plan)
    return plan


def write(
    model: LlavaCausalLM,
    folder: str | Path,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes the three folders, `autoregressive/` and `scene_split/` of a model that has them, and a card if none is.

    state_dict (names of the whole model) replaces the model's weights, as under ZeRO-3.
    """
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
    autoregressive.write(model, root, state_dict)
    scene_split.write(model, root, state_dict)
    write_card(root, own_card(model))


def make_generation_config_valid(config: Any) -> None:
    """Published folders set a temperature beside do_sample=False, which transformers refuses; sampling was meant."""
    if config is not None and not config.do_sample:
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
        if any(getattr(config, key, None) not in (None, default) for key, default in sampling.items()):
            config.do_sample = True


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


LAYOUTS.register("three_folder")(
    Layout(
        recognises=recognises,
        read=read,
        plan=make_plan,
        holds="config.json with llm/, vision_tower/ and mm_projector/",
    )
)
