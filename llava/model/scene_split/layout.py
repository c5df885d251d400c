"""Where background, objects and text stand: slots, positions and the chain of blocks that a cache can know.

    system text  [BG_START] background [BG_END]  [OBJ_START] objects [OBJ_END]  question
    |<--------------- what a prefix cache holds --------------->|

Every picture stands where its placeholder stood. What comes before the objects never depends on them, neither in order
nor in position, so any objects can follow a prefix that was computed once. Both groups keep their separators when they
are empty: with them, a picture takes `num_places + 4` slots however it is split.

Positions, with N places per picture (`SceneSplitConfig.positions`):

- "in_place": each token stands where it would stand in the unsplit picture, background and objects alike, so distances
  between patches and to the text are those that the model was trained with, and a place is told by its position. The
  picture takes N + 4 positions whatever was found: start tokens first, then the grid, then end tokens.
- "own_range": the background takes N + 2 positions and the objects N + 2 further ones, each token at its place in the
  range of its group; whatever is read later also has a greater position, at twice the range.
- "sequential": positions are counted, as if the tokens were text. Objects do not tell their place, and the question
  moves with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.scene_split.config import NUM_SEPARATORS, POSITIONS
from llava.model.scene_split.separators import Separators
from llava.utils.registry import suggest


@dataclass(frozen=True, kw_only=True)
class Block:
    """Slots start..stop of one kind: "text", "background" or "objects"; separators belong to their group."""

    kind: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class SceneLayout:
    """Slots of one picture in the order in which they are read.

    Attributes:
        token_ids: separators, and `image_token_id` where a visual token is written: backgrounds first, then objects.
        position_ids: relative to the first position of the picture.
        num_positions: how far the text behind the picture moves; free of the number of objects but for "sequential".
        blocks: background, then objects, in slots of this picture.
    """

    token_ids: Int[Tensor, "n"]
    position_ids: Int[Tensor, "n"]
    num_positions: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class LayoutRule:
    """What all pictures of a model have in common.

    Attributes:
        num_places: visual tokens of an unsplit picture.
        image_token_id: id of a slot into which a visual token is written.
        separators: None = the groups follow each other without any.
        positions: see the head of this file.
    """

    num_places: int
    image_token_id: int
    separators: Separators | None
    positions: str = "in_place"

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            hint = suggest(str(self.positions), list(POSITIONS))
            raise ValueError(f"positions is {self.positions!r}, expected one of {POSITIONS}{hint}")
        if self.num_places < 1:
            raise ValueError(f"num_places is {self.num_places}, expected the visual tokens of a picture, at least 1")

    @property
    def num_slots(self) -> int:
        """Of a picture with its background, however it is split."""
        return self.num_places + (NUM_SEPARATORS if self.separators else 0)


def layout_picture(
    rule: LayoutRule,
    background: Int[Tensor, "b"] | None,
    objects: Int[Tensor, "o"] | None,
    *,
    may_overlap: bool = False,
) -> SceneLayout:
    """One picture, from the ascending places of its tokens.

    Args:
        may_overlap: places may stand in both groups: those of a background that was seen in another picture.
        background: None = a frame whose background came with an earlier frame of its clip: no slot, no separators.
        objects: None = a background without objects, to be computed ahead; an empty tensor keeps its separators.

    Raises:
        ValueError: for places that are not ascending numbers of 0..num_places - 1, and for a token in both groups.
    """
    if background is not None and objects is not None and not may_overlap:
        _check_disjoint(background, objects)
    return _lay_out(rule, background, objects)


def layout_clip(
    rule: LayoutRule, backgrounds: Sequence[Int[Tensor, "_"]], objects: Sequence[Int[Tensor, "_"]]
) -> list[SceneLayout]:
    """The frames of a clip, one layout per frame: a background for each, or one that comes with the first frame.

    The background of a clip and the objects of its frames may share places: each frame shows its own objects.

    Raises:
        ValueError: for another number of backgrounds.
    """
    if len(backgrounds) not in (1, len(objects)):
        raise ValueError(
            f"{len(backgrounds)} backgrounds for {len(objects)} frames, expected 1 (one for the clip) or "
            f"{len(objects)} (one per frame)"
        )
    if len(backgrounds) == len(objects):
        return [layout_picture(rule, *places) for places in zip(backgrounds, objects, strict=True)]
    first, *others = objects
    return [_lay_out(rule, backgrounds[0], first), *[_lay_out(rule, None, places) for places in others]]


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """A sequence with all its pictures laid out, unpadded; `input_ids` hold one placeholder per visual token."""

    input_ids: Int[Tensor, "s"]
    labels: Int[Tensor, "s"]
    position_ids: Int[Tensor, "s"]
    blocks: tuple[Block, ...]

    @property
    def prefix_length(self) -> int:
        """Slots up to the end of the first background: what stays when objects and question change; 0 = no picture."""
        return next((block.stop for block in self.blocks if block.kind == "background"), 0)


def layout_row(
    rule: LayoutRule, input_ids: Int[Tensor, "s"], labels: Int[Tensor, "s"] | None, pictures: Sequence[SceneLayout]
) -> RowLayout:
    """Puts every picture in the place of its one placeholder and gives each slot its position.

    `blocks` is the chain of keys of a prefix cache: system text, background, objects, question, and so on.

    Raises:
        ValueError: for another number of placeholders than pictures.
    """
    found = int((input_ids == rule.image_token_id).sum())
    if found != len(pictures):
        raise ValueError(
            f"the row has {found} placeholders and {len(pictures)} pictures, expected one placeholder per picture; "
            "lay rows out before their placeholders are multiplied"
        )
    targets = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
    slot, position, blocks = 0, 0, []
    ids, labelled, positions = [input_ids[:0]], [targets[:0]], [input_ids[:0]]
    for piece, label in _pieces(input_ids, targets, rule.image_token_id, pictures):
        ids.append(piece.token_ids.to(input_ids))
        labelled.append(label)
        positions.append(piece.position_ids.to(input_ids) + position)
        blocks += [Block(kind=each.kind, start=slot + each.start, stop=slot + each.stop) for each in piece.blocks]
        slot += len(piece.token_ids)
        position += piece.num_positions
    return RowLayout(
        input_ids=torch.cat(ids), labels=torch.cat(labelled), position_ids=torch.cat(positions), blocks=tuple(blocks)
    )


def _pieces(
    input_ids: Tensor, labels: Tensor, image_token_id: int, pictures: Sequence[SceneLayout]
) -> Iterator[tuple[SceneLayout, Tensor]]:
    """Stretches of text and pictures in turn, with their labels; nothing is learned inside a picture."""
    ends = (input_ids == image_token_id).nonzero()[:, 0].tolist()
    start = 0
    for end, picture in zip([*ends, len(input_ids)], [*pictures, None], strict=True):
        if end > start:
            yield _text(input_ids[start:end]), labels[start:end]
        if picture is not None:
            yield picture, labels.new_full((len(picture.token_ids),), IGNORE_INDEX)
        start = end + 1


def _text(ids: Tensor) -> SceneLayout:
    length = len(ids)
    block = Block(kind="text", start=0, stop=length)
    return SceneLayout(token_ids=ids, position_ids=torch.arange(length), num_positions=length, blocks=(block,))


def _lay_out(rule: LayoutRule, background: Tensor | None, objects: Tensor | None) -> SceneLayout:
    ids, positions, blocks = [], [], []
    start = 0
    for kind, places in (("background", background), ("objects", objects)):
        if places is None:
            continue
        _check_places(kind, places, rule.num_places)
        slots, own = _part(rule, kind, places, follows_background=kind == "objects" and background is not None)
        ids.append(slots)
        positions.append(own)
        blocks.append(Block(kind=kind, start=start, stop=start + len(slots)))
        start += len(slots)
    nothing = torch.zeros(0, dtype=torch.long)
    token_ids, position_ids = torch.cat([nothing, *ids]), torch.cat([nothing, *positions])
    if rule.positions == "sequential":
        position_ids = torch.arange(start)
    num_positions = _num_positions(rule, background is not None, start)
    return SceneLayout(
        token_ids=token_ids, position_ids=position_ids, num_positions=num_positions, blocks=tuple(blocks)
    )


def _part(rule: LayoutRule, kind: str, places: Tensor, *, follows_background: bool) -> tuple[Tensor, Tensor]:
    """Ids and positions of one group with its separators."""
    grid, start, end = _anchors(rule, kind, follows_background=follows_background)
    places = places.cpu().long()
    ids, positions = torch.full_like(places, rule.image_token_id), places + grid
    if rule.separators is None:
        return ids, positions
    first, last = rule.separators.around(kind)
    around = (torch.tensor([value]) for value in (first, last, start, end))
    before, after, at_start, at_end = around
    return torch.cat([before, ids, after]), torch.cat([at_start, positions, at_end])


def _anchors(rule: LayoutRule, kind: str, *, follows_background: bool) -> tuple[int, int, int]:
    """Positions of place 0, of the start token and of the end token of a group."""
    if rule.positions == "own_range":
        width = 1 if rule.separators else 0
        base = rule.num_places + 2 * width if follows_background else 0
        return base + width, base, base + width + rule.num_places
    width = 2 if rule.separators else 0  # in_place: both start tokens, the grid, both end tokens
    nth = int(kind == "objects")
    return width, nth, width + rule.num_places + nth


def _num_positions(rule: LayoutRule, has_background: bool, num_slots: int) -> int:
    if rule.positions == "sequential":
        return num_slots
    if rule.positions == "in_place":
        return rule.num_places + (4 if rule.separators else 0)
    return (1 + has_background) * (rule.num_places + (2 if rule.separators else 0))


def _check_places(name: str, places: Tensor, num_places: int) -> None:
    values = places.tolist()
    if any(b <= a for a, b in pairwise(values)) or (values and not 0 <= values[0] <= values[-1] < num_places):
        raise ValueError(
            f"the places of the {name} are {values}, expected ascending numbers of 0..{num_places - 1}, each once"
        )


def _check_disjoint(background: Tensor, objects: Tensor) -> None:
    both = sorted(set(background.tolist()) & set(objects.tolist()))
    if both:
        raise ValueError(f"places {both} are in the background and in the objects, expected each place in one group")
