"""From a plan to a model: each part is built by transformers' loader from tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig

from llava.model.attention import implementation_for
from llava.model.checkpoints import ReadOptions, intern_vit
from llava.model.checkpoints.keys import read_part
from llava.model.checkpoints.plan import Plan, compare_part, llm_class, shapes_of, unused_in_tower
from llava.model.checkpoints.stored import common_dtype, open_tensors, read_json

if TYPE_CHECKING:
    from llava.model.configuration_llava import LlavaConfig
    from llava.model.language_model.base import LlavaCausalLM

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def assemble(plan: Plan, options: ReadOptions, base: Path | None = None) -> LlavaCausalLM:
    """The model of a plan, with its tokenizer and generation settings (of `base` where the plan's folder has none).

    Raises:
        ValueError: where anything in the plan is unexplained.
    """
    from llava.model.builder import attach_tokenizer, model_class_for
    from llava.model.language_model.base import Parts

    plan.require_readable()
    llm_config: Any = plan.parts["llm"].config
    model_class = model_class_for(llm_config.model_type)
    config = model_class.config_class(**plan.config)
    places = [plan.folder] if base is None else [plan.folder, base]
    llm = _read_llm(plan, options, places)
    tower = _read_tower(plan, config, options)
    projector = _read_projector(plan, options)
    model = model_class(config, parts=Parts(llm=llm, vision_tower=tower, mm_projector=projector))
    model.name_or_path = str(plan.folder)
    attach_tokenizer(model, next((read_tokenizer(place) for place in places if has_tokenizer(place)), None))
    return model.eval()


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, padding on the right; None where the folder has none.

    Raises:
        ValueError: names the files of a tokenizer that cannot be read.
    """
    if not has_tokenizer(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(folder), padding_side="right")
    except ImportError:
        raise  # says which package is missing
    except Exception as error:  # its libraries raise every kind
        files = ", ".join(name for name in TOKENIZER_FILES if (folder / name).is_file())
        raise ValueError(
            f"{folder}: its tokenizer cannot be read ({str(error).splitlines()[0][:160]}); copy {files} again, or "
            "write them with tokenizer.save_pretrained(folder)"
        ) from error


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _from_tensors(kind: Any, plan: Plan, part: str, options: ReadOptions, **kwargs: Any) -> Any:
    tensors = plan.parts[part].tensors
    dtype = common_dtype(tensors.values()) if options.dtype in ("auto", None) else options.dtype
    state = open_tensors(tensors)
    config = kwargs.pop("config", plan.parts[part].config)

    def load(_: str, **how: Any) -> Any:
        return kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **how)

    return read_part(load, plan.folder, part, files_are_checked=True, device_map=options.device_map, **kwargs)


def _read_llm(plan: Plan, options: ReadOptions, places: Sequence[Path]) -> Any:
    part = plan.parts["llm"]
    llm = _from_tensors(
        llm_class(part.config),  # pyright: ignore[reportArgumentType]
        plan,
        "llm",
        options,
        max_memory=options.max_memory,
        quantization_config=options.quantization_config,
        attn_implementation=implementation_for(options.attn_implementation, part.config),
    )
    folder = next((place for place in places if (place / "generation_config.json").is_file()), None)
    if folder is not None:
        llm.generation_config = GenerationConfig.from_pretrained(str(folder))
    return llm


def _read_tower(plan: Plan, config: LlavaConfig, options: ReadOptions) -> Any:
    from llava.model.multimodal_encoder.builder import read_vision_tower, tower_class, wrap_vision_tower

    part = plan.parts["vision_tower"]
    if not part.tensors:
        return read_vision_tower(str(part.source), config, options)
    kind = tower_class(getattr(part.config, "model_type", None))
    model = read_tower_model(plan, options)
    return wrap_vision_tower(kind, model, config, read_image_processor(part.source or plan.folder, options))


def read_tower_model(plan: Plan, options: ReadOptions) -> Any:
    """transformers' model of the tower whose weights a plan holds."""
    from llava.model.multimodal_encoder.builder import tower_class

    kind = tower_class(getattr(plan.parts["vision_tower"].config, "model_type", None))
    lacking = tuple(key.removeprefix("vision_tower.") for key in plan.explained if key.startswith("vision_tower."))
    return _from_tensors(
        kind.model_class, plan, "vision_tower", options, accepted_missing=lacking, attn_implementation="sdpa"
    )


def read_image_processor(source: Path | str, options: ReadOptions) -> Any:
    """transformers' processor of a folder or hub id; None where a folder has none of transformers."""
    folder = Path(source)
    if folder.is_dir() and not any(_is_processor(folder / name) for name in PROCESSOR_FILES):
        return None
    return AutoImageProcessor.from_pretrained(str(source), cache_dir=options.cache_dir)


def _is_processor(file: Path) -> bool:
    return file.is_file() and not intern_vit.is_own_processor(read_json(file))


def _read_projector(plan: Plan, options: ReadOptions) -> Any:
    from llava.model.multimodal_projector.base_projector import MultimodalProjector

    return _from_tensors(MultimodalProjector, plan, "mm_projector", options)


def compare_vision(plan: Plan) -> None:
    """Checks the tower (as far as the checkpoint holds one) and the projector."""
    from llava.model.multimodal_projector.base_projector import MultimodalProjector

    tower, projector = plan.parts["vision_tower"], plan.parts["mm_projector"]
    if tower.config is not None and (tower.tensors or tower.source is None):
        compare_tower(plan)
    if projector.config is not None:
        settings: Any = projector.config
        plan.compare("mm_projector", shapes_of(lambda: MultimodalProjector(settings)))


def compare_tower(plan: Plan) -> None:
    """Checks the tower; what no selected feature passes through need not be stored."""
    from llava.model.multimodal_encoder.builder import tower_class

    part = plan.parts["vision_tower"]
    config: Any = part.config
    kind = tower_class(config.model_type)
    layer = plan.config.get("mm_vision_select_layer")
    layer = kind.default_layer if layer is None else layer
    layers_run = layer if layer >= 0 else config.num_hidden_layers + 1 + layer

    def explain(name: str) -> str | None:
        return unused_in_tower(name, kind, layers_run)

    if intern_vit.has_own_names(config, part.tensors):
        intern_vit.compare_own_names(plan, shapes_of(lambda: kind.model_class(config)), explain)
    else:
        compare_part(plan, "vision_tower", kind.model_class, explain)
