"""What a model predicts on walks of a data set: laid out, collated and fused exactly as in its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from llava.conversation import get_template
from llava.data.base import DataContext, DataOptions, Dataset
from llava.data.clips import ClipOptions
from llava.data.collate import DataCollator
from llava.data.dataset_impl.episodes import episode_of
from llava.data.dataset_impl.streaming import StreamingDataset
from llava.data.dataset_impl.vlnce import VLNCEDataset
from llava.model.autoregressive_reconstruction.batches import outputs_of, reconstruct
from llava.model.autoregressive_reconstruction.clips import motion_between
from llava.model.autoregressive_reconstruction.outputs import SitePrediction
from llava.model.autoregressive_reconstruction.surprise import require_next_frame
from llava.navigation.prompt import StreamingFormat, build_prompt_format

LONGEST_ROW = 1 << 20
"""Tokens: no walk is cut."""


@dataclass(frozen=True, kw_only=True)
class PredictedFrame:
    """One prediction: of which frame, from which, and what it missed.

    Attributes:
        error, copied: mean squared error per target token, of the prediction and of the frame predicted from.
        motion: executed in between, as in `VideoClips`; NaN = unknown.
        steps: low-level steps at which both pictures were taken.
    """

    seen: UInt8[np.ndarray, "h w 3"]
    following: UInt8[np.ndarray, "h w 3"]
    error: Float[np.ndarray, "g g"]
    copied: Float[np.ndarray, "g g"]
    motion: Float[np.ndarray, "3"]
    steps: tuple[float, float]
    site: str


@dataclass(frozen=True, kw_only=True)
class Walk:
    episode: str
    instruction: str
    frames: Sequence[PredictedFrame]


def predict_walks(model: Any, root: Path, split: str, *, num_episodes: int, num_frames: int) -> list[Walk]:
    """Episodes spread evenly over a split, with at most so many predicted frames each.

    Raises:
        FileNotFoundError: the split is not there. ValueError: the model was not trained on walks or predicts something
            else, or nothing in the split can be predicted.
    """
    module = model.autoregressive_reconstruction
    require_next_frame(module.config)
    dataset = open_dataset(model, root, split)
    samples = samples_of_episodes(dataset, num_frames if module.config.sites == ("answer",) else 1)
    walks = []
    for episode in np.linspace(0, len(samples) - 1, min(num_episodes, len(samples))).round().astype(int).tolist():
        name, instruction, indices = samples[episode]
        frames = [frame for index in indices for frame in predict_sample(model, dataset, index)]
        if frames:
            walks.append(Walk(episode=name, instruction=instruction, frames=frames[:num_frames]))
    if not walks:
        raise ValueError(f"{root}, {split}: none of {len(samples)} episodes has a frame to predict; take a larger set")
    return walks


def open_dataset(model: Any, root: Path, split: str) -> StreamingDataset | VLNCEDataset:
    """The walks of `vila-world write`, or any folder in its layout, in the prompt format of the model."""
    if not model.config.navigation_prompt:
        raise ValueError("the checkpoint stores no navigation_prompt, expected a model that was trained on walks")
    known = build_prompt_format(model.config.navigation_prompt)
    chosen: dict[str, Any] = {"instruction": known.instruction}
    if isinstance(known, StreamingFormat):
        names = ("answers_visible", "end_of_turn", "names_place")
        chosen |= {name: getattr(known, name) for name in names}
    else:
        chosen["num_video_frames"] = known.num_frames
    sites = model.autoregressive_reconstruction.config.sites
    options = DataOptions(
        tokenization_compat=model.config.tokenization_compat,
        clips=ClipOptions(answer_targets="answer" in sites),
        on_error="raise",
        **chosen,
    )
    template = get_template(model.config.version or "auto")
    context = DataContext(tokenizer=model.tokenizer, spec=model.visual_spec, template=template, options=options)
    kind = StreamingDataset if isinstance(known, StreamingFormat) else VLNCEDataset
    return kind(str(root), context, **files_of(root, split))


def files_of(root: Path, split: str) -> dict[str, Path]:
    """The files of a split: published names for "train", names with the split in them for others."""
    suffix = "" if split == "train" else f"_{split}"
    annotations = root / f"annotations{suffix}.json"
    if not annotations.is_file() or not (root / split).is_dir():
        raise FileNotFoundError(
            f"{root} has no {annotations.name} with frames in {split}/; write them with vila-world write --split "
            f"{split} --frames filmstrip --out {root}, or choose another --split"
        )
    files = {"data_path": annotations, "media_dir": root / split}
    beside = {
        "actions_path": root / split / "motions.json.gz",
        "grounding_path": root / f"episode_grounding{suffix}.json.gz",
    }
    return files | {name: path for name, path in beside.items() if path.is_file()}


def samples_of_episodes(dataset: Dataset, num_records: int) -> list[tuple[str, str, list[int]]]:
    """(episode, instruction, indices of samples); of a record per decision `num_records` are spread over the episode.

    With one record it is the last, which shows the whole walk.
    """
    if isinstance(dataset, StreamingDataset):
        return [
            (window.episode, window.instruction, [index])
            for index, window in enumerate(dataset.records)
            if not window.problem
        ]
    found: dict[tuple[str, str], dict[int, int]] = {}
    for index, record in enumerate(dataset.records):
        found.setdefault((episode_of(record), record["q"]), {})[len(record["frames"])] = index
    episodes = []
    for (name, instruction), by_length in found.items():
        indices = [by_length[length] for length in sorted(by_length)]
        places = np.linspace(len(indices) - 1, 0, min(num_records, len(indices))).round().astype(int)[::-1]
        episodes.append((name, instruction, [indices[place] for place in places.tolist()]))
    return episodes


@torch.no_grad()
def predict_sample(model: Any, dataset: Dataset, index: int) -> list[PredictedFrame]:
    """Every prediction of one sample, site by site; none where it has no clip."""
    collate = DataCollator(pad_token_id=0, max_length=LONGEST_ROW, image_token_id=model.config.image_token_id)
    batch: Mapping[str, Any] = collate([dataset.build(index)])
    if "clips" not in batch:
        return []
    module, layer = model.autoregressive_reconstruction, model.autoregressive_reconstruction.config.aux_layer
    shown = ("input_ids", "images", "attention_mask", "position_ids", "segment_ids", "branch_ids")
    fed = {name: batch[name].to(model.device) for name in shown if name in batch}
    with outputs_of(model.llm.get_decoder()) as seen:
        model(**fed, logits_to_keep=1, **({} if layer == -1 else {"output_hidden_states": True}))
    decoded: Any = seen[0]
    on_device = {name: batch["clips"][name].to(model.device) for name in ("target_frames",) if name in batch["clips"]}
    clips: Any = {**batch["clips"], **on_device}
    if (width := module.config.geometry_dim) is not None:  # only features are shown
        clips["geometry"] = torch.full((*clips["frames"].shape, 1, width), torch.nan, device=model.device)
    output = reconstruct(
        module,
        decoded.last_hidden_state if layer == -1 else decoded.hidden_states[layer],
        images=fed["images"],
        clips=clips,
        segment_ids=fed.get("segment_ids"),
        branch_ids=fed.get("branch_ids"),
    )
    pictures = torch.cat([batch["images"], *(batch["clips"][name] for name in on_device)]).permute(0, 2, 3, 1).numpy()
    frames = pictures[batch["clips"]["frames"][0].clamp(min=0).numpy()]  # [T, H, W, 3]
    return [frame for name, site in output.sites.items() for frame in frames_of_site(name, site, frames)]


def frames_of_site(name: str, site: SitePrediction, frames: UInt8[np.ndarray, "t h w 3"]) -> list[PredictedFrame]:
    """The predictions of the only clip of a batch."""
    plan, whole = site.plan, site.plan.clips.original
    start = plan.clips.indices
    motions = motion_between(plan.clips, start.expand_as(plan.targets), plan.targets)
    side = int(site.target.shape[2] ** 0.5)
    errors = [
        (guess - site.target).square().mean(dim=-1).unflatten(2, (side, side)).float().cpu().numpy()
        for guess in (site.predicted, site.current)
    ]
    found = []
    for query in plan.is_item[0].nonzero()[:, 0].tolist():
        before, after = int(start[query]), int(plan.targets[0, query])
        found.append(
            PredictedFrame(
                seen=frames[before],
                following=frames[after],
                error=errors[0][0, query],
                copied=errors[1][0, query],
                motion=motions[0, query].numpy(),
                steps=(float(whole.times[0, before]), float(whole.times[0, after])),
                site=name,
            )
        )
    return found
