"""The processor of an exported model: pictures are cut and made square as the model was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    CLIPImageProcessor,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.checkpoints.export_config import hf_kind, pinpoints_of, strategy_of

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

BICUBIC = 3


def image_processor_of(model: LlavaCausalLM) -> Any:
    """Tiles for anyres; else one view that is padded, cropped or stretched."""
    side, how = model.vision_tower.image_size, _statistics(model)
    square = {"height": side, "width": side}
    kind = hf_kind(model)
    if kind == "llava_next":
        return LlavaNextImageProcessor(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=pinpoints_of(model), **how
        )
    if kind == "llava_onevision":
        return LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=pinpoints_of(model), **how)
    mode = model.config.aspect_mode()
    if mode == "pad":
        return LlavaImageProcessor(do_pad=True, size={"shortest_edge": side}, crop_size=square, **how)
    if mode == "crop":
        return model.image_processor or CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square, **how)
    return SiglipImageProcessor(size=square, **how)


def _statistics(model: LlavaCausalLM) -> dict[str, Any]:
    tower = model.vision_tower
    return {"image_mean": list(tower.image_mean), "image_std": list(tower.image_std), "resample": BICUBIC}


def write_processor(model: LlavaCausalLM, root: Path) -> None:
    """Tokenizer, image processor and what joins them; the image processor alone for a model without a tokenizer."""
    images = image_processor_of(model)
    if model.tokenizer is None:
        images.save_pretrained(str(root))
    else:
        processor_of(model, images).save_pretrained(str(root))


def processor_of(model: LlavaCausalLM, images: Any) -> Any:
    tower, strategy = model.vision_tower, strategy_of(model)
    shared: dict[str, Any] = {
        "image_processor": images,
        "tokenizer": model.tokenizer,
        "vision_feature_select_strategy": strategy,
        "image_token": DEFAULT_IMAGE_TOKEN,
        "chat_template": getattr(model.tokenizer, "chat_template", None),
    }
    kind = hf_kind(model)
    if kind == "llava_onevision":
        side = {"height": tower.image_size, "width": tower.image_size}
        return LlavaOnevisionProcessor(
            video_processor=LlavaOnevisionVideoProcessor(size=side, **_statistics(model)),
            num_image_tokens=tower.grid_side**2 + (strategy == "default"),  # it counts the token that it drops
            vision_aspect_ratio=str(model.config.image_aspect_ratio),
            **shared,
        )
    joined = LlavaNextProcessor if kind == "llava_next" else LlavaProcessor
    return joined(patch_size=tower.config.patch_size, num_additional_image_tokens=tower.num_prefix_tokens, **shared)
