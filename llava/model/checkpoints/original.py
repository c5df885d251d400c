"""The single folder of LLaVA 1.0-1.6 and its relatives: one state dict, the tower named by `mm_vision_tower`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from llava.model.checkpoints import LAYOUTS, Layout, ReadOptions
from llava.model.checkpoints.assemble import assemble, compare_vision
from llava.model.checkpoints.names import explain_buffer, locate_original
from llava.model.checkpoints.pairs import MARK
from llava.model.checkpoints.plan import Part, Plan, compare_llm
from llava.model.checkpoints.stored import StoredTensor, folder_headers, has_weights, read_config
from llava.model.checkpoints.three_folder import token_order_of
from llava.model.checkpoints.tower import find_tower
from llava.model.multimodal_projector.base_projector import MultimodalProjectorConfig
from llava.utils.registry import Registry

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM


@dataclass(frozen=True, kw_only=True)
class Family:
    """llm: transformers' model type. version: conversation template; None = the config or the caller must name it."""

    llm: str
    version: str | None = None


FAMILIES: Registry[Family] = Registry("model_type of an original LLaVA checkpoint")
FAMILIES.register("llava", "llava_llama")(Family(llm="llama", version="v1"))
FAMILIES.register("llava_mistral")(Family(llm="mistral", version="mistral_instruct"))
FAMILIES.register("llava_mixtral")(Family(llm="mixtral"))
FAMILIES.register("llava_phi3")(Family(llm="phi3"))
FAMILIES.register("llava_qwen")(Family(llm="qwen2"))
FAMILIES.register("llava_qwen3")(Family(llm="qwen3"))
FAMILIES.register("llava_gemma")(Family(llm="gemma"))

_OURS = ("mm_", "image_", "tune_", "freeze_", "unfreeze_", "s2", "version", "token_order", "tokenization_compat")
_DROPPED = ("model_type", "architectures", "_name_or_path", "auto_map", "transformers_version", "torch_dtype", "dtype")


def recognises(folder: Path) -> bool:
    stored = read_config(folder)
    single = "mm_vision_tower" in stored or str(stored.get("model_type")) in FAMILIES
    return single and not {"llm_cfg", "text_config", MARK} & set(stored) and has_weights(folder)


def read(folder: Path, options: ReadOptions) -> LlavaCausalLM:
    if options.model_base is not None:
        raise ValueError(f"{folder} is a complete checkpoint, found model_base={options.model_base!r}; leave it out")
    return assemble(make_plan(folder, options), options)


def make_plan(folder: Path, options: ReadOptions, fetch: bool = True) -> Plan:
    return plan_of(folder, read_config(folder), folder_headers(folder), options, fetch=fetch)


def plan_of(
    folder: Path,
    stored: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    options: ReadOptions,
    *,
    llm_config: PreTrainedConfig | None = None,
    fetch: bool = True,
) -> Plan:
    """The plan of a config of LLaVA's own code and of tensors under its names.

    Args:
        llm_config: settings of the language model; None = those that LLaVA's config holds itself.
        fetch: False looks at nothing outside this machine.
    """
    family = family_of(folder, stored.get("model_type"))
    plan = Plan(layout="original", folder=folder, config=_settings(stored, family))
    source, tower_config = find_tower(plan, stored.get("mm_vision_tower"), options, fetch)
    llm = llm_config or AutoConfig.for_model(family.llm, **_llm_settings(stored))
    plan.parts = {
        "llm": Part(config=llm),
        "vision_tower": Part(config=tower_config, source=source),
        "mm_projector": Part(config=_projector_config(stored, llm, tower_config)),
    }
    plan.distribute(tensors, locate_original, explain_buffer if ends_rows(stored) else explain)
    compare_llm(plan)
    compare_vision(plan)
    if plan.parts["vision_tower"].tensors and source is not None:
        plan.needs.append(f"the settings and the image processor of {source}; the tower's weights are in the folder")
    elif source is not None:
        plan.needs.append(f"the whole vision tower {source}, which is not in the folder")
    return plan


def family_of(folder: Path, model_type: str | None) -> Family:
    try:
        return FAMILIES[model_type or ""]
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'}: {error.args[0]}") from None


def _settings(stored: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """What the config says of the whole model; the text between two pictures was tokenised on its own."""
    kept = {key: value for key, value in stored.items() if key.startswith(_OURS)}
    if isinstance(pinpoints := kept.get("image_grid_pinpoints"), list):
        kept["image_grid_pinpoints"] = [[height, width] for width, height in pinpoints]  # LLaVA's code: width first
    kept["token_order"] = token_order_of({}, stored)
    kept["version"] = kept.get("version") or family.version
    kept["tokenization_compat"] = kept.get("tokenization_compat") or {"chunkwise": True}
    return kept


def _llm_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    skipped = {key for key, value in stored.items() if key.startswith(_OURS) or key in _DROPPED or value is None}
    return {key: value for key, value in stored.items() if key not in skipped}


def _projector_config(stored: Mapping[str, Any], llm: Any, tower: Any) -> MultimodalProjectorConfig | None:
    width = stored.get("mm_hidden_size") or getattr(tower, "hidden_size", None)
    if width is None:
        return None
    return MultimodalProjectorConfig(
        mm_projector_type=stored.get("mm_projector_type") or "linear",
        mm_hidden_size=width,
        hidden_size=llm.hidden_size,
        token_order=token_order_of({}, stored),
        image_newline=ends_rows(stored),
    )


def ends_rows(stored: Mapping[str, Any]) -> bool:
    """Whether the rows of tiled pictures end with `image_newline`."""
    is_anyres = str(stored.get("image_aspect_ratio")).startswith("anyres")
    return is_anyres and "unpad" in str(stored.get("mm_patch_merge_type"))


def explain(name: str) -> str | None:
    """Why a stored tensor is left out."""
    newline = "ends the rows of tiled pictures (anyres); a picture of one view has none"
    return newline if name.endswith("image_newline") else explain_buffer(name)


LAYOUTS.register("original")(
    Layout(
        recognises=recognises, read=read, plan=make_plan, holds="config.json with mm_vision_tower and weights beside it"
    )
)
