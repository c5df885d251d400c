"""The model card (README.md) that is written with a model, so that its folder can be published as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

CARD = "README.md"

_OWN = """    import llava

    model = llava.load("this folder")
    print(model.generate_content([llava.Image("picture.jpg"), "What is this?"]))
"""
_EXPORTED = """    from transformers import AutoProcessor, {kind}

    model = {kind}.from_pretrained("this folder")
    processor = AutoProcessor.from_pretrained("this folder")
"""


def write_card(root: Path, text: str) -> None:
    """Never over a file that is there: somebody may have written more into it."""
    if not (root / CARD).exists():
        (root / CARD).write_text(text, encoding="utf-8")


def own_card(model: LlavaCausalLM) -> str:
    """The card of a folder of three parts."""
    said = "A vision-language model in three parts (`llm`, `vision_tower`, `mm_projector`), for the package `llava`."
    return _card(model, "llava", said, _OWN)


def export_card(model: LlavaCausalLM, kind: str) -> str:
    """The card of a folder for transformers' class of that name."""
    said = f"Exported from the `llava` package for transformers' `{kind}`."
    return _card(model, "transformers", said, _EXPORTED.format(kind=kind))


def _card(model: LlavaCausalLM, library: str, said: str, usage: str) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts_of(model).items())
    title = f"{model.llm.config.model_type} with {model.vision_tower.config.model_type}"
    return f"""---
library_name: {library}
pipeline_tag: image-text-to-text
---

# LLaVA: {title}

{said}

| | |
|---|---|
{rows}

{usage}"""


def facts_of(model: LlavaCausalLM) -> dict[str, object]:
    tower, llm = model.vision_tower.config, model.llm.config
    rule = model.visual_spec.anyres
    facts: dict[str, object] = {
        "language model": f"{llm.model_type}, width {llm.hidden_size}, {llm.num_hidden_layers} layers",
        "vision tower": f"{tower.model_type}, {model.vision_tower.image_size} pixels, patches of {tower.patch_size}",
        "layer of the tower": model.vision_tower.select_layer,
        "projector": model.mm_projector.config.mm_projector_type,
        f"visual tokens per {'view' if rule else 'picture'}": model.tokens_per_image,
        "a picture is read by": model.config.image_aspect_ratio if rule else model.config.aspect_mode(),
        "conversation template": model.config.version or "not stored",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }
    if rule is not None:
        facts["canvases of tiles (height x width)"] = ", ".join(f"{h} x {w}" for h, w in rule.resolutions)
    return facts
