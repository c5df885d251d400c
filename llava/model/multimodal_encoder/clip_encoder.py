"""CLIP: a class token goes first; `patch` (the default) drops it."""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class ClipVisionTower(VisionTower):
    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    num_prefix_tokens = 1
    default_feature = "patch"

    def embed(self, pixels: Tensor) -> Tensor:
        return self.vision_tower.pre_layrnorm(super().embed(pixels))  # pyright: ignore[reportCallIssue]
