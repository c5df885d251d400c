"""A training pass of which every rank of a group computes a part: pictures, columns, and its own share of the loss.

The sum of the ranks' losses is the loss of the batch, and the sum of their gradients its gradient. Whole rows exist
only as ids and labels; embeddings and all activations of the language model are parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.attention import PADDING_SEGMENT, position_ids_of
from llava.model.autoregressive_reconstruction.batches import Clips, outputs_of, reconstruct
from llava.model.loss import normalise, supervised_loss_sum, supervised_rows
from llava.model.media_embedding import TokenRows, as_batch, placeholders_are_expanded
from llava.model.outputs import LlavaOutput, states_of
from llava.model.sequence_parallel.collectives import gather
from llava.model.sequence_parallel.groups import SequenceGroup
from llava.model.sequence_parallel.layout import build_split_layout
from llava.model.sequence_parallel.split import ColumnSplit, whole_rows

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM


@dataclass(frozen=True, kw_only=True)
class WholeRows:
    """The padded rows of a batch; the same on every rank of the group. branches is None where there are none."""

    input_ids: Int[Tensor, "b s"]
    is_image: Bool[Tensor, "b s"]
    labels: Int[Tensor, "b s"]
    segments: Int[Tensor, "b s"]
    branches: Int[Tensor, "b s"] | None
    position_ids: Int[Tensor, "b s"]

    @property
    def branch_ids(self) -> Int[Tensor, "b s"]:
        return torch.zeros_like(self.segments) if self.branches is None else self.branches


def split_forward(
    model: LlavaCausalLM,
    group: SequenceGroup,
    tokens: TokenRows,
    *,
    images: Any = None,
    image_sizes: Tensor | None = None,
    video_frames: Tensor | None = None,
    clips: Clips | None = None,
    num_items_in_batch: Any = None,
    num_reconstruction_items: Any = None,
    autoregressive_weight: float | None = None,
    **kwargs: Any,
) -> LlavaOutput:
    """What `LlavaCausalLM.forward` returns for a training pass with labels, this rank's share of it.

    Takes its arguments, the same on every rank of the group; kwargs go to the language model.

    Raises:
        ValueError: for ranks with different batches, and for placeholders that are not expanded.
    """
    _check_placeholders(model, tokens, model.tokens_of_pictures(images, image_sizes))
    _check_same_batch(tokens, group)
    split = ColumnSplit(tokens.input_ids.shape[1], group.config)
    rows = _whole_rows(tokens, split, model.image_token_id)
    predictor = model.autoregressive_reconstruction
    shares = predictor is not None and clips is not None and predictor.teacher.is_shared
    with outputs_of(model.vision_tower, wanted=shares) as tower_outputs:
        features = _encode_together(model, images, image_sizes, group)
    kwargs.pop("return_dict", None)
    if predictor is not None and predictor.config.aux_layer != -1:
        kwargs["output_hidden_states"] = True
    decoded = model.llm.get_decoder()(
        inputs_embeds=_embed_part(model, rows, features, split, group),
        attention_mask=rows.segments.new_empty(0, 0, 0, 0, dtype=torch.bool),  # there is nothing to build
        position_ids=split.cut(rows.position_ids, group.rank),
        packed_layout=build_split_layout(rows.segments, rows.branches, split, group),
        use_cache=False,
        **kwargs,
    )
    output = _token_loss(model, decoded, rows, split, group, num_items_in_batch)
    if predictor is not None:
        found = reconstruct(
            predictor,
            whole_rows(states_of(decoded, predictor.config.aux_layer), split, group),
            images=None if images is None else as_batch(images),
            tower_features=_whole_features(tower_outputs, images, image_sizes, group),
            video_frames=video_frames,
            clips=clips,
            segment_ids=rows.segments[:, : split.length],
            branch_ids=rows.branch_ids[:, : split.length],
        )
        # frames and states lie on different ranks, so each predicts all frames and counts for its share
        share = replace(found, loss_sum=found.loss_sum / group.size)
        model.add_reconstruction(output, share, num_reconstruction_items, autoregressive_weight)
    return output


# ---- rows ----


def _whole_rows(tokens: TokenRows, split: ColumnSplit, image_token_id: int) -> WholeRows:
    ids, branches = tokens.input_ids, tokens.branch_ids
    segments = torch.zeros_like(ids) if tokens.segment_ids is None else tokens.segment_ids
    segments = segments.masked_fill(~tokens.is_token(), PADDING_SEGMENT)
    positions = tokens.position_ids
    if positions is None:
        positions = position_ids_of(segments, torch.zeros_like(ids) if branches is None else branches)
    has_branches = branches is not None and bool((branches != 0).any())
    assert tokens.labels is not None
    return WholeRows(
        input_ids=split.pad(ids, 0),
        is_image=split.pad(ids == image_token_id, False),
        labels=split.pad(tokens.labels, IGNORE_INDEX),
        segments=split.pad(segments, PADDING_SEGMENT),
        branches=split.pad(branches, 0) if has_branches and branches is not None else None,
        position_ids=split.pad(positions, 0),
    )


def _check_placeholders(model: LlavaCausalLM, tokens: TokenRows, counts: Sequence[int]) -> None:
    is_image = tokens.input_ids == model.image_token_id
    if not placeholders_are_expanded(is_image, counts, model.tokens_per_image):
        raise ValueError(
            f"sequence parallelism needs rows in which every picture has its {model.tokens_per_image} placeholders; "
            "expand them with mm_utils.expand_image_tokens (the data side of this package does)"
        )


def _check_same_batch(tokens: TokenRows, group: SequenceGroup) -> None:
    ids = tokens.input_ids
    columns = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    own = torch.stack([ids.new_tensor(ids.shape[0]), ids.new_tensor(ids.shape[1]), (ids * columns).sum()])
    found = gather(own, group.everyone)
    if bool((found != own).any()):
        raise ValueError(
            f"the ranks of a sequence group have different batches (rows, columns, checksum of ids: {found.tolist()}), "
            "expected one batch for all; let the sampler deal batches to groups, as LLaVATrainer does"
        )


# ---- pictures ----


def _embed_part(
    model: LlavaCausalLM,
    rows: WholeRows,
    features: Float[Tensor, "n t d"] | None,
    split: ColumnSplit,
    group: SequenceGroup,
) -> Float[Tensor, "b l d"]:
    """Embeddings of this rank's columns, with the visual tokens that lie among them."""
    is_here = split.cut(rows.is_image, group.rank)
    if features is not None:
        number = (rows.is_image.flatten().long().cumsum(0) - 1).view(rows.is_image.shape)
        features = features.flatten(0, 1)[split.cut(number, group.rank)[is_here]][None]
    return model.embed_multimodal(split.cut(rows.input_ids, group.rank), is_here, features)


def _encode_together(
    model: LlavaCausalLM, images: Any, image_sizes: Tensor | None, group: SequenceGroup
) -> Float[Tensor, "n t d"] | None:
    """All visual tokens of the batch; each rank encodes its share of the pictures.

    Pictures that are cut into views are encoded by every rank: their views belong together.
    """
    if images is None or len(pictures := as_batch(images)) == 0:
        return None
    if image_sizes is not None:
        return model.encode_pictures(images, image_sizes)
    share = -(-len(pictures) // group.size)
    mine = pictures[group.rank * share : (group.rank + 1) * share]
    blank = pictures.new_zeros(share - len(mine), *pictures.shape[1:])
    return gather(model.encode_pictures(torch.cat([mine, blank]), None), group.everyone).flatten(0, 1)[: len(pictures)]


def _whole_features(
    tower_outputs: list[Tensor], images: Any, image_sizes: Tensor | None, group: SequenceGroup
) -> Tensor | None:
    """What the tower made of all pictures, from what it made of each rank's share."""
    if not tower_outputs:
        return None
    if image_sizes is not None:
        return tower_outputs[0]
    return gather(tower_outputs[0].detach(), group.everyone).flatten(0, 1)[: len(as_batch(images))]


# ---- losses ----


def _token_loss(
    model: LlavaCausalLM, decoded: Any, rows: WholeRows, split: ColumnSplit, group: SequenceGroup, num_items: Any
) -> LlavaOutput:
    """The losses of the rows that this rank holds, over the number of supervised tokens of all ranks."""
    index, targets = supervised_rows(rows.labels, rows.segments, rows.branch_ids)
    num_targets = len(targets)
    place = split.places(group.rank).to(index.device)[index % split.padded]
    index = (index // split.padded * split.per_rank + place)[place >= 0]
    hidden = decoded.last_hidden_state.flatten(0, 1)[index]
    time_tokens = list(model.config.time_token_ids or ()), model.config.soft_ce_std
    loss_sum = supervised_loss_sum(hidden, targets[place >= 0], model.to_logits, *time_tokens)
    loss = normalise(loss_sum, num_targets, num_items)
    return LlavaOutput(loss=loss, loss_terms={"main_loss": loss.detach()}, hidden_states=decoded.get("hidden_states"))
