"""One row of a batch, planned: which stretches of its prefix are known, and which tokens have to be computed.

    text -> background -> objects -> text -> background -> objects -> question
    |<---- stretch ---->|<------->|<------ stretch ------>|<------->|

Each stretch is asked for under a key that covers everything before it. As long as all are known, their keys and values
stand for them; behind the first that is not, tokens of backgrounds may still be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from llava.model.scene_split.fingerprint import ModelState
from llava.model.scene_split.layout import RowLayout, layout_picture, layout_row
from llava.model.scene_split.object_source import ObjectSource
from llava.model.scene_split.parts import SplitParts
from llava.model.scene_split.prefix import KvPrefix
from llava.model.scene_split.report import Stopwatch
from llava.scene.cache.keys import digest_fields
from llava.scene.token_cache import Answer, BackgroundRequest, BackgroundTokenCache, BackgroundValue, CacheScope

NO_CELLS = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True, kw_only=True)
class SceneChoices:
    """How the pictures of a call are served.

    Attributes:
        cache: None computes everything.
        picture_ids: the caller's names of the pictures, which say what is tried first.
        moved_patches: bool [N, P] or [N, grid, grid] of all views, True = moved since the last frame, as a codec tells.
        allow_guarded: False asks for exact answers although the cache allows similar ones; pre-fusion layers always
            read exact ones.
        keep_objects: also keep keys and values of objects, for further questions about the same picture.
        keep_kv: False keeps tokens only: smaller entries, which are good behind any words.
        suffix_multiple: what is computed is padded to a multiple of so many tokens.
    """

    cache: BackgroundTokenCache | None = None
    cache_salt: str = ""
    picture_ids: Sequence[str | None] | None = None
    moved_patches: Any = None
    allow_guarded: bool = True
    keep_objects: bool = True
    keep_kv: bool = True
    suffix_multiple: int = 1


@dataclass(kw_only=True)
class Frame:
    """One view of a row as it is laid out.

    Attributes:
        background: its background's answer; None without a cache, or where it came with an earlier frame.
        background_cells: cells whose tokens stand in the row; None where no background stands here.
        background_tokens: those that are known or were computed; None where keys and values stand for them.
        object_cells: cells to be computed as objects.
        objects_request: by which keys and values of the objects are kept; None where they are not.
        objects: its answer, where it was asked for.
        reads_background_kv, reads_object_kv: keys and values of the cache are used.
    """

    view: int
    background: Answer | None = None
    background_cells: Int[Tensor, "n"] | None = None
    background_places: Int[Tensor, "_"] | None = None
    background_tokens: Float[Tensor, "_ d"] | None = None
    object_cells: Int[Tensor, "m"] = field(default_factory=lambda: NO_CELLS)
    object_tokens: Float[Tensor, "_ d"] | None = None
    objects_request: BackgroundRequest | None = None
    objects: Answer | None = None
    reads_background_kv: bool = False
    reads_object_kv: bool = False


@dataclass(kw_only=True)
class Stretch:
    """Slots start..stop of a row whose keys and values are known, or belong into the cache."""

    start: int
    stop: int
    request: BackgroundRequest
    answer: Answer | None
    prefix: KvPrefix | None = None


@dataclass(kw_only=True)
class RowPlan:
    """A row with all its frames, laid out.

    Attributes:
        num_known: slots at its beginning whose keys and values are known.
        stale_slots: of those, the ones of cells that changed since: they come as objects, and nobody may see them here.
    """

    layout: RowLayout
    frames: list[Frame]
    stretches: list[Stretch]
    num_known: int
    stale_slots: list[int]

    @property
    def chain(self) -> list[KvPrefix]:
        return [each.prefix for each in self.stretches if each.prefix is not None]


class RowPlanner:
    """Plans rows, one after the other.

    Args:
        pixels: [N, 3, H, W], the views of all rows.
        on_exit: lets answers go when the call is over.
    """

    def __init__(
        self,
        parts: SplitParts,
        choices: SceneChoices,
        pixels: Shaped[Tensor, "n 3 h w"],
        source: ObjectSource,
        state: ModelState,
        watch: Stopwatch,
        on_exit: ExitStack,
    ) -> None:
        self.parts, self.choices, self.pixels, self.source = parts, choices, pixels, source
        self.watch, self.on_exit = watch, on_exit
        self.state = state
        self.scope = parts.scope(state, choices.cache_salt)

    def plan(self, input_ids: Int[Tensor, "s"], scenes: Sequence[Sequence[int]]) -> RowPlan:
        """A row of one placeholder per view, unpadded; a scene holds the views that share a background."""
        texts = _texts(input_ids.cpu(), self.parts.rule.image_token_id)
        scope, frames = self.scope, []
        is_known = self.choices.cache is not None and self.choices.keep_kv
        total = sum(map(len, scenes))
        for scene in scenes:
            for number, view in enumerate(scene):
                scope = scope.after(_digest(texts[len(frames)]), exact=True)
                has_more = len(frames) + 1 < total
                is_known = is_known and (has_more or len(texts[-1]) > 0)  # a prompt's last token is always computed
                frame = Frame(view=view)
                if number == 0:
                    scope, is_known = self._add_background(frame, scope, is_known)
                else:
                    frame.object_cells = self._object_cells(view)
                scope, is_known = self._add_objects(frame, scope, is_known, has_more)
                frames.append(frame)
        return self._lay_out(input_ids, frames)

    # ---- background ----

    def _add_background(self, frame: Frame, scope: CacheScope, want_kv: bool) -> tuple[CacheScope, bool]:
        """(scope of what follows, whether its keys and values may be known)."""
        if self.choices.cache is None:
            cells = self._background_cells(frame.view)
            frame.background_cells, frame.background_places = cells, self.parts.places(cells)
            frame.object_cells = self._object_cells(frame.view)
            with self.watch.stage("encoder"):
                frame.background_tokens = self.parts.encode_background(self.pixels[frame.view], cells)
            return scope, False
        answer = frame.background = self._ask(self.choices.cache, frame.view, scope, want_kv)
        frame.object_cells, frame.background_cells = answer.object_ids, answer.background_ids
        frame.background_places = self.parts.places(answer.background_ids)
        value = answer.shared()
        frame.reads_background_kv = want_kv and value.kv is not None
        if not frame.reads_background_kv:
            assert value.tokens is not None, "keys and values were not asked for"
            frame.background_tokens = value.tokens
            if answer.is_guarded:
                self._leave_out_stale(frame, answer)
        elif self.parts.split.prefusion is not None:
            request = replace(answer.request, want_kv=False, background=answer.background_ids)
            frame.background_tokens = self._asked(self.choices.cache, request).shared().tokens
        return answer.following_scope(), frame.reads_background_kv

    def _ask(self, cache: BackgroundTokenCache, view: int, scope: CacheScope, want_kv: bool) -> Answer:
        names, is_known = self.choices.picture_ids, self.source.is_known
        request = BackgroundRequest(
            scope=scope,
            pixels=self.pixels[view],
            patch_size=self.parts.patch_size,
            cell=self.parts.cell,
            background=self._background_cells(view) if is_known else lambda: self._background_cells(view),
            caller_id=None if names is None else names[view],
            moved=self._moved_cells(view),
            want_kv=want_kv,
            allow_guarded=self.choices.allow_guarded and self.parts.split.prefusion is None,
        )
        answer = self._asked(cache, request)
        if answer.is_guarded and any(answer.shift) and answer.shared().tokens is None:
            # tokens can stand where the background shows now, keys and values cannot
            return self._asked(cache, replace(request, want_kv=False))
        return answer

    def _moved_cells(self, view: int) -> Bool[Tensor, "cells"] | None:
        """A cell moved as soon as one of its patches did."""
        if self.choices.moved_patches is None:
            return None
        patches = torch.as_tensor(self.choices.moved_patches[view]).cpu().flatten()
        moved = torch.zeros(self.parts.coarse_side**2, dtype=torch.bool)
        moved[self.parts.cell_of_patch[patches]] = True
        return moved

    def _asked(self, cache: BackgroundTokenCache, request: BackgroundRequest) -> Answer:
        with self.watch.stage("lookup"):
            return self.on_exit.enter_context(cache.get_or_compute(request, self._encode))

    def _encode(self, answer: Answer) -> BackgroundValue:
        with self.watch.stage("encoder"):
            pixels = answer.request.pixels
            value = BackgroundValue(tokens=self.parts.encode_background(pixels, answer.background_ids))
        self.state.look_again()  # the value is not stored if the weights changed meanwhile
        return value

    def _leave_out_stale(self, frame: Frame, answer: Answer) -> None:
        """Cells that changed come as objects, so their old tokens go; what the camera moved stands where it shows."""
        assert frame.background_tokens is not None, "called where tokens are read"
        cached = answer.background_ids
        kept = cached[~torch.isin(cached, answer.stale_ids)]
        rows = torch.searchsorted(self.parts.places(cached), self._patch_places(kept))
        coarse = answer.request.grid.cols
        moved = kept + answer.shift[0] * coarse + answer.shift[1]
        places = self._patch_places(moved)
        order = places.argsort()
        head = torch.arange(self.parts.num_class_tokens if len(cached) else 0)
        rows = torch.cat([head, rows[order]]).to(frame.background_tokens.device)
        frame.background_tokens = frame.background_tokens[rows]
        frame.background_cells = moved[order]
        frame.background_places = torch.cat([head, places[order]])

    def _patch_places(self, cells: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Place of each cell's token, in the order of the cells."""
        return self.parts.token_of_cell[cells] + self.parts.num_class_tokens

    def _background_cells(self, view: int) -> Int[Tensor, "n"]:
        return (~self._is_object(view)).nonzero()[:, 0]

    def _object_cells(self, view: int) -> Int[Tensor, "m"]:
        return self._is_object(view).nonzero()[:, 0]

    def _is_object(self, view: int) -> Bool[Tensor, "cells"]:
        with self.watch.stage("detector"):
            return self.parts.cell_mask(self.source.patches(view))

    # ---- objects ----

    def _add_objects(self, frame: Frame, scope: CacheScope, want_kv: bool, has_more: bool) -> tuple[CacheScope, bool]:
        cache, cells, choices = self.choices.cache, frame.object_cells, self.choices
        if cache is None:
            return scope, False
        if not len(cells):
            return scope.after("no objects", exact=True), want_kv
        request = BackgroundRequest(
            scope=scope.after("objects", exact=True),
            pixels=self.pixels[frame.view],
            patch_size=self.parts.patch_size,
            cell=self.parts.cell,
            background=cells,
            want_kv=True,
            allow_guarded=False,
        )
        following = scope
        if has_more:
            key = request.key("kv", request.scope.resolve(), cells.numpy().astype("int32"))
            following = scope.after(key, exact=True)
        if not choices.keep_objects or not choices.keep_kv or not scope.exact:
            return following, want_kv and not choices.keep_objects
        frame.objects_request = request
        if not want_kv:  # nothing is known behind something unknown
            return following, False
        with self.watch.stage("lookup"):
            frame.objects = self.on_exit.enter_context(cache.lookup(request))
        frame.reads_object_kv = frame.objects.provenance == "exact_kv"
        return following, frame.reads_object_kv

    # ---- layout ----

    def _lay_out(self, input_ids: Int[Tensor, "s"], frames: list[Frame]) -> RowPlan:
        """Slots of the whole row, and where its stretches begin and end."""
        parts, layouts = self.parts, []
        for frame in frames:
            overlap = frame.background is not None and frame.background.is_guarded
            layouts.append(
                layout_picture(
                    parts.rule,
                    frame.background_places,
                    parts.places(frame.object_cells),
                    may_overlap=overlap or parts.num_class_tokens > 0,
                )
            )
        layout = layout_row(parts.rule, input_ids.cpu(), None, layouts)
        stretches = _stretches(layout, frames)
        num_known = max((each.stop for each in stretches if each.prefix is not None), default=0)
        stale = [slot for each in stretches if each.prefix is not None for slot in self._stale_slots(each, layout)]
        return RowPlan(layout=layout, frames=frames, stretches=stretches, num_known=num_known, stale_slots=stale)

    def _stale_slots(self, stretch: Stretch, layout: RowLayout) -> list[int]:
        """Slots of the stale cells of a background that is read as keys and values."""
        answer, is_slot = stretch.answer, layout.input_ids == self.parts.rule.image_token_id
        if answer is None or not answer.is_guarded:
            return []
        (block,) = [b for b in layout.blocks if b.kind == "background" and b.stop == stretch.stop]
        slots = is_slot.nonzero()[:, 0]
        slots = slots[(slots >= block.start) & (slots < block.stop)]
        stale = torch.searchsorted(self.parts.places(answer.background_ids), self._patch_places(answer.stale_ids))
        return slots[stale].tolist()


def _stretches(layout: RowLayout, frames: Sequence[Frame]) -> list[Stretch]:
    """Every stretch that is known or to be kept, in order; each begins where the one before it ends."""
    blocks = iter(block for block in layout.blocks if block.kind != "text")
    found: list[Stretch] = []
    for frame in frames:
        start = found[-1].stop if found else 0
        if frame.background_places is not None:
            stop = next(blocks).stop
            if frame.background is not None:
                prefix = _prefix(frame.background) if frame.reads_background_kv else None
                request = frame.background.request
                found.append(Stretch(start=start, stop=stop, request=request, answer=frame.background, prefix=prefix))
                start = stop
        stop = next(blocks).stop
        if frame.objects_request is not None:
            prefix = _prefix(frame.objects) if frame.reads_object_kv and frame.objects is not None else None
            known = {"answer": frame.objects, "prefix": prefix}
            found.append(Stretch(start=start, stop=stop, request=frame.objects_request, **known))
    return found


def _prefix(answer: Answer) -> KvPrefix:
    """The stretch as it lies in the cache, without a copy."""
    layers = answer.shared().kv
    assert layers is not None, "the answer was checked to hold keys and values"
    keys, values = zip(*layers, strict=True)
    return KvPrefix(keys=tuple(keys), values=tuple(values))


def _texts(input_ids: Int[Tensor, "s"], image_token_id: int) -> list[Int[Tensor, "_"]]:
    """Words before each placeholder, and behind the last."""
    ends = (input_ids == image_token_id).nonzero()[:, 0].tolist()
    starts = [0, *(end + 1 for end in ends)]
    return [input_ids[start:end] for start, end in zip(starts, [*ends, len(input_ids)], strict=True)]


def _digest(text: Int[Tensor, "n"]) -> str:
    return digest_fields(b"text", text.long().numpy().tobytes()).hex()
