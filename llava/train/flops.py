"""How many FLOPs a training step needs: 2 per weight and token forward, 2 for the gradient that passes through, 2 for
the gradient of the weight itself. So 6 where all is trained, 4 through a frozen part, 2 where nothing below learns.

Counted are matrix products and attention of what the loss needs. Recomputed activations, padding and rows of the
language head without a label are not, so that doing them does not look like speed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from llava.constants import IGNORE_INDEX
from llava.model.media_embedding import count_pictures
from llava.model.meta_model import LlavaMetaModel
from llava.model.utils import is_trainable
from llava.train.parts import numel, shape_of

logger = logging.getLogger(__name__)

GROUPED = "experts"
"""A weight of three dimensions below such a module holds one matrix per expert, of which each token passes some."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one batch asks of the model.

    Attributes:
        tokens: real positions, those of pictures included.
        pairs: (query, key) pairs of causal attention: n (n + 1) / 2 for each sample of n tokens.
        rows: positions with a label, the only ones that pass the language head.
        pictures: views that pass the vision tower.
        frames: frames that the next-frame loss predicts.
    """

    samples: int = 0
    tokens: int = 0
    pairs: int = 0
    rows: int = 0
    pictures: int = 0
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs per unit of `Work`, forward and backward."""

    per_token: float
    per_pair: float
    per_row: float
    per_picture: float
    per_frame: float = 0.0

    def of(self, work: Work) -> float:
        return (
            self.per_token * work.tokens
            + self.per_pair * work.pairs
            + self.per_row * work.rows
            + self.per_picture * work.pictures
            + self.per_frame * work.frames
        )


def work_of(batch: Mapping[str, Any], frames: int = 0) -> Work:
    """Counts a batch that is still in host memory."""
    ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
    lengths = sample_lengths(ids, mask, batch.get("segment_ids"))
    return Work(
        samples=int((lengths > 0).sum()),
        tokens=int(lengths.sum()),
        pairs=int((lengths * (lengths + 1) // 2).sum()),
        rows=0 if labels is None else int((labels != IGNORE_INDEX).sum()),
        pictures=count_pictures(batch.get("images")),
        frames=frames,
    )


def sample_lengths(ids: Tensor, mask: Tensor | None, segments: Tensor | None) -> Tensor:
    """Tokens of each sample [n], padding left out; a row holds one sample, or several where it is packed."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if segments is None:
        return real.sum(dim=1)
    real &= segments >= 0
    rows = torch.arange(len(ids))[:, None].expand_as(segments) * (int(segments.max()) + 1)
    return torch.bincount((rows + segments)[real])


def try_count_flops(model: Any) -> FlopCount | None:
    """`count_flops`; None, and a word about it, for a model that cannot be counted."""
    if not isinstance(model, LlavaMetaModel):
        logger.info("mfu is left out: FLOPs are counted for models of this package, this is a %s", type(model).__name__)
        return None
    try:
        return count_flops(model)
    except NotImplementedError as error:
        logger.warning("mfu is left out: the FLOPs of this tower cannot be counted: %s", error)
        return None


def count_flops(model: Any) -> FlopCount:
    """Of a model whose trained parts are chosen and whose weights no engine has spread yet (ZeRO-3's are fine).

    Raises:
        NotImplementedError: the tower computes something whose work depends on the values in a picture.
    """
    split = getattr(model, "scene_split", None)
    below = [model.vision_tower, model.mm_projector, *([] if split is None else [split])]
    backward = any(map(is_trainable, [*below, model.llm]))
    config = model.llm.config.get_text_config()
    head = model.llm.get_output_embeddings().weight
    per_picture = _of_picture(model)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return FlopCount(
        per_token=float(sum(n * _factor(backward, p.requires_grad) for p, n in _token_weights(model.llm, config))),
        per_pair=4.0 * width * config.num_hidden_layers * (3 if backward else 1),
        per_row=float(numel(head) * _factor(backward, head.requires_grad)),
        per_picture=per_picture,
        per_frame=_of_frame(model),
    )


def _factor(passes_gradient: bool, is_trained: bool) -> int:
    return 2 + 2 * passes_gradient + 2 * is_trained


def _token_weights(llm: Any, config: Any) -> Iterable[tuple[nn.Parameter, float]]:
    """Each matrix that every token is multiplied with, and how many of its entries."""
    apart = {id(llm.get_output_embeddings().weight), id(llm.get_input_embeddings().weight)}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    share = (getattr(config, "num_experts_per_tok", None) or experts) / experts
    for name, parameter in llm.named_parameters():
        if id(parameter) in apart or len(shape_of(parameter)) < 2:
            continue
        yield parameter, numel(parameter) * (share if GROUPED in name.split(".") else 1.0)


def _of_picture(model: Any) -> float:
    """Tower and projector, counted once on weights without storage: convolutions, scales and attention included."""
    tower, projector = model.vision_tower, model.mm_projector
    side = tower.image_size
    pixels = torch.empty(1, 3, side, side, device="meta", dtype=torch.uint8)
    seen, features = _forward_flops(tower, pixels)
    projected, _ = _forward_flops(projector, features)
    learns = is_trainable(tower)  # what a part takes in has a gradient then
    return seen * _passes(tower, learns) + projected * _passes(projector, learns or is_trainable(projector))


def _passes(part: nn.Module, passes_gradient: bool) -> float:
    """Forward, gradient through it, and the trained share of its matrices."""
    weights = [(numel(p), p.requires_grad) for p in part.parameters() if len(shape_of(p)) > 1]
    total = sum(n for n, _ in weights)
    return 1 + passes_gradient + (sum(n for n, trained in weights if trained) / total if total else 0.0)


def _forward_flops(part: nn.Module, *inputs: Tensor) -> tuple[float, Tensor]:
    named = [*part.named_parameters(), *part.named_buffers()]
    hollow = {name: torch.empty(shape_of(p), device="meta", dtype=_float_or(p)) for name, p in named}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = functional_call(part, hollow, inputs)
    return float(counter.get_total_flops()), output


def _float_or(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _of_frame(model: Any) -> float:
    """Predictor per predicted frame, and the teacher where it is a copy; the attention to states is left out."""
    module = getattr(model, "autoregressive_reconstruction", None)
    if module is None:
        return 0.0
    weights = [p for p in module.predictor.parameters() if len(shape_of(p)) > 1]
    tokens = module.target_side**2
    predictor = sum(numel(p) * _factor(True, p.requires_grad) for p in weights) * tokens
    if module.teacher.is_shared:
        return float(predictor)
    side = module.teacher.tower.image_size
    pixels = torch.empty(1, 3, side, side, device="meta", dtype=torch.uint8)
    return predictor + _forward_flops(module.teacher.tower, pixels)[0]
