"""Pictures take their slots: placeholders are counted, expanded where a caller did not, and written in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.attention import PADDING_SEGMENT, position_ids_of

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """What `forward` gets of the tokens, all [B, S]; None where it was not given."""

    input_ids: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    labels: Tensor | None = None
    segment_ids: Tensor | None = None
    branch_ids: Tensor | None = None

    def is_token(self) -> Bool[Tensor, "b s"]:
        """False on padding."""
        real = torch.ones_like(self.input_ids, dtype=torch.bool)
        if self.attention_mask is not None:
            real = real & self.attention_mask.bool()
        return real if self.segment_ids is None else real & (self.segment_ids != PADDING_SEGMENT)

    def positions(self) -> Int[Tensor, "b s"]:
        """Those that were given, else as the language model counts."""
        if self.position_ids is not None:
            return self.position_ids
        if self.segment_ids is None and self.branch_ids is None:
            return (self.is_token().long().cumsum(dim=1) - 1).clamp(min=0)
        segments = torch.zeros_like(self.input_ids) if self.segment_ids is None else self.segment_ids
        return position_ids_of(segments, torch.zeros_like(segments) if self.branch_ids is None else self.branch_ids)

    def gathered(self, order: Int[Tensor, "b u"]) -> TokenRows:
        """Other columns of every row."""
        given: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        gathered = {name: value.gather(1, order) for name, value in given.items() if value is not None}
        return TokenRows(**gathered)


def count_pictures(images: Any) -> int:
    """Pictures in [N, 3, H, W], [B, n, 3, H, W], a list of either, or None."""
    if images is None:
        return 0
    if isinstance(images, Tensor):
        return images.shape[:-3].numel()
    return sum(count_pictures(picture) for picture in images)


def as_batch(images: Any) -> Tensor:
    """[N, 3, H, W] of what `count_pictures` counts."""
    if not isinstance(images, Tensor):
        images = torch.cat([picture if picture.ndim == 4 else picture[None] for picture in images])
    return images.flatten(0, 1) if images.ndim == 5 else images


def unify_image_token(input_ids: Int[Tensor, "b s"], image_token_id: int) -> Int[Tensor, "b s"]:
    """-200, accepted at every door, becomes the tokenizer's `<image>` id."""
    return input_ids.masked_fill(input_ids == IMAGE_TOKEN_INDEX, image_token_id)


def placeholders_are_expanded(is_image: Bool[Tensor, "b s"], counts: Sequence[int], tokens_per_image: int) -> bool:
    """True when every picture already has all its slots (`counts`), False when every picture has one placeholder.

    Raises:
        ValueError: the text asks for another number of pictures than were given; names picture, expected, found.
    """
    found = int(is_image.sum())
    if found == sum(counts):
        return True
    if found == len(counts):
        return False
    if any(count != tokens_per_image for count in counts):
        raise ValueError(
            f"{len(counts)} pictures need {len(counts)} placeholders, or {sum(counts)} expanded ones "
            f"({', '.join(map(str, counts))}), found {found}; use mm_utils.expand_image_tokens with these counts"
        )
    raise ValueError(_describe_mismatch(is_image, len(counts), tokens_per_image, found))


def _describe_mismatch(is_image: Tensor, num_images: int, tokens_per_image: int, found: int) -> str:
    expected = f"{num_images} pictures need {num_images} placeholders, or {num_images * tokens_per_image} expanded ones"
    broken = _broken_picture(is_image, tokens_per_image) if found >= tokens_per_image > 1 else None
    if broken is not None:
        return f"{broken}, expected {tokens_per_image}; {expected}, found {found}; use mm_utils.expand_image_tokens"
    is_expanded = tokens_per_image > 1 and found > 0 and found % tokens_per_image == 0
    asked = found // tokens_per_image if is_expanded else found
    lack = "has no placeholder in the text" if asked < num_images else "is asked for by the text but was not given"
    return f"picture {min(asked, num_images)} {lack}: {expected}, found {found}; give one picture per <image>, in order"


def _broken_picture(is_image: Tensor, tokens_per_image: int) -> str | None:
    """The first picture (counted from 0) whose run of placeholders is too short or too long."""
    edges = torch.nn.functional.pad(is_image.long(), (1, 1)).diff(dim=1)
    begins, ends = (edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist()
    before = 0
    for (row, begin), (_, end) in zip(begins, ends, strict=True):
        whole, rest = divmod(end - begin, tokens_per_image)
        if rest:
            return f"picture {before + whole} (row {row}, columns {begin}..{end - 1}) has {rest} placeholders"
        before += whole
    return None


def write_features(
    embeds: Float[Tensor, "b s d"], is_image: Bool[Tensor, "b s"], features: Float[Tensor, "n t d"]
) -> Float[Tensor, "b s d"]:
    """The one masked write: slot after slot in reading order takes the next visual token."""
    return embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))


def expand_rows(
    input_ids: Int[Tensor, "b s"],
    labels: Int[Tensor, "b s"],
    attention_mask: Bool[Tensor, "b s"],
    counts: Sequence[int],
    image_token_id: int,
) -> tuple[Int[Tensor, "b u"], Int[Tensor, "b u"], Bool[Tensor, "b u"]]:
    """Gives every picture its slots, with the function that the data side uses; rows come back right-padded."""
    from llava.mm_utils import expand_image_tokens

    ids_rows, label_rows, left = [], [], list(counts)
    for ids, label, mask in zip(input_ids, labels, attention_mask, strict=True):
        here = int((ids[mask] == image_token_id).sum())
        new_ids, new_labels = expand_image_tokens(ids[mask], label[mask], left[:here], image_token_id)
        left = left[here:]
        ids_rows.append(new_ids)
        label_rows.append(new_labels)
    mask_rows = [torch.ones_like(row, dtype=torch.bool) for row in ids_rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids_rows, True), pad(label_rows, True, IGNORE_INDEX), pad(mask_rows, True, 0)


def move_padding(attention_mask: Bool[Tensor, "b s"], side: PaddingSide) -> Int[Tensor, "b s"]:
    """For each row the order of columns that puts its padding on one side and keeps the tokens in order."""
    padding_last = attention_mask.long() if side == "left" else (~attention_mask).long()
    return padding_last.argsort(dim=1, stable=True)
