"""InternViT as its own code stores it: `model_type` intern_vit_6b, of the 6B and the 300M model and of VILA-1.5-40b.

It is the tower that transformers has for InternVL, under other names, with the queries, keys and values of a layer one
below the other in one table:

    encoder.layers.N.attn.qkv            encoder.layer.N.attention.q_proj, .k_proj, .v_proj
    encoder.layers.N.attn.proj           encoder.layer.N.attention.projection_layer
    encoder.layers.N.norm1, norm2        encoder.layer.N.layernorm_before, layernorm_after
    encoder.layers.N.ls1, ls2            encoder.layer.N.lambda_1, lambda_2
    embeddings.class_embedding           embeddings.cls_token
    embeddings.position_embedding        embeddings.position_embeddings
    embeddings.patch_embedding           embeddings.patch_embeddings.projection
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from llava.model.checkpoints.plan import Plan
from llava.model.checkpoints.stored import StoredTensor, rows_of

MODEL_TYPE = "intern_vit_6b"
PROCESSOR = "InternVisionPreprocessor"
"""What VILA-1.5-40b names beside its tower, without any setting: a square by resizing, ImageNet's statistics."""

_SETTINGS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("hidden_size", 3200),
    "intermediate_size": ("intermediate_size", 12800),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "num_channels": ("num_channels", 3),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "hidden_act": ("hidden_act", "gelu"),
    "norm_type": ("norm_type", "rms_norm"),  # configs of the first 6B models do not have the key
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
    "attention_dropout": ("attention_dropout", 0.0),
    "dropout": ("projection_dropout", 0.0),  # only behind the attention
    "initializer_range": ("initializer_range", 0.02),
    "initializer_factor": ("layer_scale_init_value", 0.1),
}
"""Own key -> (key of transformers, value where a config leaves it out)."""
_QK_NORM_EPS = 1e-6  # fixed in transformers, layer_norm_eps in the own code

_LAYERS, _OWN_LAYERS = "encoder.layer.", "encoder.layers."
_OWN_NAMES = (
    (r"embeddings\.cls_token", "embeddings.class_embedding"),
    (r"embeddings\.position_embeddings", "embeddings.position_embedding"),
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"embeddings.patch_embedding.\1"),
    (r"encoder\.layer\.(\d+)\.lambda_([12])", r"encoder.layers.\1.ls\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(.+)", r"encoder.layers.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(.+)", r"encoder.layers.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.projection_layer\.(.+)", r"encoder.layers.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.[qkv]_proj\.(.+)", r"encoder.layers.\1.attn.qkv.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.([qk]_norm\..+)", r"encoder.layers.\1.attn.\2"),
    (r"encoder\.layer\.(\d+)\.(mlp\..+)", r"encoder.layers.\1.\2"),
)


def settings_of(stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keywords of transformers' config class.

    `drop_path_rate` is left out: transformers has no stochastic depth here, and VILA trains without it.

    Raises:
        ValueError: names `where` and a setting that transformers' tower cannot follow.
    """
    settings = {key: stored.get(own, default) for own, (key, default) in _SETTINGS.items()}
    if settings["norm_type"] not in ("rms_norm", "layer_norm"):
        raise ValueError(
            f"{where}: norm_type is {settings['norm_type']!r}, expected 'rms_norm' or 'layer_norm'; "
            "copy config.json again from where the tower came from"
        )
    if settings["use_qk_norm"] and settings["layer_norm_eps"] != _QK_NORM_EPS:
        raise ValueError(
            f"{where}: layer_norm_eps is {settings['layer_norm_eps']} with qk_normalization, expected {_QK_NORM_EPS}: "
            "transformers normalises queries and keys with that; use a tower that was trained so"
        )
    return {**settings, "use_mean_pooling": True}  # which means: no norm behind the last layer


def has_own_names(config: Any, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether weights of a tower that transformers calls InternVL's lie there under the own names."""
    return config.model_type == "internvl_vision" and any(name.startswith(_OWN_LAYERS) for name in tensors)


def own_name(name: str) -> str:
    """Where a weight of transformers' tower is stored; one that the own code does not have keeps its name."""
    for pattern, own in _OWN_NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(own)
    return name


def third_of(name: str) -> int | None:
    """Which third of the joined table a weight is; None for one that is stored alone."""
    match = re.search(r"\.attention\.([qkv])_proj\.", name)
    return None if match is None else "qkv".index(match[1])


def compare_own_names(plan: Plan, wanted: Mapping[str, tuple[int, ...]], explain: Callable[[str], str | None]) -> None:
    """Checks a tower under its own names, which errors then show, and gives its tensors those of transformers.

    Args:
        wanted: names and shapes of transformers' tower.
        explain: name in transformers' tower -> why it need not be stored.
    """
    own_shapes = {
        own_name(name): shape if third_of(name) is None else (3 * shape[0], *shape[1:])
        for name, shape in wanted.items()
    }
    plan.compare("vision_tower", own_shapes, lambda name: explain(name.replace(_OWN_LAYERS, _LAYERS)))
    if plan.missing or plan.unexpected or plan.misshapen:
        return  # nobody will read it, and the report shows what is stored
    part = plan.parts["vision_tower"]
    left_out = {name: plan.explained.get(f"vision_tower.{own_name(name)}") for name in wanted}
    for name in wanted:
        plan.explained.pop(f"vision_tower.{own_name(name)}", None)
    plan.explained |= {f"vision_tower.{name}": reason for name, reason in left_out.items() if reason}
    part.tensors = {
        name: _as_stored(part.tensors[own_name(name)], name, shape[0])
        for name, shape in wanted.items()
        if left_out[name] is None
    }


def _as_stored(stored: StoredTensor, name: str, num_rows: int) -> StoredTensor:
    third = third_of(name)
    return stored if third is None else rows_of(stored, third * num_rows, (third + 1) * num_rows)


def is_own_processor(settings: Mapping[str, Any]) -> bool:
    """Whether a processor's settings are but the name of VILA's class, which transformers does not have."""
    return settings.get("image_processor_type") == PROCESSOR
