"""The multimodal half of every model: pictures into slots, generation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import get_template
from llava.model.anyres import merge_views
from llava.model.media_embedding import (
    PaddingSide,
    TokenRows,
    as_batch,
    count_pictures,
    expand_rows,
    move_padding,
    placeholders_are_expanded,
    unify_image_token,
    write_features,
)
from llava.model.meta_model import LlavaMetaModel
from llava.model.multimodal_encoder.multi_scale import join_tiles, merge_scales
from llava.model.scene_split.embedding import embed_rows
from llava.model.scene_split.fingerprint import WeightFingerprint
from llava.model.scene_split.report import SceneAnswer
from llava.model.scene_split.scene_options import Originals, SceneOptions, generate_split, generate_whole, start_watch
from llava.model.utils import is_partitioned, is_trainable
from llava.scene.detector import GuardedDetector, ObjectDetector, build_detector
from llava.utils.tokenizer import infer_stop_tokens

logger = logging.getLogger(__name__)

Pictures = UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]


class LlavaMetaForCausalLM(LlavaMetaModel):
    """Pictures into embeddings, embeddings into text."""

    training: bool

    def encode_images(
        self, images: Pictures | Float[Tensor, "b n 3 h w"] | UInt8[Tensor, "b n 3 h w"] | Sequence[Tensor]
    ) -> Float[Tensor, "n_total t d"]:
        """Visual tokens in language-model width; uint8 pictures are normalised here, floats are taken as normalised."""
        return self._project(self.vision_tower(as_batch(images)))

    def _project(self, features: Float[Tensor, "n p d"]) -> Float[Tensor, "n t h"]:
        return self.mm_projector(features.to(next(self.mm_projector.parameters(), features).dtype))

    def encode_pictures(self, images: Any, image_sizes: Int[Tensor, "k 2"] | None) -> Float[Tensor, "n t d"]:
        """`encode_images`, and with image_sizes the views of each picture merged into one run: [1, total, d]."""
        layouts, newline = self._layouts(image_sizes), self.mm_projector.image_newline
        if layouts is None:
            features = self.encode_images(images)
        elif self.vision_tower.takes_tiles:
            tiles = self.vision_tower(as_batch(images), as_tiles=True)
            features = join_tiles(self._project(merge_scales(tiles, layouts)), layouts)[None]
        else:
            features = merge_views(self.encode_images(images), layouts, newline)[None]
        if self.training and newline is not None:  # a rank whose pictures are all uncut must not skip its gradient
            features = features + 0.0 * newline.sum()
        return features

    def tokens_of_pictures(self, images: Any, image_sizes: Int[Tensor, "k 2"] | None = None) -> list[int]:
        """Language-model positions of each picture in reading order."""
        layouts = self._layouts(image_sizes)
        if layouts is None:
            return [self.slots_per_image] * count_pictures(images)
        return [layout.num_tokens for layout in layouts]

    def _layouts(self, image_sizes: Int[Tensor, "k 2"] | None) -> list[Any] | None:
        """One per picture; None without sizes: then each picture is a single view."""
        if image_sizes is None:
            return None
        rule = self.visual_spec.view_rule
        if rule is None:
            raise ValueError(
                f"image_sizes were given to a model of image_aspect_ratio {self.config.image_aspect_ratio!r}, "
                "only anyres and dynamic_s2 read them; leave them out"
            )
        return [rule.layout(height, width) for height, width in image_sizes.tolist()]

    def must_touch_vision(self) -> bool:
        """A rank without pictures runs a blank one where others would wait for its gradients or its weights."""
        if not self.training:
            return False
        parts = [self.vision_tower, self.mm_projector, *([] if self.scene_split is None else [self.scene_split])]
        return any(map(is_trainable, parts)) or is_partitioned(self.vision_tower.parameters())

    @property
    def image_token_id(self) -> int:
        return IMAGE_TOKEN_INDEX if self.config.image_token_id is None else self.config.image_token_id

    def embed_multimodal(
        self, input_ids: Int[Tensor, "b s"], is_image: Bool[Tensor, "b s"], features: Float[Tensor, "n t d"] | None
    ) -> Float[Tensor, "b s d"]:
        """Text embeddings with every slot of is_image taken by the next visual token."""
        blank = None
        if features is None and self.must_touch_vision():  # before the text, as on ranks with pictures: ZeRO-3 gathers
            size = self.vision_tower.image_size  # the weights of all ranks in the order of use
            pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=input_ids.device)
            blank = 0.0 * self.encode_pictures(pixels, None).sum()
        embeds = self.llm.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if features is not None:
            return write_features(embeds, is_image, features)
        return embeds if blank is None else embeds + blank.to(embeds.dtype)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Int[Tensor, "b s"],
        position_ids: Int[Tensor, "b s"] | None,
        attention_mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"] | None,
        past_key_values: Any,
        labels: Int[Tensor, "b s"] | None,
        images: Any,
        padding_side: PaddingSide | None = None,
        image_sizes: Int[Tensor, "k 2"] | None = None,
        object_patches: Bool[Tensor, "n p"] | None = None,
    ) -> tuple[None, Tensor | None, Tensor | None, Any, Tensor, Tensor | None]:
        """Token ids and pictures to embeddings; placeholders may be expanded or not, rows padded on either side.

        Rows longer than `tokenizer_model_max_length` are cut at the end. Padding goes to `padding_side` (default: the
        language model's `tokenizer_padding_side`, else right) with zero embeddings, ignored labels, position 0.

        A model with `scene_split` reads object_patches (see `forward`); its positions differ from the columns, so ask
        for them by giving any.

        Returns:
            (None, position_ids, attention_mask, past_key_values, inputs_embeds, labels); None in, None out.
        """
        given = position_ids is not None, attention_mask is not None, labels is not None
        token_id = self.image_token_id
        ids = unify_image_token(input_ids, token_id)
        mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        targets = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
        counts = self.tokens_of_pictures(images, image_sizes)
        if not placeholders_are_expanded((ids == token_id) & mask, counts, self.slots_per_image):
            ids, targets, mask = expand_rows(ids, targets, mask, counts, token_id)
        rows = TokenRows(input_ids=ids, attention_mask=mask, labels=None if labels is None else targets)
        embeds, rows = self.embed_expanded(rows, (ids == token_id) & mask, images, image_sizes, object_patches)
        mask, positions = rows.is_token(), rows.positions()
        targets = targets if rows.labels is None else rows.labels
        order, mask = self._cut_and_pad(mask, padding_side)
        targets = targets.gather(1, order).masked_fill(~mask, IGNORE_INDEX)
        embeds = embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[-1])) * mask[..., None]
        positions = positions.gather(1, order) * mask
        kept = [value if was else None for value, was in zip((positions, mask, targets), given, strict=True)]
        return None, kept[0], kept[1], past_key_values, embeds, kept[2]

    def embed_expanded(
        self,
        rows: TokenRows,
        is_image: Bool[Tensor, "b s"],
        images: Any,
        image_sizes: Tensor | None,
        object_patches: Tensor | None,
    ) -> tuple[Float[Tensor, "b u d"], TokenRows]:
        """Embeddings of rows in which every picture has all its slots; the split may change ids, positions, columns."""
        if self.scene_split is not None:
            return embed_rows(self, rows, images, object_patches)
        if object_patches is not None:
            raise ValueError(
                "object_patches were given to a model without scene_split, which does not read them; call "
                "model.initialize_scene_split, load a model that was trained with it, or leave them out"
            )
        features = self.encode_pictures(images, image_sizes) if count_pictures(images) else None
        return self.embed_multimodal(rows.input_ids, is_image, features), rows

    def _cut_and_pad(
        self, mask: Bool[Tensor, "b s"], padding_side: PaddingSide | None
    ) -> tuple[Int[Tensor, "b u"], Bool[Tensor, "b u"]]:
        """Columns that pack the tokens of each row together, cut at the greatest length, with the padding on its side.

        Returns:
            (column of every kept one, where a real token stands).
        """
        longest = int(mask.sum(dim=1).max())
        limit = self._longest_sequence() or longest
        if longest > limit:
            logger.warning("a sequence of %d tokens is cut at tokenizer_model_max_length = %d", longest, limit)
        order = move_padding(mask, "right")[:, : min(longest, limit)]
        mask = mask.gather(1, order)
        side: Any = padding_side or getattr(self.llm.config, "tokenizer_padding_side", "right")
        order = order.gather(1, move_padding(mask, side))
        return order, mask.gather(1, move_padding(mask, side))

    def _longest_sequence(self) -> int | None:
        """`tokenizer_model_max_length` of this model, or of its language model (where older checkpoints store it)."""
        name = "tokenizer_model_max_length"
        return getattr(self.config, name, None) or getattr(self.llm.config, name, None)

    def stop_token_ids(self) -> list[int] | None:
        """End of text and end of a turn of the model's conversation template; None for a model without a tokenizer."""
        if self.tokenizer is None:
            return None
        if self.config.version is None:
            return None if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        stops = infer_stop_tokens(self.tokenizer, get_template(self.config.version))
        return sorted(self.tokenizer.convert_tokens_to_ids(stops))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "b s"] | None = None,
        images: Any = None,
        attention_mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"] | None = None,
        image_sizes: Int[Tensor, "k 2"] | None = None,
        **generation_kwargs: Any,
    ) -> Any:
        """New token ids only [B, new]; text alone, one or many pictures in reading order, rows of unequal length.

        Takes transformers' generation arguments, and those of `scene_split.scene_options.SceneOptions`. Without
        `eos_token_id` it stops at the end of text or of a turn.
        """
        scene, generation_kwargs = SceneOptions.take(generation_kwargs)
        originals = generation_kwargs.pop("originals", None)
        if input_ids is not None and scene.are_for(self, images):
            kwargs = self._with_stops(generation_kwargs)
            return generate_split(self, scene, input_ids, images, attention_mask, originals, **kwargs)
        if input_ids is not None and scene.return_provenance:
            inputs = input_ids, images, attention_mask, image_sizes
            return generate_whole(self, scene, inputs, originals, **self._with_stops(generation_kwargs))
        if input_ids is None:
            return self.llm.generate(attention_mask=attention_mask, **self._with_stops(generation_kwargs))  # pyright: ignore
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        _, _, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids, None, mask, None, None, images, padding_side="left", image_sizes=image_sizes
        )
        kwargs = self._with_stops(generation_kwargs)
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask.long(), **kwargs)  # pyright: ignore

    def _with_stops(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        config = kwargs.get("generation_config")
        stops = None if config is not None and config.eos_token_id is not None else self.stop_token_ids()
        if stops and "eos_token_id" not in kwargs:
            kwargs = {**kwargs, "eos_token_id": stops}
        if self.tokenizer is not None and "pad_token_id" not in kwargs:
            pad = self.tokenizer.pad_token_id
            kwargs = {**kwargs, "pad_token_id": self.tokenizer.eos_token_id if pad is None else pad}
        return kwargs

    def generate_content(self, prompt: Any, generation_config: Any = None, **generation_kwargs: Any) -> Any:
        """Answer to one user turn: a text, a picture (PIL, `llava.Image`), a `llava.Video`, or a list of these.

        The text, or a `SceneAnswer` of it with `return_provenance=True`.
        """
        from llava.model.generation import read_prompt

        watch = start_watch(self, SceneOptions.take(generation_kwargs)[0])
        with watch.stage("resize"):
            prompt = read_prompt(self, prompt)
        if generation_config is not None:
            generation_kwargs["generation_config"] = generation_config
        originals = Originals(pictures=prompt.pictures, watch=watch)
        output = self.generate(
            prompt.input_ids, prompt.images, image_sizes=prompt.image_sizes, originals=originals, **generation_kwargs
        )
        if isinstance(output, SceneAnswer):
            return replace(output, output=self._text(output.output))
        return self._text(output)

    def _text(self, output: Int[Tensor, "b n"]) -> str:
        return self.tokenizer.decode(output[0], skip_special_tokens=True).strip()

    @cached_property
    def weight_fingerprint(self) -> WeightFingerprint:
        """What the weights are now, for the keys of caches; `forget` makes it look again at every byte."""
        return WeightFingerprint()

    @cached_property
    def scene_detector(self) -> ObjectDetector | None:
        """The detector that `config.scene_split` names, built when it is first needed; None where it names none."""
        split = None if self.scene_split is None else self.scene_split.config
        if split is None or split.detector is None:
            return None
        return GuardedDetector(build_detector(split.detector, **split.detector_options))

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()  # pyright: ignore[reportReturnType]
