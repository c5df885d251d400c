"""RADIO (C-RADIO): class tokens and registers go first; its features are the last layer's patches, without a norm.

It normalises pixels (in 0..1) itself and interpolates its table of positions for every size, so no table is resized.
"""

from __future__ import annotations

from torch import Tensor
from transformers import RadioConfig, RadioModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class RadioVisionTower(VisionTower):
    config_class = RadioConfig
    model_class = RadioModel
    default_layer = -1
    default_feature = "patch"
    layers_name = "encoder.layer"
    unused_parts = ("embeddings.video_patch_projection",)
    position_table = None

    def embed(self, pixels: Tensor) -> Tensor:
        return super().embed(self.vision_tower.input_conditioner(pixels))  # pyright: ignore[reportCallIssue]
