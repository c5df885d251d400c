"""What cannot be split over ranks, said before a run begins."""

from __future__ import annotations

from typing import Any

from llava.model.attention import PACKED_ATTENTION, layer_windows
from llava.model.sequence_parallel.groups import SequenceParallelConfig
from llava.model.sequence_parallel.ulysses import check_heads

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def check_model(model: Any, config: SequenceParallelConfig) -> None:
    """Raises ValueError, with the reason, for a model that would compute something else in parts than as a whole."""
    llm = model.llm.config
    implementation = llm._attn_implementation
    if implementation != PACKED_ATTENTION:
        raise ValueError(
            "sequence parallelism exchanges heads and keys inside attn_implementation 'sdpa', found "
            f"'{implementation}'; leave --attn_implementation out (capped attention scores cannot be split)"
        )
    check_heads(llm.num_attention_heads, config.ulysses_size)
    layer_windows(llm)
    rope = _rope_types(llm) & set(LENGTH_DEPENDENT_ROPE)
    if rope:
        raise ValueError(
            f"the language model's rotary embedding is of type '{min(rope)}', which depends on the length that one "
            "rank sees, expected 'default', 'linear', 'yarn' or 'llama3'; train without sequence parallelism"
        )
    dropout = getattr(llm, "attention_dropout", 0.0)
    if dropout and config.ring_size > 1:
        raise ValueError(
            f"attention_dropout is {dropout} and the ring computes none; set it to 0, or use Ulysses alone "
            "(--seq_parallel_ring_size 1)"
        )
    if getattr(llm, "output_router_logits", False):
        raise ValueError(
            "output_router_logits is True: the balance of a router is a mean over whole rows, which no rank has; "
            "set it to False, or train without sequence parallelism"
        )
    if getattr(model, "scene_split", None) is not None:
        raise ValueError(
            "the model has scene_split, whose background and object tokens are laid out anew in each pass; train it "
            "without sequence parallelism"
        )


def _rope_types(llm: Any) -> set[str]:
    """Of all layers: the parameters are one set, or one per kind of layer."""
    parameters = getattr(llm, "rope_parameters", None) or getattr(llm, "rope_scaling", None) or {}
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {str(found) for each in sets if (found := each.get("rope_type", each.get("type"))) is not None}
