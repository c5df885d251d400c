"""SigLIP: no class token, every token is a patch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class SiglipVisionTower(VisionTower):
    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel

    def run_layer(self, layer: nn.Module, hidden: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        return layer(hidden, None)  # None = no attention mask
