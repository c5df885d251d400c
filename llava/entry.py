"""`llava.load`: a folder or hub id becomes a model that answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM


def load(
    model_path: str | Path, model_base: str | None = None, devices: Sequence[int] | None = None, **kwargs: Any
) -> LlavaCausalLM:
    """Read a model of any known layout; its tokenizer is `model.tokenizer`.

    `~` is expanded, and `<model_path>/model` is taken where it exists.

    Args:
        model_base: folder of the base model, for checkpoints that hold a difference to one.
        devices: CUDA devices to spread the model over; None = the first one, or the CPU where there is none.
        kwargs: dtype, attn_implementation, load_8bit, load_4bit, device, device_map; surprise=True (and teacher, see
            `load_pretrained_model`) for `model.frame_surprise`.
    """
    from llava.model.builder import load_pretrained_model

    if devices is not None:
        kwargs.update(device_map="auto", max_memory=_memory_of(devices))
    _, model, _, _ = load_pretrained_model(str(model_path), model_base, **kwargs)
    return model


def _memory_of(devices: Sequence[int]) -> dict[int, int]:
    """Bytes per device that a model may take.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    import torch

    missing = [device for device in devices if not 0 <= device < torch.cuda.device_count()]
    if missing:
        found = torch.cuda.device_count()
        raise ValueError(
            f"devices names CUDA device {missing[0]}, found {found} devices; leave it out to run on the CPU"
        )
    return {device: torch.cuda.get_device_properties(device).total_memory for device in devices}
