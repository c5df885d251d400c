"""Layers in front of the language model in which objects meet their background and text meets both, in that order only.

    background -> sees its own background          (so it can be computed ahead and kept)
    objects    -> see their background and the objects of their own and earlier frames
    text       -> sees the text and the pictures before it

Decoder layers of transformers that begin as the identity: their last projections start at zero, so a model in which
they are switched on answers as before, until they are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from llava.model.scene_split.prefix import KvPrefix

OUTSIDE, BACKGROUND, OBJECT, TEXT = -1, 0, 1, 2
"""Kinds of tokens; OUTSIDE are padding and answers: they pass unchanged and nobody sees them."""


@dataclass(frozen=True, kw_only=True)
class FusionPlan:
    """What each token of a batch of rows is; all [B, S].

    Attributes:
        kinds: OUTSIDE, BACKGROUND, OBJECT or TEXT; separators count as text.
        scene_ids: which picture or clip of the row a background or object token belongs to; not read for text.
        frame_ids: which frame of its clip an object token belongs to; 0 for pictures.
        position_ids: as for the language model.
        segment_ids: samples packed in a row; None = one.
    """

    kinds: Int[Tensor, "b s"]
    scene_ids: Int[Tensor, "_ _"]
    frame_ids: Int[Tensor, "_ _"]
    position_ids: Int[Tensor, "_ _"]
    segment_ids: Int[Tensor, "b s"] | None = None

    def __post_init__(self) -> None:
        shape, kinds = self.kinds.shape, (self.scene_ids, self.frame_ids, self.position_ids)
        if any(each.shape != shape for each in kinds):
            shapes = [list(each.shape) for each in (self.kinds, *kinds)]
            raise ValueError(f"kinds, scene_ids, frame_ids and position_ids have shapes {shapes}, expected the same")

    def part(self, start: int, stop: int | None = None) -> FusionPlan:
        """Columns start..stop."""
        fields = {name: getattr(self, name) for name in ("kinds", "scene_ids", "frame_ids", "position_ids")}
        segments = None if self.segment_ids is None else self.segment_ids[:, start:stop]
        return FusionPlan(**{name: value[:, start:stop] for name, value in fields.items()}, segment_ids=segments)

    def may_attend(self) -> Bool[Tensor, "b s s"]:
        """True where the query (row) sees the key (column); every token sees itself, so no row is empty."""
        order = torch.arange(self.kinds.shape[1], device=self.kinds.device)
        not_after = order[None, :] <= order[:, None]
        q, k = self.kinds[:, :, None], self.kinds[:, None, :]
        same_scene = self.scene_ids[:, :, None] == self.scene_ids[:, None, :]
        no_later_frame = self.frame_ids[:, None, :] <= self.frame_ids[:, :, None]
        seen = (q == BACKGROUND) & (k == BACKGROUND) & same_scene
        seen |= (q == OBJECT) & same_scene & ((k == BACKGROUND) | ((k == OBJECT) & no_later_frame))
        seen |= (q == TEXT) & (k != OUTSIDE) & not_after
        if self.segment_ids is not None:
            seen &= self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        return seen | torch.eye(len(order), dtype=torch.bool, device=order.device)


def prefusion_config(llm_config: Any, num_layers: int) -> LlamaConfig:
    """Settings of the layers: the widths of the language model, whatever its family."""
    if num_layers < 1:
        raise ValueError(f"prefusion_layers is {num_layers}, expected at least 1; 0 means that there is no Prefusion")
    return LlamaConfig(
        hidden_size=llm_config.hidden_size,
        intermediate_size=llm_config.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=llm_config.num_attention_heads,
        num_key_value_heads=getattr(llm_config, "num_key_value_heads", None) or llm_config.num_attention_heads,
        head_dim=getattr(llm_config, "head_dim", None),
        max_position_embeddings=llm_config.max_position_embeddings,
        vocab_size=1,  # there is no embedding
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )


class Prefusion(nn.Module):
    """[B, S, D] -> [B, S, D]: background, objects and text fused; tokens that are OUTSIDE come back as they went in."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.rotary = LlamaRotaryEmbedding(config)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights, and zeros where a layer adds to its input."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
        for layer in self.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)  # pyright: ignore
            nn.init.zeros_(layer.mlp.down_proj.weight)  # pyright: ignore

    def forward(self, tokens: Float[Tensor, "b s d"], plan: FusionPlan) -> Float[Tensor, "b s d"]:
        """All tokens of the rows at once, as in training."""
        if plan.kinds.shape != tokens.shape[:2]:
            raise ValueError(f"the plan is for {list(plan.kinds.shape)} tokens, found {list(tokens.shape[:2])}")
        fused = self._run(tokens, plan.position_ids, plan.may_attend()[:, None], None)
        return torch.where((plan.kinds == OUTSIDE)[..., None], tokens, fused)

    def fuse_background(
        self, tokens: Float[Tensor, "1 n d"], position_ids: Int[Tensor, "1 n"]
    ) -> tuple[Float[Tensor, "1 n d"], KvPrefix]:
        """The background of one picture by itself, and what its objects and its text need of it later.

        A pass of its own, shaped by this background alone: the same bits for every request.
        """
        cache = DynamicCache()
        everything = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
        return self._run(tokens, position_ids, everything, cache), KvPrefix.of(cache)

    def fuse_rest(
        self, tokens: Float[Tensor, "1 m d"], plan: FusionPlan, is_background: Bool[Tensor, "s"], background: KvPrefix
    ) -> Float[Tensor, "1 m d"]:
        """All other tokens of a row behind a background that is known.

        Args:
            tokens: those that are not in the background, in the order of the row.
            plan: of the whole row, [1, S].
            is_background: which columns of the row `background` stands for.

        Raises:
            ValueError: where the background has another number of tokens.
        """
        if int(is_background.sum()) != background.length or int((~is_background).sum()) != tokens.shape[1]:
            raise ValueError(
                f"the row has {int(is_background.sum())} background tokens and {int((~is_background).sum())} others, "
                f"found {background.length} and {tokens.shape[1]}"
            )
        own = ~is_background
        mask = plan.may_attend()[0]
        known, new = mask[own][:, is_background], mask[own][:, own]
        cache = background.share()
        fused = self._run(tokens, plan.position_ids[:, own], torch.cat([known, new], dim=1)[None, None], cache)
        return torch.where((plan.kinds[:, own] == OUTSIDE)[..., None], tokens, fused)

    def _run(self, tokens: Tensor, position_ids: Tensor, mask: Bool[Tensor, "b 1 q k"], cache: Any) -> Tensor:
        places = self.rotary(tokens, position_ids)
        hidden = tokens
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=places,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return hidden
