"""One trained model answers prompts with pictures in the ways that the arms differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from llava.conversation import get_template
from llava.mm_utils import to_uint8_tensor
from llava.model.scene_split.config import SceneSplitConfig
from llava.model.scene_split.kv_chain import share_chains
from llava.model.scene_split.prefix import generate_after, pad_suffixes
from llava.scene.patch_mask import patch_masks
from llava.scene.token_cache import BackgroundTokenCache
from llava.utils.tokenizer import TokenizationCompat, tokenize_conversation

HOW = ("whole", "split", "drop")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request.

    Attributes:
        text: the human turn with its `<image>` placeholders.
        masks: where objects are, one per picture.
        camera: name of the camera, a hint for the cache; None = none.
        drawn: seed of what is random in an answer (which tokens are dropped).
    """

    text: str
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]]
    masks: Sequence[Bool[np.ndarray, "h w"]]
    camera: str | None = None
    drawn: int = 0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer and what it cost, summed over the pictures of its prompt.

    Attributes:
        provenance: of each picture's background, "" without a cache.
        background: tokens of backgrounds; reused: of those, the ones that came from the cache.
        computed: tokens of pictures that were encoded for this answer; total: those of all its pictures.
    """

    text: str
    provenance: tuple[str, ...] = ()
    background: int = 0
    reused: int = 0
    computed: int = 0
    total: int = 0


@dataclass(kw_only=True)
class Answerer:
    """
    Attributes:
        how: `whole`: pictures as the model without a split reads them; `split`: background and objects apart; `drop`:
            whole, of which as many tokens stay as there are object tokens and `kept_background` of the others.
        cache: of a split.
    """

    model: Any
    how: str
    cache: BackgroundTokenCache | None = None
    kept_background: float = 0.0
    max_new_tokens: int = 12
    _rule: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"how is '{self.how}', expected one of {HOW}")
        if self.cache is not None and self.how != "split":
            raise ValueError(f"a cache is given and pictures are read '{self.how}'; it goes with 'split'")
        if self.how != "split" and self.model.scene_split is not None:
            raise ValueError(f"the model was trained with the split, pictures are read '{self.how}'; take 'split'")
        split = self.model.scene_split
        config = SceneSplitConfig() if split is None else split.config
        tower, projector = self.model.vision_tower, self.model.mm_projector
        self._rule = config.patch_rule(tower.config.patch_size, projector.downsample_rate)
        self.model.eval()

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """All prompts as one batch."""
        ids = [self._ids(prompt.text) for prompt in prompts]
        spec = self.model.visual_spec
        pixels = torch.stack([to_uint8_tensor(picture, spec) for p in prompts for picture in p.pictures])
        masks = torch.stack([self._patches(mask) for p in prompts for mask in p.masks])
        if self.how == "split":
            return self._split(prompts, ids, pixels, masks)
        if self.how == "drop":
            return self._dropped(prompts, ids, pixels, masks)
        padded, is_real = self._padded(ids)
        output = self.model.generate(
            padded, pixels, attention_mask=is_real, do_sample=False, max_new_tokens=self.max_new_tokens
        )
        per_picture = self.model.tokens_per_image
        counts = [per_picture * len(prompt.pictures) for prompt in prompts]
        return [Reply(text=text, computed=n, total=n) for text, n in zip(self._texts(output), counts, strict=True)]

    def _split(self, prompts: Sequence[Prompt], ids: list[Tensor], pixels: Tensor, masks: Tensor) -> list[Reply]:
        padded, is_real = self._padded(ids)
        names = [prompt.camera for prompt in prompts for _ in prompt.pictures]
        answered = self.model.generate(
            padded, pixels, attention_mask=is_real, object_patches=masks, background_cache=self.cache,
            picture_ids=names if any(names) else None, force_scene_split=self.model.scene_split is None,
            return_provenance=True, do_sample=False, max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        texts, reports = self._texts(answered.output), answered.report.pictures
        replies = []
        for row, text in enumerate(texts):
            own = [report for report in reports if report.row == row]
            served = [report for report in own if report.background in ("exact_kv", "exact_tokens", "guarded")]
            background, reused = (sum(report.num_background for report in part) for part in (own, served))
            objects = sum(report.num_objects for report in own if report.objects != "exact_kv")
            total = self.model.tokens_per_image * len(own)
            provenance = tuple(report.background for report in own) if self.cache is not None else ()
            replies.append(
                Reply(text=text, provenance=provenance, background=background, reused=reused,
                      computed=background - reused + objects, total=total)
            )  # fmt: skip
        return replies

    def _dropped(self, prompts: Sequence[Prompt], ids: list[Tensor], pixels: Tensor, masks: Tensor) -> list[Reply]:
        """Kept tokens stay at the positions that they have in the whole picture."""
        features = self.model.encode_images(pixels.to(self.model.device))  # [n, tokens, D]
        per_picture, cells = features.shape[1], self._objects(masks)
        rows, positions, replies, first = [], [], [], 0
        table = self.model.get_input_embeddings()
        for prompt, row_ids in zip(prompts, ids, strict=True):
            random = np.random.default_rng(prompt.drawn)
            parts, places, at, kept_in_all = [], [], 0, 0
            for token in row_ids.tolist():
                if token != self.model.config.image_token_id:
                    parts.append(table(torch.tensor([token], device=features.device)))
                    places.append(torch.tensor([at]))
                    at += 1
                    continue
                objects = cells[first]
                count = objects + round(self.kept_background * (per_picture - objects))
                kept = torch.from_numpy(np.sort(random.permutation(per_picture)[:count]))
                parts.append(features[first, kept.to(features.device)])
                places.append(at + kept)
                at, first, kept_in_all = at + per_picture, first + 1, kept_in_all + count
            rows.append(torch.cat(parts))
            positions.append(torch.cat(places).to(features.device))
            replies.append((kept_in_all, per_picture * len(prompt.pictures)))
        output = self._generate(rows, positions)
        return [
            Reply(text=text, computed=kept, total=total)
            for text, (kept, total) in zip(self._texts(output), replies, strict=True)
        ]

    def _generate(self, rows: list[Float[Tensor, "_ d"]], positions: list[Tensor]) -> Tensor:
        past, is_real = share_chains([()] * len(rows), 1, rows[0].device)
        kwargs = {"eos_token_id": self.model.stop_token_ids(), "pad_token_id": self._pad}
        return generate_after(
            self.model.llm, past, is_real, pad_suffixes(rows, positions), do_sample=False,
            max_new_tokens=self.max_new_tokens, **kwargs,
        )  # fmt: skip

    def _objects(self, masks: Bool[Tensor, "n p"]) -> list[int]:
        """Tokens of each picture that show an object."""
        return (masks.sum(dim=1) // self._rule.cell**2).tolist()

    def _patches(self, mask: np.ndarray) -> Bool[Tensor, "p"]:
        (view,) = patch_masks(mask, self.model.visual_spec, self._rule)
        return torch.from_numpy(view.patches).flatten()

    def _ids(self, text: str) -> Tensor:
        ids = tokenize_conversation(
            [{"from": "human", "value": text}],
            self.model.tokenizer,
            get_template(self.model.config.version or "auto"),
            add_generation_prompt=True,
            compat=TokenizationCompat.from_config(self.model.config.tokenization_compat),
            image_token_id=self.model.config.image_token_id,
        )
        return torch.tensor(ids)

    def _padded(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        pad: dict[str, Any] = {"batch_first": True, "padding_side": "left"}
        real = [torch.ones_like(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(ids, padding_value=self._pad, **pad)
        return padded.to(self.model.device), torch.nn.utils.rnn.pad_sequence(real, **pad).to(self.model.device)

    @property
    def _pad(self) -> int:
        tokenizer = self.model.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def _texts(self, output: Tensor) -> list[str]:
        return [text.strip() for text in self.model.tokenizer.batch_decode(output, skip_special_tokens=True)]
