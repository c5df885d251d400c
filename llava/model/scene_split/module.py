"""What a model with `scene_split` has beside its three parts: weights only where the config asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llava.model.multimodal_encoder.patch_groups import PatchGroup
from llava.model.multimodal_encoder.split_encoder import SplitEncoder, SplitFeatures, copy_tower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.model.multimodal_projector.base_projector import MultimodalProjector
from llava.model.multimodal_projector.prefusion import Prefusion, prefusion_config
from llava.model.multimodal_projector.split_projector import copy_projector, project_group
from llava.model.scene_split.config import SceneSplitConfig
from llava.model.scene_split.layout import LayoutRule
from llava.model.scene_split.separators import Separators
from llava.utils.weight_names import weight_names

Pictures = UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]
WEIGHTS = "model.safetensors"
PARTS = {
    "background_projector": "mm_projector",
    "object_projector": "mm_projector",
    "object_tower": "vision_tower",
    "prefusion": "mm_projector",
}
"""Sub-modules -> the part of the model that they began as a copy of; pre-fusion learns where the projector does."""


class SceneSplitModule(nn.Module):
    """Object tower, both projectors and pre-fusion, as far as the config wants them apart from the model's own parts.

    The model's tower and projector come with every call: they stay parts of the model and are stored once. Built from
    them, every copy starts with their weights, so nothing changes until it is trained.

    Attributes:
        object_tower: None where the encoder is shared.
        background_projector, object_projector: None where the projectors are shared.
        prefusion: None without prefusion_layers.
        groups: "both", or which one a stage of the training shows to the language model; never stored.
    """

    def __init__(
        self, config: SceneSplitConfig, vision_tower: VisionTower, mm_projector: MultimodalProjector, llm_config: Any
    ) -> None:
        super().__init__()
        if mm_projector.image_newline is not None:
            raise ValueError("scene_split is set and mm_projector has an image_newline (anyres), expected one of them")
        self.config = config
        self.groups = "both"
        self.object_tower = None if config.shared_encoder else copy_tower(vision_tower)
        is_shared = config.shared_projectors
        self.background_projector = None if is_shared else copy_projector(mm_projector)
        self.object_projector = None if is_shared else copy_projector(mm_projector)
        layers = config.prefusion_layers
        self.prefusion = Prefusion(prefusion_config(llm_config, layers)) if layers else None
        if self.prefusion is not None:
            weight = next(mm_projector.parameters(), torch.empty(0))
            self.prefusion.to(weight.device, weight.dtype)
        self.encoder(vision_tower, mm_projector)  # refuses towers that cannot be split, now instead of at a picture

    def reconfigure(self, keys: Mapping[str, Any]) -> None:
        """Other settings for the same weights, see `SceneSplitConfig.changed`."""
        self.config = self.config.changed(keys)

    def set_trainable(self, *, vision_tower: bool, mm_projector: bool, **tuned: bool | None) -> None:
        """Freezes or frees the parts; None = as the part of the model that stands behind them in `PARTS`.

        Raises:
            ValueError: for a part that this model does not have.
        """
        model_parts = {"vision_tower": vision_tower, "mm_projector": mm_projector}
        for part, is_tuned in tuned.items():
            if is_tuned is not None and getattr(self, part) is None:
                raise ValueError(
                    f"{part} is to be {'trained' if is_tuned else 'frozen'} and the model shares it ({self.config}); "
                    "leave its flag out, or set shared_projectors, shared_encoder or prefusion_layers"
                )
        for part, origin in PARTS.items():
            module, asked = getattr(self, part), tuned.get(part)
            if module is not None:
                module.requires_grad_(model_parts[origin] if asked is None else asked)

    def encoder(self, vision_tower: VisionTower, mm_projector: MultimodalProjector) -> SplitEncoder:
        return SplitEncoder(vision_tower, self.object_tower, cell_side=mm_projector.downsample_rate)

    def encode(
        self,
        vision_tower: VisionTower,
        mm_projector: MultimodalProjector,
        pixels: Pictures,
        is_object: Bool[Tensor, "masks p"],
        *,
        batching: str = "bit_stable",
    ) -> SplitFeatures:
        """Tokens of both groups in the language model's width."""
        features = self.encoder(vision_tower, mm_projector)(pixels, is_object, batching=batching)
        grid = vision_tower.grid_side
        return SplitFeatures(
            background=self._project_background(mm_projector, features.background, grid, batching),
            objects=project_group(self.object_projector or mm_projector, features.objects, grid),
        )

    def encode_clips(
        self,
        vision_tower: VisionTower,
        mm_projector: MultimodalProjector,
        pixels: Pictures,
        is_object: Bool[Tensor, "masks p"],
        is_first: Bool[Tensor, "masks"],
        *,
        batching: str = "bit_stable",
    ) -> SplitFeatures:
        """Tokens of frames of which only the first of a clip brings its background.

        Which passes run depends on nothing but the call, so that ranks with other clips keep step.
        """
        parts = vision_tower, mm_projector
        first = is_first.to(pixels.device)
        background = self.encode_background(*parts, pixels[first], is_object[is_first], batching=batching)
        return SplitFeatures(
            background=background, objects=self.encode_objects(*parts, pixels, is_object, batching=batching)
        )

    def encode_background(
        self,
        vision_tower: VisionTower,
        mm_projector: MultimodalProjector,
        pixels: Pictures,
        is_object: Bool[Tensor, "masks p"],
        *,
        batching: str = "bit_stable",
    ) -> PatchGroup:
        """The tokens of the backgrounds only; with "bit_stable" the same bits for ever: what a cache keeps."""
        features = self.encoder(vision_tower, mm_projector).encode_background(pixels, is_object, batching=batching)
        return self._project_background(mm_projector, features, vision_tower.grid_side, batching)

    def encode_objects(
        self,
        vision_tower: VisionTower,
        mm_projector: MultimodalProjector,
        pixels: Pictures,
        is_object: Bool[Tensor, "masks p"],
        *,
        batching: str = "bit_stable",
    ) -> PatchGroup:
        """The tokens of the objects only, for pictures whose backgrounds are known."""
        features = self.encoder(vision_tower, mm_projector).encode_objects(pixels, is_object, batching=batching)
        return project_group(self.object_projector or mm_projector, features, vision_tower.grid_side)

    def _project_background(
        self, mm_projector: MultimodalProjector, features: PatchGroup, grid_side: int, batching: str
    ) -> PatchGroup:
        projector = self.background_projector or mm_projector
        return project_group(projector, features, grid_side, bit_stable=batching == "bit_stable")

    def layout_rule(self, tokens_per_image: int, image_token_id: int, tokenizer: Any) -> LayoutRule:
        """How the pictures of this model are laid out; the tokenizer must know the separators where they are used."""
        separators = Separators.of(tokenizer) if self.config.separators else None
        return LayoutRule(
            num_places=tokens_per_image,
            image_token_id=image_token_id,
            separators=separators,
            positions=self.config.positions,
        )

    def save_weights(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Writes model.safetensors; nothing at all where everything is shared. The settings live in `config.json`.

        Args:
            state: replaces the weights of this module where they are split over ranks.

        Raises:
            ValueError: `state` lacks a weight.
        """
        names = weight_names(self)
        found = self.state_dict() if state is None else state
        if lacking := sorted(names - found.keys()):
            raise ValueError(
                f"the gathered weights lack {lacking[0]} of scene_split; for ZeRO-3 its configuration needs "
                '"stage3_gather_16bit_weights_on_model_save": true'
            )
        # cloned: a view of an engine's flat buffer would share its memory with others
        weights = {name: found[name].detach().cpu().clone().contiguous() for name in sorted(names)}
        if weights:
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_file(weights, Path(folder) / WEIGHTS, metadata={"format": "pt"})

    def load_weights(self, folder: str | Path) -> None:
        """Reads what `save_weights` wrote.

        Raises:
            ValueError: where the file is missing, or holds other weights than the config asks for.
        """
        path, expected = Path(folder) / WEIGHTS, self.state_dict().keys()
        if not expected:
            return
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist, expected the weights of scene_split ({_summary(expected)}); copy the folder "
                "of the checkpoint whole"
            )
        found = load_file(path)
        if found.keys() != expected:
            raise ValueError(
                f"{path} holds {_summary(found.keys() - expected)} that nobody wants and lacks "
                f"{_summary(expected - found.keys())}; scene_split in config.json belongs to other weights"
            )
        self.load_state_dict(found)


def _summary(names: Any) -> str:
    """Parts and the number of their weights, such as "prefusion: 18"."""
    parts = [name.split(".")[0] for name in names]
    return ", ".join(f"{part}: {parts.count(part)}" for part in sorted(set(parts))) or "nothing"
