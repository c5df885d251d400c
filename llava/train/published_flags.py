"""Flags of the launch scripts of LLaVA, LLaVA-NeXT and VILA that are spelt otherwise here, or have no place here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava.utils.registry import suggest

RENAMED = {
    "tune_mm_mlp_adapter": "tune_mm_projector",
    "unfreeze_mm_vision_tower": "tune_vision_tower",
    "mm_vision_tower_lr": "vision_tower_lr",
}

TUNABLE = {
    "mm_vision_tower": "tune_vision_tower",
    "mm_mlp_adapter": "tune_mm_projector",
    "mm_language_model": "tune_language_model",
}
"""Names in `--mm_tunable_parts` -> our flags."""

_ENCODER = "pictures and frames are encoded as the checkpoint says; leave it out"
_LAYOUT = "the layout of visual tokens follows from --image_aspect_ratio and the checkpoint; leave it out"
_FRAMES = "--num_video_frames N reads N frames spread over a video, --fps F reads F per second"

REFUSED: Mapping[str, str] = {
    "image_encoder": _ENCODER,
    "video_encoder": _ENCODER,
    "image_grid_pinpoints": _LAYOUT,
    "mm_patch_merge_type": _LAYOUT,
    "mm_newline_position": _LAYOUT,
    "mm_spatial_pool_stride": _LAYOUT,
    "mm_spatial_pool_mode": _LAYOUT,
    "mm_spatial_pool_out_channels": _LAYOUT,
    "frames_upbound": _FRAMES,
    "force_sample": _FRAMES,
    "video_fps": _FRAMES,
    "add_time_instruction": "write the times into the records",
    "video_folder": "pictures and videos start from one folder: --image_folder",
    "freeze_mm_mlp_adapter": "use --tune_mm_projector False",
    "freeze_mm_vision_resampler": "there is no resampler; leave it out",
    "vision_tower_pretrained": "give the folder of the weights as --vision_tower",
    "ps3": "PS3 encoders are not among the vision towers; leave it out",
}
"""flag -> what to do instead. Each would train another model if it were left out in silence."""


def spell_out_parts(words: Sequence[str]) -> list[str]:
    """`--mm_tunable_parts a,b` -> one `--tune_...` flag per part, True for those that are listed.

    Raises:
        ValueError: an unknown part.
    """
    spelt: list[str] = []
    listed = False
    for word in words:
        if listed:
            spelt += _tuned(word)
            listed = False
        elif word == "--mm_tunable_parts":
            listed = True
        else:
            spelt.append(word)
    return spelt


def _tuned(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in TUNABLE:
            raise ValueError(f"--mm_tunable_parts names '{part}'{suggest(part, list(TUNABLE))}")
    return [word for part, flag in TUNABLE.items() for word in (f"--{flag}", str(part in parts))]


def refuse_published(words: Sequence[str]) -> None:
    """
    Raises:
        ValueError: flags of `REFUSED`, each with what to do instead.
    """
    found = [name for name in REFUSED if f"--{name}" in words]
    if found:
        listed = "".join(f"\n  --{name}: {REFUSED[name]}" for name in found)
        raise ValueError(f"{len(found)} flag(s) of other launch scripts have no place here:{listed}")
