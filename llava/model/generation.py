"""From what a user hands over (text, pictures, clips) to ids and pictures of one user turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import Turn, get_template
from llava.mm_utils import extract_media, multiply_placeholders, to_uint8_tensor
from llava.utils.cutting import cut_into_tiles, cut_views
from llava.utils.tokenizer import TokenizationCompat, tokenize_conversation

if TYPE_CHECKING:
    from llava.model.llava_arch import LlavaMetaForCausalLM

DEFAULT_NUM_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One user turn.

    Attributes:
        input_ids: [1, S] with one placeholder per picture.
        images: uint8 [n, 3, H, W], or None.
        image_sizes: of cut pictures.
        pictures: as they were handed over.
    """

    input_ids: Tensor
    images: Tensor | None
    image_sizes: Tensor | None
    pictures: list[Any]


def encode_prompt(model: LlavaMetaForCausalLM, prompt: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(ids [1, S] with one placeholder per picture, uint8 pictures [n, 3, H, W] or None, sizes of cut ones)."""
    encoded = read_prompt(model, prompt)
    return encoded.input_ids, encoded.images, encoded.image_sizes


def read_prompt(model: LlavaMetaForCausalLM, prompt: Any) -> EncodedPrompt:
    """What the model reads of a user turn.

    Raises:
        ValueError: the model has no tokenizer or no template, or the prompt holds something else.
    """
    config = model.config
    if model.tokenizer is None or config.version is None:
        lack = "tokenizer" if model.tokenizer is None else "conversation template (config.version)"
        raise ValueError(f"the model has no {lack}, which generate_content needs; use generate(input_ids), or set it")
    num_frames = config.num_video_frames or DEFAULT_NUM_FRAMES
    text, pictures = extract_media(prompt, num_frames, mm_use_im_start_end=bool(config.mm_use_im_start_end))
    pixels, sizes = to_pixels(model, pictures)
    if pixels is not None and sizes is None and len(pixels) > len(pictures):
        text = multiply_placeholders(text, len(pixels))
    ids = tokenize_conversation(
        [Turn("user", text)],
        model.tokenizer,
        get_template(config.version),
        add_generation_prompt=True,
        compat=TokenizationCompat.from_config(config.tokenization_compat),
        image_token_id=IMAGE_TOKEN_INDEX,
    )
    device: Any = model.get_input_embeddings().weight.device
    return EncodedPrompt(
        input_ids=torch.tensor([ids], device=device),
        images=None if pixels is None else pixels.to(device),
        image_sizes=sizes,
        pictures=pictures,
    )


def to_pixels(model: LlavaMetaForCausalLM, pictures: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
    """uint8 [n, 3, H, W] and, where the model's rule cuts them, the sizes [k, 2] of the pictures.

    A dynamic model cuts a picture that is alone into tiles, as its training did.
    """
    spec = model.visual_spec
    if not pictures:
        return None, None
    rule = spec.view_rule
    if rule is not None and rule.cuts(len(pictures)):
        cut = [cut_views(picture, rule) for picture in pictures]
        return torch.cat([views for views, _ in cut]), torch.tensor([size for _, size in cut])
    if spec.aspect_mode == "dynamic" and len(pictures) == 1:
        return cut_into_tiles(pictures[0], spec), None
    return torch.stack([to_uint8_tensor(picture, spec) for picture in pictures]), None
