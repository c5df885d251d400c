"""SigLIP: no class token, every token is a patch."""

from __future__ import annotations

from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.model.multimodal_encoder.vision_encoder import VisionTower


class SiglipVisionTower(VisionTower):
    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
