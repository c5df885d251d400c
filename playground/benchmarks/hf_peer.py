"""transformers' own LLaVA with the weights of one of our models: the peer that runs beside ours in one process."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers import LlavaConfig as PeerConfig
from transformers import LlavaForConditionalGeneration as Peer

from llava.model.builder import build_model

PROJECTOR = {
    "linear_1.weight": "0.weight",
    "linear_1.bias": "0.bias",
    "linear_2.weight": "2.weight",
    "linear_2.bias": "2.bias",
}
"""Name in the peer's projector -> name in the layers of ours (mlp2x_gelu)."""


def build_ours(size: Any) -> Any:
    """A Llama + CLIP model with random weights; the last row of the vocabulary is `<image>`."""
    heads = {"num_attention_heads": size.heads, "num_hidden_layers": size.layers}
    language_model = {
        "model_type": "llama",
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": 3 * size.width,
        "num_key_value_heads": size.key_value_heads,
        "max_position_embeddings": 8192,
        **heads,
    }
    tower = {
        "model_type": "clip_vision_model",
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "hidden_size": size.tower_width,
        "intermediate_size": 4 * size.tower_width,
        "num_attention_heads": max(1, size.tower_width // 64),
        "num_hidden_layers": size.tower_layers,
    }
    config = {"llm_cfg": language_model, "vision_tower_cfg": tower, "mm_projector_cfg": "mlp2x_gelu"}
    return build_model({**config, "image_token_id": size.vocabulary - 1})


def peer_of(ours: Any) -> nn.Module:
    """The peer with the same weights, copied part by part."""
    placeholder: dict[str, Any] = {"image_token_id": ours.config.image_token_id}
    model = Peer(
        PeerConfig(
            text_config=LlamaConfig(**_settings(ours.llm.config)),
            vision_config=CLIPVisionConfig(**_settings(ours.vision_tower.config)),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            projector_hidden_act="gelu",
            **placeholder,
        )
    )
    inner: Any = model.model
    inner.vision_tower.load_state_dict(ours.vision_tower.vision_tower.state_dict())
    inner.language_model.load_state_dict(ours.llm.model.state_dict())
    model.lm_head.load_state_dict(ours.llm.lm_head.state_dict())
    layers = ours.mm_projector.layers.state_dict()
    inner.multi_modal_projector.load_state_dict({theirs: layers[mine] for theirs, mine in PROJECTOR.items()})
    return model


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "model_type"}
