"""A vision tower answers four questions: hidden_size, num_patches, image_size, forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from llava.model.multimodal_encoder.families import family_of, square_side
from llava.model.multimodal_encoder.multi_scale import encode_scales


class VisionTower(nn.Module):
    """Wraps a vision transformer and gives the hidden states of one of its layers.

    Subclasses name the transformers classes, their default layer and feature, where their parts are, and `embed` where
    it differs.

    Attributes:
        layers_name: path of the list of layers inside the transformers model.
        unused_parts: paths of modules and weights that no selected feature passes through, where the model has them.
        position_table: path of the learned positions, None where the model resizes them itself; num_position_prefix of
            its rows belong to tokens before the patches.
        select_layer: as an index into the hidden states (-2 = before the last layer); later layers are not run.
        select_feature: "patch" drops the class token where there is one, "cls_patch" keeps every token.
        scales: sides of the pictures of several scales (`multi_scale.py`), () = one scale, the model's own.
        takes_tiles: pictures arrive cut into tiles of the smallest scale (`dynamic_s2`); else the tower cuts them.
        image_processor: transformers' processor of the checkpoint, or None for a tower with fresh weights.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    default_layer: ClassVar[int] = -2
    default_feature: ClassVar[str] = "cls_patch"
    layers_name: ClassVar[str] = "encoder.layers"
    unused_parts: ClassVar[tuple[str, ...]] = ("post_layernorm", "head")
    position_table: ClassVar[str | None] = "embeddings.position_embedding.weight"
    num_position_prefix: ClassVar[int] = 0
    position_antialias: ClassVar[bool] = False

    def __init__(
        self,
        vision_tower: PreTrainedModel,
        *,
        select_layer: int | None = None,
        select_feature: str | None = None,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        scales: Sequence[int] = (),
        takes_tiles: bool = False,
        image_processor: Any = None,
    ) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.select_layer = self.default_layer if select_layer is None else select_layer
        self.select_feature = select_feature or self.default_feature
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature is {self.select_feature!r}, expected 'patch' or 'cls_patch'")
        self.scales, self.takes_tiles = tuple(scales), takes_tiles
        if self.scales and self.select_feature == "cls_patch" and self.num_prefix_tokens:
            raise ValueError(
                f"s2_scales are set and mm_vision_select_feature is 'cls_patch': {self.num_prefix_tokens} class tokens "
                "have no place in a grid of tiles, expected 'patch'"
            )
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.image_processor = image_processor
        self.requires_grad_(True)

    @property
    def config(self) -> Any:
        return self.vision_tower.config

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size * max(len(self.scales), 1)

    @property
    def image_size(self) -> int:
        """Side of the pictures that come in: the largest scale, or a tile."""
        return self.scales[-1] if self.scales and not self.takes_tiles else square_side(self.config.image_size)

    @property
    def grid_side(self) -> int:
        """Patches per side of what leaves the tower, whatever the number of scales."""
        return square_side(self.config.image_size) // square_side(self.config.patch_size, "patch_size")

    @property
    def num_prefix_tokens(self) -> int:
        """Class tokens and registers before the patches."""
        return family_of(self.config.model_type).num_prefix_tokens(vars(self.config))

    @property
    def num_patches(self) -> int:
        """Tokens per picture that leave the tower."""
        keeps_prefix = self.select_feature == "cls_patch"
        return self.grid_side**2 + self.num_prefix_tokens * keeps_prefix

    @property
    def num_layers_run(self) -> int:
        total = self.config.num_hidden_layers
        layers = self.select_layer if self.select_layer >= 0 else total + 1 + self.select_layer
        if not 0 <= layers <= total:
            raise ValueError(
                f"mm_vision_select_layer is {self.select_layer}, the tower has {total} layers: -{total + 1}..{total}"
            )
        return layers

    @property
    def encoder_layers(self) -> nn.ModuleList:
        return attrgetter(self.layers_name)(self.vision_tower)

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    def unused(self) -> Iterator[nn.Module | nn.Parameter]:
        """What no selected feature passes through; never trained (DDP would wait for its gradients)."""
        yield from self.encoder_layers[self.num_layers_run :]
        for path in self.unused_parts:
            *folders, name = path.split(".")
            part = getattr(self.vision_tower.get_submodule(".".join(folders)), name, None)
            if part is not None:
                yield part

    def requires_grad_(self, requires_grad: bool = True) -> VisionTower:
        super().requires_grad_(requires_grad)
        for part in self.unused():
            part.requires_grad_(False)
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pictures become floats of the training statistics here, on the device; floats are taken as they are."""
        if pixels.dtype != torch.uint8:
            return pixels.to(self.device, self.dtype)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.image_mean, self.image_std))
        return ((pixels.to(self.device).float() / 255 - mean) / std).to(self.dtype)

    def embed(self, pixels: Tensor) -> Tensor:
        """Pictures to patch embeddings with positions [N, P, D]."""
        return self.vision_tower.embeddings(pixels)  # pyright: ignore[reportCallIssue]

    def run_layer(self, layer: nn.Module, hidden: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        return layer(hidden)

    def forward(
        self,
        pixels: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"],
        patch_ids: Int[Tensor, "n p"] | None = None,
        *,
        as_tiles: bool = False,
    ) -> Float[Tensor, "n q d"]:
        """Features of the selected layer.

        as_tiles: the pictures are tiles of larger ones (`takes_tiles`), whose scales are merged afterwards; features
        are then as wide as those of one scale. Else a tower of several scales gives them side by side, the same for
        each scale where it takes tiles.

        Raises:
            ValueError: for pictures of another size, and for patch_ids, which this tower cannot encode apart.
        """
        if patch_ids is not None:
            raise ValueError(f"{type(self).__name__} encodes whole pictures only, expected patch_ids=None")
        if tuple(pixels.shape[-2:]) != (self.image_size, self.image_size):
            size = f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            raise ValueError(
                f"pictures are {size}, the tower reads {self.image_size}x{self.image_size}; use process_images"
            )
        pixels = self.normalise(pixels)
        if as_tiles or not self.scales:
            return self.encode(pixels)
        if self.takes_tiles:
            return self.encode(pixels).repeat(1, 1, len(self.scales))
        return encode_scales(self.encode, pixels, self.scales)

    def encode(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n q d"]:
        """Features of normalised pictures of one scale, the model's own."""
        hidden = self.embed(pixels)
        for layer in self.encoder_layers[: self.num_layers_run]:
            hidden = self.run_layer(layer, hidden)
        return hidden if self.select_feature == "cls_patch" else hidden[:, self.num_prefix_tokens :]
