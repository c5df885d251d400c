"""DINOv2, with and without registers: the class token and the registers go first, "patch" (the default) drops them."""

from __future__ import annotations

from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class Dinov2VisionTower(VisionTower):
    config_class = Dinov2Config
    model_class = Dinov2Model
    default_feature = "patch"
    layers_name = "encoder.layer"
    unused_parts = ("layernorm", "embeddings.mask_token")
    position_table = "embeddings.position_embeddings"
    num_position_prefix = 1


class Dinov2WithRegistersVisionTower(Dinov2VisionTower):
    config_class = Dinov2WithRegistersConfig
    model_class = Dinov2WithRegistersModel
    position_antialias = True  # as its own code does for other sizes
