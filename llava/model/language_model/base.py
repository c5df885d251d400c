"""The model around one language model: forward pass, loss, checkpoints. Families differ by their config class only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.attention import (
    PADDING_SEGMENT,
    attention_arguments,
    layer_windows,
    position_ids_of,
    resolve_implementation,
)
from llava.model.autoregressive_reconstruction.batches import Clips, outputs_of, reconstruct
from llava.model.autoregressive_reconstruction.outputs import ReconstructionOutput
from llava.model.checkpoints import ReadOptions, read_checkpoint
from llava.model.checkpoints.three_folder import write
from llava.model.configuration_llava import LlavaConfig
from llava.model.language_model.builder import build_llm
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.loss import normalise, supervised_loss_sum, supervised_rows
from llava.model.media_embedding import TokenRows, as_batch, placeholders_are_expanded, unify_image_token
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.vision_encoder import VisionTower
from llava.model.multimodal_projector.base_projector import MultimodalProjector
from llava.model.multimodal_projector.builder import build_mm_projector
from llava.model.outputs import LlavaOutput, ReconstructionTerm, states_of
from llava.model.sequence_parallel.forward import split_forward
from llava.model.sequence_parallel.groups import SequenceGroup
from llava.utils.registry import suggest


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts that are built already (with weights that were read, or shared with another model)."""

    llm: PreTrainedModel
    vision_tower: VisionTower
    mm_projector: MultimodalProjector


def build_parts(config: LlavaConfig, attn_implementation: str | None = None, dtype: Any = None) -> Parts:
    """Parts with fresh weights where config holds settings, read where it names a folder."""
    for key in ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg"):
        if getattr(config, key) is None:
            raise ValueError(f"{key} is None, expected settings (dict, config object) or a folder")
    llm = build_llm(config.llm_cfg, attn_implementation=attn_implementation, dtype=dtype)
    tower = build_vision_tower(config.vision_tower_cfg, config, dtype)
    projector = build_mm_projector(
        config.mm_projector_cfg,
        tower.hidden_size,
        llm.config.hidden_size,
        token_order=config.token_order,
        image_newline=config.has_image_newline(),
        dtype=dtype,
    )
    return Parts(llm=llm, vision_tower=tower, mm_projector=projector)


class LlavaCausalLM(LlavaMetaForCausalLM, PreTrainedModel):
    """A vision tower, a projector and a causal language model behind one forward pass."""

    config_class: ClassVar[type[LlavaConfig]] = LlavaConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    main_input_name = "input_ids"
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _skip_keys_device_placement: ClassVar[Any] = ["past_key_values"]
    sequence_group: SequenceGroup | None = None
    """Processes that share the sequences of a training pass with this one (`model/sequence_parallel`)."""

    def __init__(
        self,
        config: LlavaConfig,
        parts: Parts | None = None,
        attn_implementation: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(config)
        parts = build_parts(config, attn_implementation, dtype) if parts is None else parts
        if parts.llm.config.hidden_size != parts.mm_projector.config.hidden_size:
            raise ValueError(
                f"mm_projector gives width {parts.mm_projector.config.hidden_size}, "
                f"llm wants {parts.llm.config.hidden_size}; train or load a projector for this language model"
            )
        self.llm = parts.llm
        self.vision_tower = parts.vision_tower
        self.mm_projector = parts.mm_projector
        self.autoregressive_reconstruction = None
        self.scene_split = None
        self.store_part_settings()
        self.post_init()

    def store_part_settings(self) -> None:
        """Writes what the parts are into the config: it then describes the whole model, without any path."""
        config = self.config
        config.llm_cfg = _settings(self.llm)
        config.vision_tower_cfg = _settings(self.vision_tower.vision_tower)
        config.mm_projector_cfg = _settings(self.mm_projector)
        config.hidden_size = self.llm.config.hidden_size
        config.mm_hidden_size = self.vision_tower.hidden_size
        config.mm_vision_select_layer = self.vision_tower.select_layer
        config.mm_vision_select_feature = self.vision_tower.select_feature
        config.token_order = self.mm_projector.config.token_order
        config.image_mean = list(self.vision_tower.image_mean)
        config.image_std = list(self.vision_tower.image_std)
        config.architectures = [type(self).__name__]

    def init_weights(self) -> None:
        """Nothing: each part came with its weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> LlavaCausalLM:  # pyright: ignore
        """The model in a folder or of a hub id, with `tokenizer` and `image_processor`; dtype "auto" = as stored.

        Takes dtype, device_map, attn_implementation, quantization_config, cache_dir.
        """
        model = read_checkpoint(pretrained_model_name_or_path, _read_options(kwargs))
        if not isinstance(model, cls):
            raise ValueError(f"{pretrained_model_name_or_path} holds a {type(model).__name__}, expected {cls.__name__}")
        return model

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        **kwargs: Any,
    ) -> None:
        """Writes llm/ (with the tokenizer), vision_tower/ (with the image processor), mm_projector/ and config.json.

        Raises:
            ValueError: for a model with an adapter beside its weights.
        """
        if getattr(self, "peft_config", None):
            raise ValueError(
                f"{self.name_or_path or 'the model'} carries an adapter beside its weights, which the three folders "
                "cannot hold; load it without quantisation, which merges the adapter, and save that"
            )
        if is_main_process:
            write(self, save_directory, state_dict, max_shard_size)

    def forward(
        self,
        input_ids: Int[Tensor, "b s"] | None = None,
        images: Any = None,
        attention_mask: Int[Tensor, "b k"] | Bool[Tensor, "b k"] | None = None,
        position_ids: Int[Tensor, "b s"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "b s d"] | None = None,
        labels: Int[Tensor, "b s"] | None = None,
        segment_ids: Int[Tensor, "b s"] | None = None,
        branch_ids: Int[Tensor, "b s"] | None = None,
        frame_ids: Int[Tensor, "b s"] | None = None,
        video_frames: Any = None,
        clips: Clips | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Any = None,
        num_reconstruction_items: Any = None,
        autoregressive_weight: float | None = None,
        logits_to_keep: int | Int[Tensor, "k"] = 0,
        sample_ids: list[str] | None = None,
        image_sizes: Int[Tensor, "n 2"] | None = None,
        object_patches: Bool[Tensor, "pictures patches"] | None = None,
        **kwargs: Any,
    ) -> LlavaOutput:
        """Next-token logits, and with labels the loss.

        Args:
            images: uint8 (normalised here) or normalised float [N, 3, H, W], in reading order over the whole batch.
            image_sizes: height and width of every picture before it was cut into views; only for anyres models.
            attention_mask: True = a real token; behind a cache it covers the cached tokens too, and zeros hide them.
            labels: label i is the token at i; it is predicted by the last token before it that it may see.
            segment_ids: samples packed in a row, counted from 0, -1 = padding. branch_ids: see `model/attention.py`.
            num_items_in_batch: supervised tokens of the whole step; the loss is then sum / this, else a mean.
            video_frames: [V, T, 3, H, W] for the next-frame loss alone; clips: `batch.ClipBatch`, which frames of the
                batch are clips, where and when. Both are read by a training pass of a model that learns to predict.
            num_reconstruction_items: predicted frames of the whole step, as num_items_in_batch for tokens.
            autoregressive_weight: in place of the configured loss_weight.
            object_patches: True = the patch of a picture shows an object; only for models with `scene_split`, where
                None means that no objects were found. Labels tell such a model where answers stand, which its
                pre-fusion layers leave out: give them with any row that holds an answer.
            logits_to_keep: last n columns, or indices of columns, whose logits are wanted; 0 = all.

        A training pass with labels runs the language head on supervised rows only and returns no logits.
        """
        if self.training:
            self.freeze_to_eval()
        if input_ids is None and inputs_embeds is None:
            raise ValueError("forward needs input_ids or inputs_embeds, found neither")
        token_rows = {"attention_mask": attention_mask, "position_ids": position_ids, "labels": labels}
        token_rows |= {"segment_ids": segment_ids, "branch_ids": branch_ids}
        if self.sequence_group is not None and self.training and labels is not None:
            if input_ids is None or past_key_values is not None or object_patches is not None:
                raise ValueError("sequence parallelism takes input_ids, without a cache and without object_patches")
            return split_forward(
                self,
                self.sequence_group,
                TokenRows(input_ids=unify_image_token(input_ids, self.image_token_id), **token_rows),
                images=images,
                image_sizes=image_sizes,
                video_frames=video_frames,
                clips=clips,
                num_items_in_batch=num_items_in_batch,
                num_reconstruction_items=num_reconstruction_items,
                autoregressive_weight=autoregressive_weight,
                **kwargs,
            )
        predictor = self.autoregressive_reconstruction if self.training and labels is not None else None
        shares = predictor is not None and clips is not None and predictor.teacher.is_shared
        with outputs_of(self.vision_tower, wanted=shares) as tower_features:
            if inputs_embeds is None:
                assert input_ids is not None
                rows = TokenRows(input_ids=unify_image_token(input_ids, self.image_token_id), **token_rows)
                inputs_embeds, rows = self._embed(rows, images, image_sizes, object_patches)
                attention_mask, position_ids, labels = rows.attention_mask, rows.position_ids, rows.labels
                segment_ids, branch_ids = rows.segment_ids, rows.branch_ids
        segments, branches = self._segments(inputs_embeds, attention_mask, past_key_values, segment_ids, branch_ids)
        kwargs.pop("return_dict", None)
        arguments = self._attention(inputs_embeds, attention_mask, position_ids, segments, branches)
        if predictor is not None and predictor.config.aux_layer != -1:
            kwargs["output_hidden_states"] = True
        decoded = self.llm.get_decoder()(
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
            **arguments,
            **kwargs,
        )
        is_token = attention_mask if segments is None else segments != PADDING_SEGMENT
        output = self._head_and_loss(decoded, is_token, labels, segments, branches, num_items_in_batch, logits_to_keep)
        if predictor is not None:
            found = reconstruct(
                predictor,
                states_of(decoded, predictor.config.aux_layer),
                images=None if images is None else as_batch(images),
                tower_features=tower_features[0] if tower_features else None,
                video_frames=video_frames,
                clips=clips,
                segment_ids=segments,
                branch_ids=branches,
            )
            self.add_reconstruction(output, found, num_reconstruction_items, autoregressive_weight)
        output.past_key_values = decoded.past_key_values if use_cache else None
        output.hidden_states = decoded.get("hidden_states")
        return output

    def _embed(
        self, rows: TokenRows, images: Any, image_sizes: Tensor | None, object_patches: Tensor | None
    ) -> tuple[Tensor, TokenRows]:
        """Expanded ids keep their layout (the data side made it); unexpanded ones are laid out here."""
        is_image = rows.input_ids == self.image_token_id
        counts = self.tokens_of_pictures(images, image_sizes)
        if placeholders_are_expanded(is_image, counts, self.slots_per_image):
            return self.embed_expanded(rows, is_image, images, image_sizes, object_patches)
        if rows.segment_ids is not None or rows.branch_ids is not None:
            raise ValueError(
                f"packed or branched rows must give every picture its {self.slots_per_image} placeholders; "
                "expand with mm_utils.expand_image_tokens before packing"
            )
        ids = rows.input_ids
        mask = torch.ones_like(ids) if rows.attention_mask is None else rows.attention_mask
        prepared = self.prepare_inputs_labels_for_multimodal(
            ids, ids, mask, None, rows.labels, images, image_sizes=image_sizes, object_patches=object_patches
        )
        _, position_ids, attention_mask, _, embeds, labels = prepared
        prepared_rows = TokenRows(
            input_ids=ids, attention_mask=attention_mask, position_ids=position_ids, labels=labels
        )
        return embeds, prepared_rows

    def _segments(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        segment_ids: Tensor | None,
        branch_ids: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Segments and branches where the batch has any, else (None, None): the ordinary path of transformers."""
        if segment_ids is None and branch_ids is None:
            return None, None
        if past_key_values is not None and int(past_key_values.get_seq_length()) > 0:
            raise ValueError(
                "segment_ids and branch_ids describe a whole sequence, found a cache that is not empty; "
                "behind a cache hide tokens by zeros in attention_mask and give position_ids"
            )
        segments = (
            torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            if segment_ids is None
            else segment_ids
        )
        if attention_mask is not None:
            segments = segments.masked_fill(~attention_mask.bool(), PADDING_SEGMENT)
        return segments, torch.zeros_like(segments) if branch_ids is None else branch_ids

    def _attention(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        segments: Tensor | None,
        branches: Tensor | None,
    ) -> dict[str, Any]:
        if segments is None:
            if position_ids is None and attention_mask is not None:
                positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
                position_ids = positions[:, -embeds.shape[1] :]
            return {"attention_mask": attention_mask, "position_ids": position_ids}
        assert branches is not None
        positions = position_ids_of(segments, branches) if position_ids is None else position_ids
        implementation = resolve_implementation(self.llm.config._attn_implementation)
        windows = layer_windows(self.llm.config)
        arguments = attention_arguments(implementation, embeds.dtype, segments, branches, windows)
        return {"position_ids": positions, **arguments}

    def _head_and_loss(
        self,
        decoded: Any,
        is_token: Tensor | None,
        labels: Tensor | None,
        segments: Tensor | None,
        branches: Tensor | None,
        num_items_in_batch: Any,
        logits_to_keep: int | Tensor,
    ) -> LlavaOutput:
        """Further terms count by this batch's share of the supervised tokens: accumulation does not raise them."""
        hidden = decoded.last_hidden_state  # [B, S, D]
        output = LlavaOutput()
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            output.logits = self.to_logits(hidden[:, kept])
        if labels is not None:
            rows, targets = supervised_rows(labels, segments, branches)
            time_tokens = list(self.config.time_token_ids or ()), self.config.soft_ce_std
            loss_sum = supervised_loss_sum(hidden.flatten(0, 1)[rows], targets, self.to_logits, *time_tokens)
            output.loss = normalise(loss_sum, len(targets), num_items_in_batch)
            output.loss_terms = {"main_loss": output.loss.detach()}
            for name, (weight, term) in self.further_loss_terms(decoded, is_token).items():
                shared = normalise(term * len(targets), len(targets), num_items_in_batch)
                output.loss = output.loss + weight * shared
                output.loss_terms[name] = shared.detach()
        return output

    def add_reconstruction(
        self, output: LlavaOutput, found: ReconstructionOutput, num_items: Any, weight: float | None
    ) -> None:
        assert self.autoregressive_reconstruction is not None
        assert output.loss is not None and output.loss_terms is not None
        config = self.autoregressive_reconstruction.config
        weight = config.loss_weight if weight is None else weight
        loss = found.loss(num_items)
        output.loss = (0.0 if config.auxiliary_only else 1.0) * output.loss + weight * loss
        output.loss_terms["autoregressive_loss"] = loss.detach()
        output.reconstruction = ReconstructionTerm(
            loss=loss,
            weight=weight,
            skill=found.skill,
            by_motion=found.by_motion,
            geometry=found.geometry,
            num_masked=found.num_masked,
        )

    def to_logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """The language head with the soft cap of Gemma 2; a family that does more behind its head overrides this."""
        head: Any = self.llm.get_output_embeddings()
        logits, cap = head(hidden), getattr(self.llm.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def further_loss_terms(self, decoded: Any, is_token: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, mean over the tokens of this batch) of what a family adds to the token loss.

        is_token [B, S] is False on padding; None = there is none.
        """
        return {}


def _settings(part: PreTrainedModel) -> dict[str, Any]:
    settings = part.config.to_dict()
    settings.pop("_name_or_path", None)
    return settings


_HUB_ARGUMENTS = (
    "config",
    "trust_remote_code",
    "code_revision",
    "revision",
    "force_download",
    "token",
    "adapter_kwargs",
)


def _read_options(kwargs: dict[str, Any]) -> ReadOptions:
    if "torch_dtype" in kwargs:
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    known = {field.name for field in fields(ReadOptions)}
    unknown = sorted(set(kwargs) - known - set(_HUB_ARGUMENTS))
    if unknown:
        raise ValueError(f"from_pretrained does not take '{unknown[0]}'{suggest(unknown[0], sorted(known))}")
    return ReadOptions(**{key: value for key, value in kwargs.items() if key in known and value is not None})
