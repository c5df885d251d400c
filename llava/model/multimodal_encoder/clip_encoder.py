"""CLIP: a class token goes first; `patch` (the default) drops it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class ClipVisionTower(VisionTower):
    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    default_feature = "patch"
    num_position_prefix = 1

    def run_layer(self, layer: nn.Module, hidden: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        return layer(hidden, None)  # None = no attention mask

    def embed(self, pixels: Tensor) -> Tensor:
        return self.vision_tower.pre_layrnorm(super().embed(pixels))  # pyright: ignore[reportCallIssue]
