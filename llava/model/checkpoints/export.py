"""Writing a model as transformers' `LlavaForConditionalGeneration` (llava-hf), for tools that read only that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)
from transformers import LlavaConfig as HFLlavaConfig

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.checkpoints.three_folder import make_generation_config_valid

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

LLMS = ("llama", "mistral", "qwen2")
TOWERS = ("clip_vision_model", "siglip_vision_model")
STRATEGIES = {"patch": "default", "cls_patch": "full"}
ROWS = 64
"""Embedding tables that must grow grow to a multiple of this, as those of llava-hf do."""


def export_llava_hf(model: LlavaCausalLM, folder: str | Path, max_shard_size: int | str = "5GB") -> Path:
    """Writes config, weights, tokenizer, processor and model card; every tool that reads llava-hf reads the folder.

    Where the id of `<image>` lies beyond the embedding table, the table grows by rows with the mean of all rows.

    Raises:
        ValueError: for a model that transformers' LLaVA cannot express; names the part.
    """
    require_expressible(model)
    root = Path(folder)
    if root.is_dir() and model.name_or_path and root.resolve() == Path(model.name_or_path).resolve():
        raise ValueError(f"{root} is the folder that the model was read from; give another folder to write to")
    state = _state_dict(model)
    with torch.device("meta"):
        target = LlavaForConditionalGeneration(hf_config(model, num_rows=len(state["lm_head.weight"])))
    target.load_state_dict(state, strict=True, assign=True)
    target.tie_weights()
    if model.llm.generation_config is not None:
        make_generation_config_valid(model.llm.generation_config)
        target.generation_config = model.llm.generation_config
    target.save_pretrained(str(root), max_shard_size=max_shard_size)
    _write_processor(model, root)
    (root / "README.md").write_text(_card(model), encoding="utf-8")
    return root


def require_expressible(model: LlavaCausalLM) -> None:
    found = {
        "language model": (model.llm.config.model_type, LLMS),
        "vision tower": (model.vision_tower.config.model_type, TOWERS),
        "projector": (model.mm_projector.config.mm_projector_type, ("mlp2x_gelu",)),
    }
    for part, (kind, known) in found.items():
        if kind not in known:
            raise ValueError(
                f"the {part} is '{kind}', transformers' LLaVA has {' or '.join(known)} only; "
                "save it in this package's own layout: model.save_pretrained(folder)"
            )
    if getattr(model.vision_tower, "scales", ()):
        raise ValueError(f"the tower looks at {model.vision_tower.scales} pixels (s2), transformers' LLaVA at one size")
    if model.visual_spec.anyres is not None:
        raise ValueError(
            f"image_aspect_ratio is {model.config.image_aspect_ratio!r}, transformers' LLaVA reads one view a picture; "
            "save it in this package's own layout: model.save_pretrained(folder)"
        )
    if model.config.image_token_id is None:
        raise ValueError("config.image_token_id is None, expected the id of <image>; load the model with its tokenizer")


def hf_config(model: LlavaCausalLM, num_rows: int) -> HFLlavaConfig:
    tower = model.vision_tower
    text = {**model.llm.config.to_dict(), "vocab_size": num_rows}
    return HFLlavaConfig(
        text_config=text,
        vision_config=tower.config.to_dict(),
        image_token_index=model.config.image_token_id,  # pyright: ignore[reportArgumentType]
        image_seq_length=model.tokens_per_image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy=_strategy(model),
        vision_feature_layer=tower.select_layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
        dtype=model.llm.dtype,
    )


def _strategy(model: LlavaCausalLM) -> Any:
    """A SigLIP has no class token to drop: both of our features keep every patch."""
    return STRATEGIES[model.vision_tower.select_feature] if model.vision_tower.num_prefix_tokens else "full"


def _state_dict(model: LlavaCausalLM) -> dict[str, Tensor]:
    """Our weights under the names of transformers 5; they are shared, not copied, unless the table must grow."""
    layers = {"layers.0.": "linear_1.", "layers.2.": "linear_2."}
    state: dict[str, Tensor] = {}
    for name, value in model.mm_projector.state_dict().items():
        ours = next(prefix for prefix in layers if name.startswith(prefix))
        state[f"model.multi_modal_projector.{layers[ours]}{name.removeprefix(ours)}"] = value
    for name, value in model.vision_tower.vision_tower.state_dict().items():
        state[f"model.vision_tower.{name}"] = value
    llm = dict(model.llm.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        llm[name] = _with_rows(llm[name], int(model.config.image_token_id or 0) + 1)
    for name, value in llm.items():
        inside = name.removeprefix("model.")
        state[name if inside == name else f"model.language_model.{inside}"] = value
    return state


def _with_rows(table: Tensor, needed: int) -> Tensor:
    """[V, D], at least `needed` rows."""
    if len(table) >= needed:
        return table
    more = -(-needed // ROWS) * ROWS - len(table)
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(more, -1)])


def image_processor_of(model: LlavaCausalLM) -> Any:
    """The processor that makes pictures square as the model was trained: padded, cropped or stretched."""
    tower = model.vision_tower
    side = tower.image_size
    how = {"image_mean": list(tower.image_mean), "image_std": list(tower.image_std), "resample": 3}
    square = {"height": side, "width": side}
    mode = model.config.aspect_mode()
    if mode == "pad":
        return LlavaImageProcessor(do_pad=True, size={"shortest_edge": side}, crop_size=square, **how)
    if mode == "crop":
        return model.image_processor or CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square, **how)
    return SiglipImageProcessor(size=square, **how)


def _write_processor(model: LlavaCausalLM, root: Path) -> None:
    images = image_processor_of(model)
    if model.tokenizer is None:
        images.save_pretrained(str(root))
        return
    LlavaProcessor(
        image_processor=images,
        tokenizer=model.tokenizer,
        patch_size=model.vision_tower.config.patch_size,
        vision_feature_select_strategy=_strategy(model),
        image_token=DEFAULT_IMAGE_TOKEN,
        num_additional_image_tokens=model.vision_tower.num_prefix_tokens,
        chat_template=getattr(model.tokenizer, "chat_template", None),
    ).save_pretrained(str(root))


def _card(model: LlavaCausalLM) -> str:
    tower, llm = model.vision_tower.config, model.llm.config
    facts = {
        "language model": f"{llm.model_type}, width {llm.hidden_size}, {llm.num_hidden_layers} layers",
        "vision tower": f"{tower.model_type}, {tower.image_size} pixels, patches of {tower.patch_size}",
        "layer of the tower": model.vision_tower.select_layer,
        "visual tokens per picture": model.tokens_per_image,
        "a picture becomes square by": model.config.aspect_mode(),
        "conversation template": model.config.version or "not stored",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
---

# LLaVA: {llm.model_type} with {tower.model_type}

Exported from the `llava` package for transformers' `LlavaForConditionalGeneration`.

| | |
|---|---|
{rows}

    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained("this folder")
    processor = AutoProcessor.from_pretrained("this folder")
"""
