"""SigLIP with a fine patch stem: two small convolutions in place of one large one.

A patch of 16 x 16 pixels seen by one linear map must average away what is one pixel wide; 4 x 4 sub-patches, a GELU and
a second 4 x 4 merge keep it, for 0.2 % more parameters. Made for small models trained from scratch on small pictures.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower


class SiglipStemConfig(SiglipVisionConfig):
    """`stem_strides` multiply to patch_size; `stem_width` channels lie between the convolutions."""

    model_type = "siglip_stem"
    __no_type_check__ = True  # configs of transformers take any keyword; shape checks under pytest would refuse it
    base_config_key = ""

    stem_strides: Any = (4, 4)
    stem_width: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("vision_use_head", False)
        super().__post_init__(**kwargs)
        if math.prod(self.stem_strides) != self.patch_size:
            raise ValueError(
                f"stem_strides {tuple(self.stem_strides)} multiply to {math.prod(self.stem_strides)}, expected "
                f"patch_size = {self.patch_size}"
            )


def build_stem(config: SiglipStemConfig) -> nn.Sequential:
    widths = [config.num_channels, *[config.stem_width] * (len(config.stem_strides) - 1), config.hidden_size]
    layers: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], config.stem_strides, strict=False):
        layers += [nn.Conv2d(before, after, kernel_size=stride, stride=stride), ACT2FN[config.hidden_act]]
    return nn.Sequential(*layers[:-1])


class SiglipStemEmbeddings(SiglipVisionEmbeddings):
    def __init__(self, config: SiglipStemConfig) -> None:
        super().__init__(config)
        self.patch_embedding = build_stem(config)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, P, D]
        if interpolate_pos_encoding:
            return patches + self.interpolate_pos_encoding(patches, *pixel_values.shape[-2:])
        return patches + self.position_embedding(self.position_ids)


class SiglipStemModel(SiglipVisionModel):
    """transformers' SigLIP encoder behind the fine stem."""

    config_class = SiglipStemConfig

    def __init__(self, config: SiglipStemConfig) -> None:
        super().__init__(config)
        self.embeddings = SiglipStemEmbeddings(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The stem starts as `nn.Conv2d` does by itself: SigLIP's wider start drowns the position embeddings (0.09
        beside 1), and a young tower then cannot say where something is.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))


class SiglipStemVisionTower(SiglipVisionTower):
    config_class = SiglipStemConfig
    model_class = SiglipStemModel
    default_layer = -1
