"""The parts of every multimodal model, what they know of each other, and what is trained of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llava.batch import VisualSpec
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.module import (
    AutoregressiveReconstructionModule,
    create_autoregressive_reconstruction_module,
)
from llava.model.configuration_llava import LlavaConfig
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.model.multimodal_projector.base_projector import MultimodalProjector
from llava.model.scene_split.config import SceneSplitConfig
from llava.model.scene_split.module import SceneSplitModule
from llava.model.scene_split.setup import add_scene_split
from llava.model.utils import count_visual_tokens, is_trainable


class LlavaMetaModel:
    """The three parts and what they know: `llm`, `vision_tower`, `mm_projector`.

    Attributes:
        autoregressive_reconstruction: the next-frame loss beside them, in training and where surprise is asked for.
        scene_split: what background and objects are encoded and projected with apart; None = pictures are not split.
        tokenizer: tokenizer of the language model, or None for a model built without one.
    """

    config: LlavaConfig
    llm: PreTrainedModel
    vision_tower: VisionTower
    mm_projector: MultimodalProjector
    autoregressive_reconstruction: AutoregressiveReconstructionModule | None
    scene_split: SceneSplitModule | None
    tokenizer: Any = None

    def get_llm(self) -> PreTrainedModel:
        return self.llm

    def get_vision_tower(self) -> VisionTower:
        return self.vision_tower

    def get_mm_projector(self) -> MultimodalProjector:
        return self.mm_projector

    @property
    def image_processor(self) -> Any:
        """transformers' processor of the checkpoint; None where pictures are only fed as uint8 of the right size."""
        return self.vision_tower.image_processor

    @property
    def tokens_per_image(self) -> int:
        rate = self.mm_projector.downsample_rate
        if rate == 1:
            return self.vision_tower.num_patches
        return count_visual_tokens(self.vision_tower.grid_side, 1, rate)

    @property
    def slots_per_image(self) -> int:
        """Positions of a sequence that a picture takes: its visual tokens, and separators where it is split."""
        split = self.scene_split
        return self.tokens_per_image if split is None else split.config.slots_of(self.tokens_per_image)

    @property
    def visual_spec(self) -> VisualSpec:
        return VisualSpec(
            image_size=self.vision_tower.image_size,
            tokens_per_image=self.slots_per_image,
            image_mean=self.vision_tower.image_mean,  # pyright: ignore[reportArgumentType]
            image_std=self.vision_tower.image_std,  # pyright: ignore[reportArgumentType]
            aspect_mode=self.config.aspect_mode(),
            **self.config.tiling(),
            **self.config.view_rules(self.tokens_per_image, self.vision_tower.image_size),
        )

    def initialize_continuous_autoregressive_modules(
        self, config: ReconstructionConfig | Mapping[str, Any] | None = None
    ) -> AutoregressiveReconstructionModule:
        """Adds the next-frame loss, once; before the model is wrapped and after it was decided what is trained.

        Where the tower is frozen its own features are the targets, else those of a copy as it is now.

        Args:
            config: `ReconstructionConfig` or a dict of its keys; None = what `config.reconstruction` holds.

        Raises:
            ValueError: nothing is configured, or the modules are there with other settings.
        """
        if config is None and self.config.reconstruction is None:
            raise ValueError(
                "no settings of the next-frame loss were given and config.reconstruction is None; give a dict of keys, "
                "{'embedding_dim': None} for all defaults"
            )
        wanted = ReconstructionConfig.read(self.config.reconstruction if config is None else config)
        present = self.autoregressive_reconstruction
        if self.scene_split is not None:
            raise ValueError(
                "the next-frame loss is asked for and the model has scene_split: the loss reads the slots of a frame "
                "in the order of its grid, which the split changes; train them one after the other"
            )
        if present is not None:
            if present.config != wanted:
                raise ValueError(
                    f"the next-frame loss is there with {present.config}, found {wanted}; build the model again"
                )
            return present
        with torch.random.fork_rng(devices=[]):  # what is drawn later in the run stays as without it
            module = create_autoregressive_reconstruction_module(
                self.vision_tower,
                self.llm.config.hidden_size,
                wanted,
                token_order=self.mm_projector.config.token_order,
            )
        like = next(self.mm_projector.parameters(), next(self.llm.parameters()))
        for part in (module.predictor, module.conditions):
            part.to(device=like.device, dtype=like.dtype)
        self.autoregressive_reconstruction = module
        self.config.reconstruction = wanted.to_dict()
        return module

    def initialize_scene_split(self, config: SceneSplitConfig | Mapping[str, Any] | None = None) -> SceneSplitModule:
        """Adds the background/object split, once, before the model is wrapped: modules, and tokens around the groups.

        Own parts begin as copies of the model's, as they are now; pre-fusion begins as the identity.

        Args:
            config: `SceneSplitConfig` or a dict of its keys; None = what `config.scene_split` holds.

        Raises:
            ValueError: nothing is configured, the split is there with other settings, or this model cannot be split.
        """
        return add_scene_split(self, config)

    def frame_surprise(self, frames: Any, prompt: str | None = None, **options: Any) -> Float[Tensor, "v t"]:
        """How wrong the prediction of each frame of a clip was, of a model loaded with `surprise=True`; NaN = unknown.

        frames: uint8 [T, 3, H, W] or [V, T, 3, H, W], a `llava.Video` or a list of pictures. Options (times, motions,
        context, window, overlap): `autoregressive_reconstruction.surprise.clip_errors`.
        """
        from llava.model.autoregressive_reconstruction.surprise import frame_surprise

        return frame_surprise(self, frames, prompt, **options)  # pyright: ignore[reportArgumentType]

    def set_trainable(
        self, *, language_model: bool, vision_tower: bool, mm_projector: bool, **split_parts: bool | None
    ) -> None:
        """Freezes or frees whole parts; what nothing reaches stays frozen: tower layers behind the selected one, and
        the projector of a model whose groups have their own.

        split_parts: parts of `scene_split` by name; None = as the part that they began as a copy of, and pre-fusion as
        the projector.
        """
        self.llm.requires_grad_(language_model)
        self.set_vision_trainable(vision_tower=vision_tower, mm_projector=mm_projector, **split_parts)

    def set_vision_trainable(self, *, vision_tower: bool, mm_projector: bool, **split_parts: bool | None) -> None:
        """As `set_trainable`; the language model stays as it is."""
        self.vision_tower.requires_grad_(vision_tower)
        self.mm_projector.requires_grad_(mm_projector)
        if self.scene_split is not None:
            self.scene_split.set_trainable(vision_tower=vision_tower, mm_projector=mm_projector, **split_parts)
            if self.scene_split.object_projector is not None:
                self.mm_projector.requires_grad_(False)

    def freeze_to_eval(self) -> None:
        """Puts wholly frozen parts into eval mode; called by each training forward pass.

        Of a frozen language model the layers themselves stay in training mode, by which transformers decides whether
        activations are recomputed; everything inside them (dropout, routing noise) does not.
        """
        split = () if self.scene_split is None else self.scene_split.children()
        for part in (self.vision_tower, self.mm_projector, *split):
            if part.training and not is_trainable(part):
                part.eval()
        if not is_trainable(self.llm):
            for module in self.llm.modules():
                module.training = module.training and isinstance(module, (PreTrainedModel, GradientCheckpointingLayer))
