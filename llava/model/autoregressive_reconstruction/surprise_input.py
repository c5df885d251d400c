"""What surprise is measured on: pictures of a clip, and the sequence in which the language model saw such clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from llava import media
from llava.batch import VisualSpec
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Turn, get_template
from llava.mm_utils import expand_image_tokens, load_image, to_uint8_tensor
from llava.navigation.prompt import NavilaFormat, StreamingFormat, build_prompt_format
from llava.utils.tokenizer import TokenizationCompat, tokenize_conversation
from llava.video.decode import open_clip

if TYPE_CHECKING:
    from llava.model.llava_arch import LlavaMetaForCausalLM

FRAMES_OF_A_VIDEO = 8
"""Shown together by a model whose checkpoint names no number."""


def read_clips(
    frames: Any, spec: VisualSpec, times: Any = None
) -> tuple[UInt8[Tensor, "v t 3 h w"], Float[Tensor, "v t"] | None]:
    """Clips at the tower's size, and when their frames were taken where that is known.

    Raises:
        ValueError: for anything but clips of at least two frames, and for times of another shape.
    """
    stamps: Any = times
    if isinstance(frames, media.Video):
        frames, known = _frames_of(frames)
        stamps = known if times is None else times
    if isinstance(frames, (list, tuple)):
        frames = torch.stack([to_uint8_tensor(_as_picture(frame), spec) for frame in frames]) if frames else frames
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.ndim not in (4, 5):
        found = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise ValueError(
            f"frames are {found}, expected uint8 [T, 3, H, W] or [V, T, 3, H, W], a llava.Video or a list of pictures"
        )
    clips = frames[None] if frames.ndim == 4 else frames
    if clips.shape[0] < 1 or clips.shape[1] < 2 or clips.shape[2] != 3:
        raise ValueError(
            f"frames have the shape {list(frames.shape)}, expected at least one clip of at least 2 frames with 3 "
            "channels: the first frame of a clip has no past to be predicted from"
        )
    if tuple(clips.shape[3:]) != (spec.image_size, spec.image_size):
        resized = torch.stack([to_uint8_tensor(frame, spec) for frame in clips.flatten(0, 1)])
        clips = resized.unflatten(0, clips.shape[:2])
    return clips, None if stamps is None else _as_times(stamps, clips.shape[:2])


def _frames_of(video: media.Video) -> tuple[list[Any], list[float] | None]:
    """Every frame of a clip, and seconds where a file tells them."""
    if not isinstance(video.path, str):
        return list(video.path), None
    clip = open_clip(video.path)
    everything = range(clip.info.num_frames)
    return list(clip.frames(everything)), clip.times(everything) if clip.info.fps else None


def _as_picture(frame: Any) -> Any:
    return frame if isinstance(frame, (Image.Image, np.ndarray, Tensor)) else load_image(frame)


def _as_times(times: Any, shape: tuple[int, ...]) -> Float[Tensor, "v t"]:
    stamps = torch.as_tensor(times).float().cpu()
    stamps = stamps[None].expand(shape[0], -1) if stamps.ndim == 1 else stamps
    if tuple(stamps.shape) != tuple(shape):
        raise ValueError(f"times have the shape {list(stamps.shape)}, expected {list(shape)}: one per frame")
    return stamps


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """What stands in front of the language model, up to the last token of the last frame.

    Attributes:
        frame_ends: column of the last visual token of each frame.
    """

    ids: Int[Tensor, " s"]
    frame_ends: Int[Tensor, " t"]
    image_token_id: int


@dataclass(frozen=True, kw_only=True)
class SequenceLayout:
    """How a checkpoint's training put frames before the language model.

    Attributes:
        unexpanded: number of frames -> ids with one placeholder per frame.
        num_shown: frames of one sequence in training; None = as many as there are.
    """

    unexpanded: Callable[[int], list[int]]
    num_shown: int | None
    tokens_per_frame: int
    image_token_id: int

    @classmethod
    def of(cls, model: LlavaMetaForCausalLM, prompt: str) -> SequenceLayout:
        """The layout of the checkpoint's navigation prompt, else of a question about a video.

        Raises:
            ValueError: the model has no tokenizer.
        """
        config, token_id = model.config, model.config.image_token_id
        if model.tokenizer is None or token_id is None:
            raise ValueError(
                "the model has no tokenizer, which the language model's view of a clip needs; set model.tokenizer, or "
                "give context='none'"
            )
        known = build_prompt_format(config.navigation_prompt) if config.navigation_prompt else None
        if isinstance(known, StreamingFormat):
            unexpanded, num_shown = partial(_streaming_ids, model.tokenizer, token_id, known, prompt), None
        elif isinstance(known, NavilaFormat):
            question = lambda count: replace(known, num_frames=count).question(prompt)  # noqa: E731
            unexpanded, num_shown = partial(_question_ids, model, question), known.num_frames
        else:
            shown = f"{DEFAULT_IMAGE_TOKEN}\n"
            if config.mm_use_im_start_end:
                shown = f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}\n"
            unexpanded = partial(_question_ids, model, lambda count: shown * count + prompt)
            num_shown = config.num_video_frames or FRAMES_OF_A_VIDEO
        return cls(
            unexpanded=unexpanded,
            num_shown=num_shown,
            tokens_per_frame=model.tokens_per_image,
            image_token_id=token_id,
        )

    def lay_out(self, num_frames: int) -> FrameSequence:
        ids = torch.tensor(self.unexpanded(num_frames))
        ids, _ = expand_image_tokens(ids, ids, [self.tokens_per_frame] * num_frames, self.image_token_id)
        columns = (ids == self.image_token_id).nonzero()[:, 0]
        ends = columns[self.tokens_per_frame - 1 :: self.tokens_per_frame]
        return FrameSequence(ids=ids[: int(ends[-1]) + 1], frame_ends=ends, image_token_id=self.image_token_id)

    def frames_that_fit(self, model: LlavaMetaForCausalLM) -> int:
        """Frames of the longest sequence that the language model was made for.

        Raises:
            ValueError: not even two of them fit.
        """
        names = ("tokenizer_model_max_length", "max_position_embeddings")
        limits = [getattr(config, name, None) for config in (model.config, model.llm.config) for name in names]
        limit = min(limit for limit in [*limits, 1 << 30] if limit)
        two, three = (int(self.lay_out(count).frame_ends[-1]) + 1 for count in (2, 3))
        if two > limit:
            raise ValueError(
                f"two frames and the prompt take {two} tokens, the language model reads {limit}; shorten the prompt, "
                "or give context='none'"
            )
        return 2 + (limit - two) // (three - two)


def _streaming_ids(tokenizer: Any, token_id: int, known: StreamingFormat, prompt: str, num_frames: int) -> list[int]:
    """The task, then the frames; answers, which training may have shown between them, are not known here."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    words = [tokenizer(piece.text, add_special_tokens=False)["input_ids"] for piece in known.opening(prompt)]
    return [*bos, *(token for ids in words for token in ids), *([token_id] * num_frames)]


def _question_ids(model: LlavaMetaForCausalLM, question: Callable[[int], str], num_frames: int) -> list[int]:
    return tokenize_conversation(
        [Turn("user", question(num_frames))],
        model.tokenizer,
        get_template(model.config.version or "auto"),
        add_generation_prompt=True,
        compat=TokenizationCompat.from_config(model.config.tokenization_compat),
        image_token_id=model.config.image_token_id,  # pyright: ignore[reportArgumentType]
    )
