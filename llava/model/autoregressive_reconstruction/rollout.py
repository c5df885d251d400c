"""Several steps into the future: each prediction is the next one's newest frame."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from llava.model.autoregressive_reconstruction.clips import describe_clips
from llava.model.autoregressive_reconstruction.module import AutoregressiveReconstructionModule, Rows


@torch.no_grad()
def roll_out(
    module: AutoregressiveReconstructionModule,
    seen: Float[Tensor, "v t p d"],
    horizon: int,
    motions: Float[Tensor, "v m 3"] | None = None,
) -> Float[Tensor, "v h p d"]:
    """Predicted features (as targets are: pooled, normalised) of the `horizon` frames behind those seen.

    Frames are one unit of time apart; the language model's states are not used. motions: of at least t + horizon - 1
    frames, as in `VideoClips`.
    """
    if module.config.site != "visual" or module.config.use_fast_slow_frames:
        raise ValueError(
            f"site is '{module.config.site}' and use_fast_slow_frames {module.config.use_fast_slow_frames}, expected "
            "'visual' and False: a clip is continued frame by frame"
        )
    clip = seen
    for _ in range(horizon):
        num_frames = clip.shape[1]
        told = None if motions is None else pad(motions[:, :num_frames], (0, 0, 0, 1), value=torch.nan)
        clips = describe_clips(len(clip), num_frames + 1, motions=told)
        following = torch.zeros_like(clip[:, :1])  # no prediction sees it: it stands for the frame to come
        predicted = module.predict_sites(torch.cat([clip, following], dim=1), clips, Rows())["visual"].predicted
        clip = torch.cat([clip, predicted[:, num_frames - 1 : num_frames]], dim=1)
    return clip[:, seen.shape[1] :]
