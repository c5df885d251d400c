"""Names of weights in published files -> (part, name inside the part)."""

from __future__ import annotations

import re

from llava.model.checkpoints.plan import Place

_ORIGINAL = (
    (r"(?:model\.)?mm_projector\.(?:layers\.)?(.+)", "mm_projector", r"layers.\1"),
    (r"(?:model\.)?vision_tower\.vision_tower\.(?:vision_model\.)?(.+)", "vision_tower", r"\1"),
    (r"(?:model\.)?(image_newline)", "mm_projector", r"\1"),
    (r"llm\.(.+)", "llm", r"\1"),
    (r"((?:model|lm_head)\..+)", "llm", r"\1"),
)
_LLAVA_HF = (
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.+)", "mm_projector", r"layers.0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.+)", "mm_projector", r"layers.2.\1"),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)", "vision_tower", r"\1"),
    (r"(?:model\.)?(image_newline)", "mm_projector", r"\1"),
    (r"(?:language_model\.)?(lm_head\..+)", "llm", r"\1"),
    (r"(?:language_model\.model|model\.language_model|language_model)\.(.+)", "llm", r"model.\1"),
)
_TOWER = ((r"(?:(?:model\.)?vision_tower\.)*(?:vision_model\.)?(.+)", "vision_tower", r"\1"),)
_BUFFERS = {
    "rotary_emb.inv_freq": "computed from the config",
    "embeddings.position_ids": "counted, not trained",
}
_OTHER_HALF = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")


def locate_original(name: str) -> Place | None:
    """LLaVA 1.0-1.6 and what was trained with their code (with or without the root `model.`)."""
    return _locate(name, _ORIGINAL)


def locate_llava_hf(name: str) -> Place | None:
    """transformers' LLaVA: legacy (`language_model.model.`), 4.52 (`model.language_model.`), 5 (no `vision_model.`)."""
    return _locate(name, _LLAVA_HF)


def locate_tower(name: str) -> Place | None:
    """A folder of a vision tower alone, as it is or under the names that it has inside of a model."""
    return _locate(name, _TOWER)


def _locate(name: str, table: tuple[tuple[str, str, str], ...]) -> Place | None:
    for pattern, part, inside in table:
        if match := re.fullmatch(pattern, name):
            return part, match.expand(inside)
    return None


def explain_buffer(name: str) -> str | None:
    """Why a stored tensor is no weight of the model."""
    if "vision_tower" in name and any(half in name for half in _OTHER_HALF):
        return "the text half of a two-sided vision model"
    return next((reason for ending, reason in _BUFFERS.items() if name.endswith(ending)), None)
