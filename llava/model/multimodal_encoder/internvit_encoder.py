"""InternViT as transformers has it (the vision part of InternVL); like InternVL we take the last layer's patches."""

from __future__ import annotations

from transformers import InternVLVisionConfig, InternVLVisionModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class InternVisionTower(VisionTower):
    config_class = InternVLVisionConfig
    model_class = InternVLVisionModel
    default_layer = -1
    default_feature = "patch"
    layers_name = "encoder.layer"
    unused_parts = ("layernorm", "embeddings.mask_token")
    position_table = "embeddings.position_embeddings"
    num_position_prefix = 1
