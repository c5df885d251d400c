"""The policy that a checkpoint was trained to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llava.eval.model_side import ModelSide
from llava.eval.navila_policy import NavilaPolicy
from llava.eval.split_navila_policy import SplitNavilaPolicy
from llava.eval.streaming_policy import StreamingPolicy
from llava.navigation.prompt import NavilaFormat, build_prompt_format

RELEASED_PROMPT = {"format": "navila", "instruction": "raw"}
"""What published checkpoints, which store no prompt, were evaluated with."""


def make_policy(
    model: Any, *, conv_mode: str | None = None, max_new_tokens: int | None = None, num_frames: int | None = None
) -> NavilaPolicy | SplitNavilaPolicy | StreamingPolicy:
    """By the `navigation_prompt` that the checkpoint stores; greedy decoding.

    Args:
        conv_mode: conversation template instead of the stored one.
        max_new_tokens: longest answer; None = 32 for sentences, the longest word of its vocabulary for arrows.
        num_frames: shown frames of the format `navila` instead of the stored number.
    """
    stored = model.config.navigation_prompt
    if not stored:
        stored = {**RELEASED_PROMPT, "num_frames": model.config.num_video_frames or 8}
    prompt = build_prompt_format(stored)
    if num_frames is not None and isinstance(prompt, NavilaFormat):
        prompt = replace(prompt, num_frames=num_frames)
    side = ModelSide(model, conv_mode=conv_mode)
    if isinstance(prompt, NavilaFormat):
        kind = NavilaPolicy if model.scene_split is None else SplitNavilaPolicy
        return kind(side, prompt, max_new_tokens=max_new_tokens or 32)
    return StreamingPolicy(side, prompt, max_new_tokens=max_new_tokens)
