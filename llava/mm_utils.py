"""Pictures and text on their way to a model: resizing, placeholders, stopping. Both data and models call these."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import StoppingCriteria

from llava import media
from llava.batch import VisualSpec
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.utils.cutting import Picture, as_chw, resize
from llava.utils.dynamic_s2 import dynamic_s2_rule
from llava.utils.tokenizer import TokenizationCompat, tokenize_text
from llava.video.decode import Source, open_clip
from llava.video.frame_sampling import capped_indices, pick, uniform_indices, vlnce_indices


def load_image(source: Any) -> Image.Image:
    """RGB picture from a path, bytes, a binary file or a PIL picture.

    Raises:
        ValueError: naming the file when it is cut off or no picture.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    is_path = isinstance(source, (str, os.PathLike))
    name = str(source) if is_path else "<bytes>"
    opened = Path(source).expanduser() if is_path else io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(opened) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {name} does not exist (working folder {Path.cwd()})") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"picture {name} cannot be decoded: {error}; it is cut off or no picture") from error


def to_uint8_tensor(image: Picture, spec: VisualSpec) -> UInt8[Tensor, "3 size size"]:
    """A picture at the tower's size, not yet normalised (the model does that on its device); "dynamic" resizes here.

    Antialiased bicubic in torch: at most one grey level from PIL's result (`resize_bicubic`), and several times faster.
    Where a picture of pure noise is enlarged, one value in a hundred thousand is two levels off.
    """
    pixels, size = as_chw(image), spec.image_size
    if spec.aspect_mode == "pad":
        pixels = _pad_square(pixels, spec.image_mean)
    if spec.aspect_mode == "crop":
        height, width = _shortest_edge(pixels.shape[1], pixels.shape[2], size)
        return _centre(resize(pixels, height, width), size)
    return resize(pixels, size, size)


def multiply_placeholders(text: str, num_tiles: int) -> str:
    """One `<image>` and line break per tile where the text has one for the picture.

    >>> multiply_placeholders("<image>\nWhat is it?", 2)
    '<image>\n<image>\nWhat is it?'
    """
    shown = f"{DEFAULT_IMAGE_TOKEN}\n"
    parts = text.split(shown) if shown in text else text.split(DEFAULT_IMAGE_TOKEN)
    return (shown * num_tiles).join(parts)


def _pad_square(pixels: UInt8[Tensor, "3 h w"], mean: Sequence[float]) -> UInt8[Tensor, "3 s s"]:
    """Centred on the mean colour; the odd pixel goes below or to the right."""
    _, height, width = pixels.shape
    if height == width:
        return pixels
    side = max(height, width)
    canvas = torch.tensor([int(m * 255) for m in mean], dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = pixels
    return canvas


def _shortest_edge(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the shorter side became `size`; the other is cut to a whole number."""
    short, long = min(height, width), max(height, width)
    scaled = int(size * long / short)
    return (size, scaled) if height <= width else (scaled, size)


def _centre(pixels: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size].contiguous()


def process_images(images: Sequence[Any], image_processor: Any, config: Any) -> Float[Tensor, "n 3 h w"]:
    """Normalised pixels through the tower's own image processor, by `config.image_aspect_ratio`.

    "resize" gives up the aspect ratio, "pad" centres on a square of the mean colour, "dynamic_s2" cuts a picture that
    is alone into the tiles of all scales (its height and width are the model's `image_sizes`), anything else leaves it
    to the processor. `config` is read only.
    """
    if not len(images):
        raise ValueError("no image to process; give at least one")
    mode = getattr(config, "image_aspect_ratio", None)
    pictures = [load_image(image) for image in images]
    if mode == "resize":
        side = _processor_side(image_processor)
        pictures = [resize_bicubic(picture, side, side) for picture in pictures]
    elif mode == "pad":
        colour = tuple(int(mean * 255) for mean in image_processor.image_mean)
        pictures = [expand2square(picture, colour) for picture in pictures]
    elif mode == "dynamic_s2" and len(pictures) == 1:
        pictures = _tiles_of_scales(pictures[0], config)
    pixels = [image_processor(picture, return_tensors="pt")["pixel_values"][0] for picture in pictures]
    if len({tuple(p.shape) for p in pixels}) > 1:
        raise ValueError(f"the image processor gave pictures of unequal shape: {[tuple(p.shape) for p in pixels]}")
    return torch.stack(pixels)


def _tiles_of_scales(picture: Image.Image, config: Any) -> list[Image.Image]:
    """As `utils.cutting.cut_scales`, with PIL's resizing, which published weights saw."""
    rule = dynamic_s2_rule(config, patches=1)  # the tokens of a tile have no influence on the tiles
    assert rule is not None
    side, tiles = rule.side, []
    for rows, columns in rule.layout(picture.height, picture.width).grids:
        whole = resize_bicubic(picture, columns * side, rows * side)
        corners = [(left * side, top * side) for top in range(rows) for left in range(columns)]
        tiles += [whole.crop((left, top, left + side, top + side)) for left, top in corners]
    return tiles


def resize_bicubic(image: Image.Image, width: int, height: int) -> Image.Image:
    """PIL's bicubic, columns before rows whatever its version: Pillow 13 chooses the order by the sizes.

    The picture is rounded and clipped between the two passes, so the order is worth up to 5 grey levels. Published
    weights saw columns first, which is also what torch does.
    """
    narrow = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return narrow.resize((width, height), Image.Resampling.BICUBIC)


def _processor_side(image_processor: Any) -> int:
    """Side of the square that the processor makes."""
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    for key in ("height", "shortest_edge"):
        if (side := size.get(key)) is not None:
            return int(side)
    raise ValueError(f"image processor sizes are {dict(size)}, expected 'height' or 'shortest_edge'")


def expand2square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """The picture centred on a square of one colour."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def visual_tokens_per_image(image_size: int, patch_size: int, downsample_rate: int) -> int:
    """Language-model positions of one picture: its patch grid, padded up to whole blocks of the projector.

    >>> visual_tokens_per_image(384, 14, 2)
    196
    """
    if image_size < patch_size or downsample_rate < 1:
        raise ValueError(f"image_size={image_size}, patch_size={patch_size}, downsample_rate={downsample_rate}")
    blocks = -(-(image_size // patch_size) // downsample_rate)
    return blocks * blocks


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Int[Tensor, " s"]:
    """Ids of a prompt, one `image_token_index` per `<image>`; the text between two pictures is tokenised on its own."""
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt' or None")
    ids, _ = tokenize_text(prompt, tokenizer, compat=TokenizationCompat.navila(), image_token_id=image_token_index)
    return torch.tensor(ids, dtype=torch.int64) if return_tensors else ids


def expand_image_tokens(
    input_ids: Int[Tensor, " s"], labels: Int[Tensor, " s"], counts: Sequence[int], image_token_id: int
) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """Repeat the k-th placeholder counts[k] times, untrained; -200 counts as a placeholder too.

    Raises:
        ValueError: when there are more or fewer placeholders than counts.
    """
    is_image = (input_ids == image_token_id) | (input_ids == IMAGE_TOKEN_INDEX)
    found = int(is_image.sum())
    if found != len(counts):
        raise ValueError(
            f"the text has {found} placeholders, {len(counts)} pictures are given; write one <image> per picture, "
            "in reading order"
        )
    repeats = torch.ones_like(input_ids)
    repeats[is_image] = torch.as_tensor(counts, dtype=repeats.dtype, device=repeats.device)
    ids = input_ids.masked_fill(is_image, image_token_id).repeat_interleave(repeats)
    return ids, labels.masked_fill(is_image, IGNORE_INDEX).repeat_interleave(repeats)


def opencv_extract_frames(
    video: Source, frames: int = 6, max_fps: float | int = 0, fps: float | int = 0, frame_count: int = 0
) -> tuple[list[Image.Image], int]:
    """Evenly spread pictures of a clip and their number; a short clip gives fewer than asked for.

    `fps` and `frame_count` replace the clip's own figures where they are not 0.

    Raises:
        ValueError: for a clip that cannot be decoded.
    """
    clip = open_clip(video)
    length = min(frame_count, clip.info.num_frames) if frame_count else clip.info.num_frames
    indices = capped_indices(length, frames, video_fps=fps or clip.info.fps, max_fps=max_fps)
    return [Image.fromarray(frame) for frame in clip.frames(indices)], len(indices)


def vlnce_frame_sampling(frames: Sequence[Any], num_frames: int = 8) -> list[Image.Image]:
    """History and current frame of a navigation record as pictures; a short history begins with black ones.

    `frames` holds paths or pictures, the last one is the current frame; it is not changed.
    """
    black = Image.new("RGB", (448, 448))
    indices = vlnce_indices(len(frames), num_frames)
    return pick([load_image(frame) if i in indices else black for i, frame in enumerate(frames)], indices, black)


def extract_video_frames(video: Source, num_frames: int) -> list[Image.Image]:
    """First, last and evenly spread frames of a file or a frame folder; a short clip repeats frames."""
    clip = open_clip(video)
    indices = uniform_indices(clip.info.num_frames, num_frames)
    return [Image.fromarray(frame) for frame in clip.frames(indices)]


def extract_media(
    prompt: Any, num_video_frames: int = 8, *, mm_use_im_start_end: bool = False
) -> tuple[str, list[Image.Image]]:
    """One user turn (a text, picture, clip, or a list of them) as its text with placeholders, and its pictures.

    A picture stands as `<image>` and a line break, a clip as `num_video_frames` of them.

    Raises:
        ValueError: for another kind of part, or a text that brings placeholders without pictures.
    """
    shown = DEFAULT_IMAGE_TOKEN
    if mm_use_im_start_end:
        shown = DEFAULT_IM_START_TOKEN + shown + DEFAULT_IM_END_TOKEN
    texts: list[str] = []
    pictures: list[Image.Image] = []
    for part in prompt if isinstance(prompt, (list, tuple)) else [prompt]:
        found = [] if isinstance(part, str) else _pictures_of(part, num_video_frames)
        texts.append(part if isinstance(part, str) else f"{shown}\n" * len(found))
        pictures += found
    text = "".join(texts)
    if (count := text.count(DEFAULT_IMAGE_TOKEN)) != len(pictures):
        raise ValueError(
            f"the prompt's text holds {count - len(pictures)} {DEFAULT_IMAGE_TOKEN} of its own; "
            "put the pictures themselves into the list, in order"
        )
    return text, pictures


def _pictures_of(part: Any, num_video_frames: int) -> list[Image.Image]:
    if isinstance(part, Image.Image):
        return [load_image(part)]
    if isinstance(part, media.Image):
        return [load_image(part.path)]
    if not isinstance(part, media.Video):
        raise ValueError(
            f"a prompt holds a {type(part).__name__}, expected str, a PIL picture, llava.Image or llava.Video"
        )
    if isinstance(part.path, str):
        return extract_video_frames(part.path, num_video_frames)
    return [load_image(part.path[i]) for i in uniform_indices(len(part.path), num_video_frames)]


def get_model_name_from_path(model_path: str) -> str:
    """Last part of a path; a checkpoint folder keeps its parent's name too.

    >>> get_model_name_from_path("runs/navila/checkpoint-200/")
    'navila_checkpoint-200'
    """
    parts = [part for part in str(model_path).replace("\\", "/").split("/") if part]
    if len(parts) > 1 and (parts[-1].startswith("checkpoint-") or parts[-1] == "model"):
        return "_".join(parts[-2:])
    return parts[-1] if parts else ""


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends each row of a batch once its new tokens hold one of the keywords.

    Args:
        input_ids: the prompt, so that keywords in it do not count; None where generation returns new tokens only.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Int[Tensor, "b s"] | None) -> None:
        self.tokenizer = tokenizer
        self.keywords = [keyword for keyword in keywords if keyword]
        self.keyword_ids = [self._ids(keyword) for keyword in self.keywords]
        self.start_len = 0 if input_ids is None else input_ids.shape[1]
        longest = max((len(ids) for ids in self.keyword_ids), default=0)
        self._window = longest + 8  # text may be cut into other tokens than the keyword alone

    def _ids(self, keyword: str) -> list[int]:
        return self.tokenizer(keyword, add_special_tokens=False).input_ids

    def __call__(self, input_ids: Int[Tensor, "b s"], scores: Any = None, **kwargs: Any) -> torch.BoolTensor:
        new = input_ids[:, self.start_len :] if input_ids.shape[1] > self.start_len else input_ids[:, :0]
        done = torch.tensor([self._is_done(row) for row in new.tolist()], dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, done)

    def _is_done(self, new: list[int]) -> bool:
        if any(new[-len(ids) :] == ids for ids in self.keyword_ids if ids):
            return True
        text = self.tokenizer.decode(new[-self._window :], skip_special_tokens=False)
        return any(keyword in text for keyword in self.keywords)
