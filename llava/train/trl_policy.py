"""A model of this package as the trainers of trl want it: a backbone under a language head, pictures as `pixel_values`.

trl computes log-probabilities itself, from the backbone's last states and the weights of the head, and asks `generate`
for the prompt and the new tokens; both differ from the model's own doors, so it is wrapped and not changed.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

INNER = "backbone.inner."
"""Before the names of the model's own weights."""


class PolicyConfig(PreTrainedConfig):
    """What trl reads of a model."""

    model_type = "llava_policy"
    __no_type_check__ = True  # configs of transformers take any keyword
    text_config: Any = None
    image_token_id: Any = None


class PolicyBackbone(nn.Module):
    """Everything below the language head."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        input_ids: Int[Tensor, "b s"],
        attention_mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"] | None = None,
        pixel_values: Any = None,
        image_sizes: Int[Tensor, "n 2"] | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`last_hidden_state` [B, S, D]; rows are padded on either side, or on both.

        Raises:
            ValueError: the rows lack visual tokens of a picture, as happens where they were cut.
        """
        inner = self.inner
        if self.training:
            inner.freeze_to_eval()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        is_image = input_ids == inner.config.image_token_id
        counts = inner.tokens_of_pictures(pixel_values, image_sizes)
        if int(is_image.sum()) != sum(counts):
            raise ValueError(
                f"the rows hold {int(is_image.sum())} visual tokens, the pictures have {sum(counts)}; let "
                "PolicyProcessor lay them out, and leave --max_length out, which would cut them"
            )
        features = inner.encode_pictures(pixel_values, image_sizes) if counts else None
        return inner.llm.get_decoder()(
            inputs_embeds=inner.embed_multimodal(input_ids, is_image, features),
            attention_mask=mask,
            position_ids=(mask.long().cumsum(dim=1) - 1).clamp(min=0),
            use_cache=use_cache,
            **kwargs,
        )


class Policy(PreTrainedModel, GenerationMixin):
    """The wrapper. It shares the model's weights and writes the model's own folders.

    Raises:
        ValueError: a model that cannot be trained this way.
    """

    config_class: ClassVar[type[PreTrainedConfig]] = PolicyConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, inner: Any) -> None:
        _check(inner)
        super().__init__(PolicyConfig(text_config=inner.llm.config, image_token_id=inner.config.image_token_id))
        self.backbone = PolicyBackbone(inner)
        self.post_init()
        self.name_or_path = inner.name_or_path
        self.generation_config = copy.deepcopy(inner.llm.generation_config)
        self.generation_config.eos_token_id = inner.stop_token_ids()

    @property
    def inner(self) -> Any:
        return self.backbone.inner

    def init_weights(self) -> None:
        """Nothing: the model came with its weights."""

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.inner.get_output_embeddings()

    def forward(
        self,
        input_ids: Int[Tensor, "b s"],
        attention_mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"] | None = None,
        pixel_values: Any = None,
        image_sizes: Int[Tensor, "n 2"] | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of every position; trl asks for log-probabilities only, through its own head."""
        decoded = self.backbone(input_ids, attention_mask, pixel_values, image_sizes, use_cache, **kwargs)
        return CausalLMOutputWithPast(logits=self.inner.to_logits(decoded.last_hidden_state))

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Int[Tensor, "b s"], pixel_values: Any = None, image_sizes: Any = None, **kwargs: Any
    ) -> Int[Tensor, "b t"]:
        """The prompts and what follows them."""
        new = self.inner.generate(input_ids, pixel_values, image_sizes=image_sizes, **kwargs)
        return torch.cat([input_ids, new], dim=1)

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:  # pyright: ignore
        """The three folders of the model."""
        own = None if state_dict is None else {name.removeprefix(INNER): w for name, w in state_dict.items()}
        known = {name: value for name, value in kwargs.items() if name in ("is_main_process", "max_shard_size")}
        self.inner.save_pretrained(save_directory, state_dict=own, **known)


def reference_of(policy: Policy) -> Policy:
    """A frozen copy of a policy as it is now."""
    return Policy(copy.deepcopy(policy.inner)).requires_grad_(False).eval()


def _check(inner: Any) -> None:
    if inner.tokenizer is None or inner.config.version is None:
        raise ValueError(
            "the model has no tokenizer or no conversation template (config.version), expected a trained checkpoint"
        )
    if getattr(inner, "scene_split", None) is not None:
        raise ValueError(
            "the model has scene_split, whose sequences are laid out with masks of objects; train it by SFT"
        )
    if inner.visual_spec.view_rule is not None or inner.visual_spec.aspect_mode == "dynamic":
        raise ValueError(
            f"image_aspect_ratio is {inner.config.image_aspect_ratio!r}, whose pictures are cut into tiles; expected "
            "'resize', 'pad' or 'crop'"
        )
