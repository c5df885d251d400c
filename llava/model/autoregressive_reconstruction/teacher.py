"""The teacher: a vision tower that never changes, whose features are what is predicted."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from llava.model.utils import is_partitioned, is_trainable

Frames = UInt8[Tensor, "..."] | Float[Tensor, "..."]
"""[V, T, 3, H, W]: uint8, or floats that are normalised already."""


class FrozenVisionEmbeddingProcessor(nn.Module):
    """Clips to features, without gradient.

    The tower is no submodule: it appears in no state dict, no optimizer and no wrapper of a distributed run. A tower
    that is trained is copied as it is now; one that is frozen is used as it is (`is_shared`), not copied.

    Attributes:
        of_training: what a checkpoint says of the teacher of its training, where this one only measures; else None.
    """

    tower: Any
    of_training: dict[str, Any] | None

    def __init__(self, vision_tower: nn.Module, *, chunk_size: int = 64) -> None:
        super().__init__()
        self.is_shared = not is_trainable(vision_tower)
        self.chunk_size = chunk_size
        self.of_training = None
        self._fingerprint: str | None = None
        tower = vision_tower if self.is_shared else _frozen_copy(vision_tower)
        object.__setattr__(self, "tower", tower)

    @property
    def embedding_dim(self) -> int:
        return self.tower.hidden_size

    @property
    def num_patches(self) -> int:
        return self.tower.num_patches

    def forward(self, video_frames: Frames) -> Float[Tensor, "v t p d"]:
        return self.encode(video_frames)

    @torch.no_grad()
    def encode(self, video_frames: Frames) -> Float[Tensor, "v t p d"]:
        """Features of V clips of T frames, chunk by chunk.

        No module call: ZeRO-3 expects the same modules in the same order on every rank, and some have no clip.

        Raises:
            ValueError: for frames of another rank, number of channels or size, or if a shared tower is trained by now.
        """
        self._check(video_frames)
        self._keep_frozen()
        num_clips, num_frames = video_frames.shape[:2]
        chunks = video_frames.flatten(0, 1).split(self.chunk_size)
        features = torch.cat([self.tower(chunk) for chunk in chunks])
        return features.unflatten(0, (num_clips, num_frames))

    def fingerprint(self) -> str:
        """Hash of the weights: two teachers of the same hash give the same targets. Computed once: they never change,
        but an engine may spread them over ranks later."""
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def replace(self, vision_tower: nn.Module) -> None:
        """Takes the weights of another tower of the same sizes: those with which a resumed run began."""
        if self.is_shared:
            raise ValueError("the teacher is the live tower, found another one to replace it; freeze nothing, or both")
        self.tower.load_state_dict(vision_tower.state_dict())
        self._fingerprint = None

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, weight in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _keep_frozen(self) -> None:
        if self.is_shared and is_trainable(self.tower):
            raise ValueError(
                "the vision tower was frozen when the teacher was built and is trainable now, so that its features "
                "would drift; set what is trained first, then call initialize_continuous_autoregressive_modules"
            )
        if self.tower.training:
            self.tower.eval()

    def _check(self, frames: Tensor) -> None:
        size = self.tower.image_size
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, size, size):
            raise ValueError(
                f"video_frames has shape {list(frames.shape)}, expected [clips, frames, 3, {size}, {size}]; resize "
                "with process_images and stack the frames of each clip"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenVisionEmbeddingProcessor:
        """A copy follows `.to(...)`; a shared tower moves with the model that owns it."""
        if not self.is_shared:
            self.tower._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _frozen_copy(tower: nn.Module) -> nn.Module:
    if is_partitioned(tower.parameters()):
        raise ValueError(
            "the vision tower's weights are spread over ranks (ZeRO-3) and cannot be copied, expected whole ones; "
            "build the teacher inside deepspeed.zero.GatheredParameters, or freeze the tower, which is then shared"
        )
    return copy.deepcopy(tower).requires_grad_(False).eval()
