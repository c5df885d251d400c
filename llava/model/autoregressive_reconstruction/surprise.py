"""Surprise at inference: how wrong the prediction of each frame of a clip was. No gradient; the policy is untouched.

The sequence is laid out as in training, up to the last frame: what a checkpoint's prompt puts behind the frames cannot
change the surprise. A clip that is too long is looked at in windows that overlap; each frame takes its number from the
first window that predicts it, where it has the longest past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from llava.model.autoregressive_reconstruction.batches import outputs_of
from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.model.autoregressive_reconstruction.module import AutoregressiveReconstructionModule
from llava.model.autoregressive_reconstruction.outputs import ReconstructionOutput, SitePrediction
from llava.model.autoregressive_reconstruction.surprise_input import FrameSequence, SequenceLayout, read_clips

if TYPE_CHECKING:
    from llava.model.llava_arch import LlavaMetaForCausalLM

LONGEST_WITHOUT_LANGUAGE = 64
"""Frames per window where no language model sees them."""


@dataclass(frozen=True, kw_only=True)
class ClipErrors:
    """What the prediction of each frame missed; NaN for frames that nothing predicted, the first one among them.

    Attributes:
        surprise: by the loss of the training.
        predicted, copied: mean squared error per target token, row by row: of the prediction, and of the frame from
            which it was made put in its place.
    """

    surprise: Float[Tensor, "v t"]
    predicted: Float[Tensor, "v t p"]
    copied: Float[Tensor, "v t p"]


def frame_surprise(
    model: LlavaMetaForCausalLM, frames: Any, prompt: str | None = None, **options: Any
) -> Float[Tensor, "v t"]:
    """Prediction error per frame, see `clip_errors`."""
    return clip_errors(model, frames, prompt, **options).surprise


@torch.no_grad()
def clip_errors(
    model: LlavaMetaForCausalLM,
    frames: Any,
    prompt: str | None = None,
    *,
    context: str | None = None,
    times: Any = None,
    motions: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    overlap: int | None = None,
) -> ClipErrors:
    """Runs a model that was loaded with `surprise=True` over clips.

    Args:
        frames: uint8 [T, 3, H, W] or [V, T, 3, H, W] of any size, a `llava.Video`, or a list of pictures.
        prompt: instruction or question; None = an empty one.
        context: "language" runs the language model over the frames, "none" predicts from frames alone; None = as in
            training.
        times: [T] or [V, T], in the unit of the training (seconds of a video, steps of a walk); None = those of a video
            file, else 0, 1, 2 ...
        motions: [V, T, 3] as in `VideoClips`; None = unknown.
        window: frames that are looked at together; None = what the prompt format shows, or what fits the context.
        overlap: frames that a window shares with the one before; None = half of it.

    Returns:
        Tensors in host memory, fp32.

    Raises:
        ValueError: the model has no predictor, one that predicts something else, or is in training mode.
    """
    module = require_predictor(model)
    pixels, stamps = read_clips(frames, model.visual_spec, times)
    told = _motions(module.config, motions, pixels.shape[:2])
    layout = _layout(model, module.config, context, prompt)
    window = _window(model, module.config, layout, window, pixels.shape[1])
    spans = plan_windows(pixels.shape[1], window, _overlap(module.config, window, overlap))
    eyes = _Eyes(model, module, pixels)
    merged: ClipErrors | None = None
    for span in spans:
        output = _predict(eyes, layout, span, stamps, told)
        found = _errors_of(output, len(span))
        merged = _merge(merged, found, span, pixels.shape[1])
    assert merged is not None
    return merged


def require_predictor(model: Any) -> AutoregressiveReconstructionModule:
    """The predictor of a model that can tell surprise."""
    module = model.autoregressive_reconstruction
    if module is None:
        raise ValueError(
            "the model has no predictor of the next frame; load a checkpoint that was trained with it by "
            "llava.load(path, surprise=True)"
        )
    config: ReconstructionConfig = module.config
    if "visual" not in config.sites:
        raise ValueError(
            f"the predictor was trained at site '{config.site}', expected 'visual' or 'both': it predicts the outcome "
            "of answers, which a clip alone does not have"
        )
    require_next_frame(config)
    if model.training:
        raise ValueError("the model is in training mode, expected evaluation; call model.eval() first")
    return module


def require_next_frame(config: ReconstructionConfig) -> None:
    """Refuses arms of an experiment that see the next frame, or are taught another one."""
    if config.control in ("current_frame", "other_clip") or not config.use_frame_causal_mask:
        raise ValueError(
            f"the predictor is an arm of an experiment (control {config.control!r}, use_frame_causal_mask "
            f"{config.use_frame_causal_mask}), expected one that predicts the next frame; load another checkpoint"
        )


def plan_windows(num_frames: int, window: int, overlap: int) -> list[range]:
    """Windows of equal length that cover a clip; the last one is moved back to end with it.

    >>> plan_windows(9, 4, 2), plan_windows(3, 4, 2)
    ([range(0, 4), range(2, 6), range(4, 8), range(5, 9)], [range(0, 3)])
    """
    if not 1 <= overlap < window:
        raise ValueError(f"window is {window} and overlap {overlap}, expected 1 <= overlap < window")
    last = max(num_frames - window, 0)
    starts = [min(start, last) for start in range(0, max(num_frames - overlap, 1), window - overlap)]
    return [range(start, min(start + window, num_frames)) for start in starts]


class _Eyes:
    """Features of the frames, each computed once: those of overlapping windows are kept from one to the next."""

    def __init__(
        self, model: LlavaMetaForCausalLM, module: AutoregressiveReconstructionModule, pixels: UInt8[Tensor, "..."]
    ) -> None:
        self.model, self.module, self.pixels = model, module, pixels
        self._begin = 0
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def see(
        self, span: range, *, with_tokens: bool
    ) -> tuple[Float[Tensor, "v t p d"], Float[Tensor, "v t n h"] | None]:
        """(the teacher's features, tokens for the language model) of a window; windows come in order."""
        new = span.start
        parts: list[tuple[Tensor, Tensor | None]] = []
        if self._kept is not None:
            features, tokens = self._kept
            first = span.start - self._begin
            parts.append((features[:, first:], None if tokens is None else tokens[:, first:]))
            new = self._begin + features.shape[1]
        if new < span.stop:
            parts.append(self._compute(self.pixels[:, new : span.stop], with_tokens))
        features = torch.cat([part[0] for part in parts], dim=1)
        tokens = torch.cat([part[1] for part in parts if part[1] is not None], dim=1) if with_tokens else None
        self._begin, self._kept = span.start, (features, tokens)
        return features, tokens

    def _compute(self, pixels: UInt8[Tensor, "..."], with_tokens: bool) -> tuple[Tensor, Tensor | None]:
        num_clips = len(pixels)
        device = next(self.model.vision_tower.parameters()).device
        teacher, features, tokens = self.module.teacher, [], []
        for chunk in pixels.flatten(0, 1).split(teacher.chunk_size):
            chunk = chunk.to(device)
            with outputs_of(self.model.vision_tower, wanted=with_tokens and teacher.is_shared) as seen:
                if with_tokens:
                    tokens.append(self.model.encode_images(chunk))
            features.append(seen[0] if seen else teacher(chunk[None])[0])
        shape = (num_clips, -1)
        return torch.cat(features).unflatten(0, shape), torch.cat(tokens).unflatten(0, shape) if with_tokens else None


def _predict(
    eyes: _Eyes, layout: SequenceLayout | None, span: range, stamps: Tensor | None, motions: Tensor | None
) -> ReconstructionOutput:
    module, model = eyes.module, eyes.model
    features, tokens = eyes.see(span, with_tokens=layout is not None)
    weight = module.predictor.place
    states: Tensor | None = None
    known: dict[str, Any] = {}
    if layout is not None:
        assert tokens is not None
        sequence = layout.lay_out(len(span))
        states = _run_language_model(model, sequence, tokens, module.config.aux_layer)
        states = states.to(device=weight.device, dtype=weight.dtype)
        known["frame_end_positions"] = sequence.frame_ends.expand(len(features), -1)
    if "answer" in module.config.sites:  # nobody answers at inference
        known["answer_end_positions"] = torch.full(features.shape[:2], -1)
    if module.config.geometry_dim is not None:  # unknown: its error counts 0
        known["geometry"] = torch.full((*features.shape[:2], 1, module.config.geometry_dim), torch.nan).to(
            weight.device
        )
    return module(
        states,
        frame_features=features.to(weight.device),
        features_of_teacher=True,
        frame_times=None if stamps is None else stamps[:, span.start : span.stop],
        motions=None if motions is None else motions[:, span.start : span.stop],
        **known,
    )


def _run_language_model(
    model: LlavaMetaForCausalLM, sequence: FrameSequence, tokens: Float[Tensor, "v t n h"], layer: int
) -> Float[Tensor, "v s h"]:
    """Hidden states as the loss reads them in training."""
    table: Any = model.get_input_embeddings()
    ids = sequence.ids.to(table.weight.device).expand(len(tokens), -1)
    embeds = model.embed_multimodal(ids, ids == sequence.image_token_id, tokens.flatten(0, 1))
    decoder: Any = model.llm.get_decoder()
    decoded = decoder(inputs_embeds=embeds, use_cache=False, output_hidden_states=layer != -1)
    return decoded.last_hidden_state if layer == -1 else decoded.hidden_states[layer]


def _errors_of(output: ReconstructionOutput, num_frames: int) -> ClipErrors:
    site = output.sites["visual"]
    tokens = [(guess - site.target).square().mean(dim=-1) for guess in (site.predicted, site.current)]
    predicted, copied = (_at_targets(site, values, num_frames).cpu() for values in tokens)
    return ClipErrors(surprise=output.surprise(num_frames).float().cpu(), predicted=predicted, copied=copied)


def _at_targets(site: SitePrediction, values: Float[Tensor, "v q p"], num_frames: int) -> Float[Tensor, "v t p"]:
    """Errors at the frames that were predicted; the mean where both pathways predict the same frame."""
    clip, query = site.plan.is_item.nonzero(as_tuple=True)
    frame = site.plan.targets[clip, query]
    total = values.new_zeros(len(values), num_frames, values.shape[2])
    total.index_put_((clip.to(total.device), frame.to(total.device)), values[clip, query], accumulate=True)
    count = torch.zeros(len(values), num_frames).index_put_((clip, frame), torch.ones(len(clip)), accumulate=True)
    return total / torch.where(count > 0, count, torch.nan).to(total.device)[..., None]


def _merge(before: ClipErrors | None, found: ClipErrors, span: range, num_frames: int) -> ClipErrors:
    def merged(name: str) -> Tensor:
        new = getattr(found, name)
        whole = new.new_full((len(new), num_frames, *new.shape[2:]), torch.nan)
        whole[:, span.start : span.stop] = new
        if before is None:
            return whole
        old = getattr(before, name)
        return torch.where(old.isnan(), whole, old)

    return ClipErrors(**{name: merged(name) for name in ("surprise", "predicted", "copied")})


# ---- what is looked at together ----


def _layout(
    model: LlavaMetaForCausalLM, config: ReconstructionConfig, context: str | None, prompt: str | None
) -> SequenceLayout | None:
    """None where no language model takes part."""
    if context not in (None, "language", "none"):
        raise ValueError(f"context is {context!r}, expected 'language', 'none' or None for the training's")
    needs_it = config.context == "language" or config.predictor_input == "hidden"
    if (context == "none" and needs_it) or (context == "language" and config.context == "none"):
        raise ValueError(
            f"context is '{context}' and the predictor was trained with context {config.context!r} and "
            f"predictor_input '{config.predictor_input}'; leave context out"
        )
    if "none" in (context, config.context):
        return None
    return SequenceLayout.of(model, prompt or "")


def _window(
    model: LlavaMetaForCausalLM,
    config: ReconstructionConfig,
    layout: SequenceLayout | None,
    wanted: int | None,
    num_frames: int,
) -> int:
    fits = LONGEST_WITHOUT_LANGUAGE if layout is None else layout.frames_that_fit(model)
    if wanted is None:
        shown = [fits] if layout is None or layout.num_shown is None else [fits, layout.num_shown]
        wanted = max(2, min(*shown, config.num_fast) if config.use_fast_slow_frames else min(shown))
    if wanted < 2 or (layout is not None and min(wanted, num_frames) > fits):
        raise ValueError(f"a window has {wanted} frames, expected 2 to {fits}, which fit the language model's context")
    return wanted


def _overlap(config: ReconstructionConfig, window: int, wanted: int | None) -> int:
    """Half a window, and all the frames on which a prediction may draw where it is long enough."""
    return min(max(window // 2, config.num_hist), window - 1) if wanted is None else wanted


def _motions(
    config: ReconstructionConfig, motions: Tensor | None, shape: tuple[int, ...]
) -> Float[Tensor, "v t 3"] | None:
    if motions is not None:
        motions = motions.float().cpu()
        motions = motions[None] if motions.ndim == 2 else motions
        if tuple(motions.shape) != (*shape, 3):
            raise ValueError(f"motions has shape {list(motions.shape)}, expected {[*shape, 3]}: one entry per frame")
        return motions
    return None if config.condition_on_action == "none" else torch.full((*shape, 3), torch.nan)


__all__ = ["ClipErrors", "clip_errors", "frame_surprise", "plan_windows", "require_next_frame", "require_predictor"]
