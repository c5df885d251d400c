"""From what a user hands over (text, pictures, clips) to ids and pictures of one user turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Turn, get_template
from llava.media import Image, Video
from llava.utils.tokenizer import TokenizationCompat, tokenize_conversation

if TYPE_CHECKING:
    from llava.model.llava_arch import LlavaMetaForCausalLM

DEFAULT_NUM_FRAMES = 8


def encode_prompt(model: LlavaMetaForCausalLM, prompt: Any) -> tuple[Tensor, Tensor | None]:
    """(ids [1, S] with one placeholder per picture, uint8 pictures [n, 3, H, W] or None) on the model's device.

    Raises:
        ValueError: the model has no tokenizer or no template, or the prompt holds something else.
    """
    config = model.config
    if model.tokenizer is None or config.version is None:
        lack = "tokenizer" if model.tokenizer is None else "conversation template (config.version)"
        raise ValueError(f"the model has no {lack}, which generate_content needs; use generate(input_ids), or set it")
    text, pictures = split_prompt(prompt, config.num_video_frames or DEFAULT_NUM_FRAMES)
    ids = tokenize_conversation(
        [Turn("user", text)],
        model.tokenizer,
        get_template(config.version),
        add_generation_prompt=True,
        compat=TokenizationCompat.from_config(config.tokenization_compat),
        image_token_id=IMAGE_TOKEN_INDEX,
    )
    device: Any = model.get_input_embeddings().weight.device
    return torch.tensor([ids], device=device), to_pixels(model, pictures, device)


def to_pixels(model: LlavaMetaForCausalLM, pictures: Sequence[Any], device: Any) -> Tensor | None:
    from llava.mm_utils import to_uint8_tensor

    if not pictures:
        return None
    return torch.stack([to_uint8_tensor(picture, model.visual_spec) for picture in pictures]).to(device)


def split_prompt(prompt: Any, num_video_frames: int) -> tuple[str, list[Any]]:
    """The text with `<image>` and a newline where a picture or a frame stands, and the pictures in order."""
    texts: list[str] = []
    pictures: list[Any] = []
    for part in prompt if isinstance(prompt, list | tuple) else [prompt]:
        if isinstance(part, str):
            texts.append(part)
            continue
        shown = pictures_of(part, num_video_frames)
        pictures += shown
        texts.append(f"{DEFAULT_IMAGE_TOKEN}\n" * len(shown))
    text = "".join(texts)
    if text.count(DEFAULT_IMAGE_TOKEN) != len(pictures):
        found = text.count(DEFAULT_IMAGE_TOKEN)
        raise ValueError(
            f"the prompt's text holds {found - len(pictures)} {DEFAULT_IMAGE_TOKEN} of its own; "
            "put the pictures themselves into the list, in order"
        )
    return text, pictures


def pictures_of(part: Any, num_video_frames: int) -> list[Any]:
    """RGB pictures of one non-text part of a prompt."""
    from PIL import Image as PILImage

    if isinstance(part, PILImage.Image):
        return [part.convert("RGB")]
    if isinstance(part, Image):
        return [part.open()]
    if isinstance(part, Video):
        return frames_of(part.path, num_video_frames)
    raise ValueError(f"a prompt holds a {type(part).__name__}, expected str, a PIL picture, llava.Image or llava.Video")


def frames_of(clip: Any, num_frames: int) -> list[Any]:
    """At most num_frames frames, spread over the whole clip."""
    from PIL import Image as PILImage

    from llava.video.frame_sampling import uniform_indices

    if not isinstance(clip, str | Path):
        return [frame.convert("RGB") for frame in (clip[i] for i in uniform_indices(len(clip), num_frames))]
    from llava.video.decode import read_frames, video_info

    indices = uniform_indices(video_info(clip).num_frames, num_frames)
    frames = read_frames(clip, indices)
    return [frame if isinstance(frame, PILImage.Image) else PILImage.fromarray(frame) for frame in frames]
