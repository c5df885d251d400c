"""The expert's way through unseen houses, as a trained model reads it: cross-entropies and the states that decide."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.data.base import DataOptions
from llava.data.builder import MixtureDataset, build_dataset
from llava.data.collate import DataCollator
from llava.data.dataset_impl.episodes import Window, episode_of
from llava.data.datasets_mixture import load_registry
from llava.model.attention import predecessor_index
from llava.model.loss import supervised_rows
from llava.navigation.actions import SentenceFormat
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.dataset_writer import SPLIT_SEEDS
from llava.navigation.worlds.demonstrations import demonstrate
from llava.navigation.worlds.expert import STAND_OFF_M

REGISTRY = Path(__file__).with_name("heldout.yaml")
MIXTURES = {"streaming": "embedded_streaming_heldout", "8frames": "embedded_navigation_heldout"}
SPLIT = "val_unseen"
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, kw_only=True)
class DecisionPoint:
    """One decision of the expert in an unseen house.

    Attributes:
        episode, num_frames: which one.
        action: id of the kind of action that was demonstrated.
        loss: sum of the cross-entropies of the answer's tokens; tokens: how many.
        states: [layers, D] where the first token of the answer is predicted.
    """

    episode: str
    num_frames: int
    action: int
    loss: float
    tokens: int
    states: Float[Tensor, "l d"]


def heldout_dataset(model: Any, form: str, data_root: Path) -> MixtureDataset:
    """The unseen houses in the prompt that the checkpoint stores."""
    stored = model.config.navigation_prompt or {}
    options = DataOptions(
        num_video_frames=model.config.num_video_frames or 8,
        instruction=stored.get("instruction", "normalised"),
        answers_visible=stored.get("answers_visible", False),
        tokenization_compat=model.config.tokenization_compat,
        on_error="raise",
    )
    return build_dataset(
        MIXTURES[form],
        registry=load_registry(REGISTRY, data_root=data_root),
        tokenizer=model.tokenizer,
        spec=model.visual_spec,
        template=model.config.version or "auto",
        options=options,
    )


def decisions_of(record: Any) -> list[tuple[str, int, str]]:
    """(episode, frames seen, answer) of every decision in a record of either format, in the order of the sequence."""
    if isinstance(record, Window):
        return [(record.episode, d.num_frames, d.answer) for d in record.decisions]
    return [(episode_of(record), len(record["frames"]), record["a"])]


@torch.no_grad()
def read_decisions(model: Any, form: str, data_root: Path, episodes: int) -> Iterator[DecisionPoint]:
    """Every decision in the first houses, batch by batch."""
    model.eval()
    mixture = heldout_dataset(model, form, data_root)
    dataset = mixture.parts[0].dataset
    records = [dataset.records[int(index)] for index in mixture.parts[0].indices]  # pyright: ignore
    chosen = [i for i, record in enumerate(records) if int(decisions_of(record)[0][0]) < episodes]
    pad = model.tokenizer.pad_token_id
    collator = DataCollator(
        pad_token_id=int(model.tokenizer.eos_token_id if pad is None else pad),
        max_length=model.llm.config.max_position_embeddings,
        mode="pack",
        rows="one",
        image_token_id=model.config.image_token_id,
        overlong="raise",
    )
    for part in _batches(chosen, mixture.lengths, TOKENS_PER_BATCH):
        batch = collator([mixture[i] for i in part])
        yield from _points_of(model, batch, [decisions_of(records[i]) for i in part])


def _batches(chosen: Sequence[int], lengths: Int[np.ndarray, "n"], tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    for index in chosen:
        if part and sum(lengths[i] for i in (*part, index)) > tokens:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def _points_of(model: Any, batch: Any, decisions: list[list[tuple[str, int, str]]]) -> Iterator[DecisionPoint]:
    """Answers of a packed row in order: a new one begins where the sample or the branch changes."""
    inputs = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "sample_ids"}
    output = model(**inputs, output_hidden_states=True)
    labels, segments, branches = batch["labels"], batch["segment_ids"], batch["branch_ids"]
    rows, targets = supervised_rows(labels, segments, branches)
    losses = F.cross_entropy(output.logits[0, rows].float().cpu(), targets, reduction="none")
    is_target = ((labels != IGNORE_INDEX) & (predecessor_index(segments, branches) >= 0))[0]
    sample, branch = segments[0][is_target], branches[0][is_target]
    states = torch.stack([layer[0, rows] for layer in output.hidden_states], dim=1).float().cpu()  # [n, layers, D]
    starts = _starts(sample, branch)
    wanted = [(number, decision) for number, listed in enumerate(decisions) for decision in listed]
    if len(starts) != len(wanted) or sample[starts].tolist() != [number for number, _ in wanted]:
        raise ValueError(
            f"a batch of {len(decisions)} samples has {len(starts)} answers, expected {len(wanted)}, one per decision; "
            "questions or cut samples are among them: write the held-out data again"
        )
    sentences = SentenceFormat()
    for (_, (episode, num_frames, answer)), begin, end in zip(wanted, starts, [*starts[1:], len(sample)], strict=True):
        action = sentences.read(answer)
        if action is None:
            raise ValueError(f"episode {episode}: answer {answer!r} names no action; write the held-out data again")
        yield DecisionPoint(
            episode=episode,
            num_frames=num_frames,
            action=int(action.kind),
            loss=float(losses[begin:end].sum()),
            tokens=end - begin,
            states=states[begin],
        )


def _starts(sample: Tensor, branch: Tensor) -> list[int]:
    key = torch.stack([sample, branch], dim=1)
    return [0, *((key[1:] != key[:-1]).any(dim=1).nonzero()[:, 0] + 1).tolist()]


def distances_to_goal(data_root: Path, episodes: int) -> dict[tuple[str, int], float]:
    """Metres of the shortest way to the goal at every decision in the first houses, by (episode, frames seen).

    The walks are made again from the settings beside the data, without pictures.
    """
    settings = json.loads((data_root / f"world_{SPLIT}.json").read_text())["settings"]
    if settings["camera_range"] is not None:
        raise ValueError(f"{data_root} was written with --random-camera, expected one camera; write it again without")
    walks = demonstrate(
        settings["level"],
        SPLIT_SEEDS[SPLIT] + settings["seed"] + np.arange(min(episodes, settings["num_episodes"])),
        CameraProfile.from_dict(settings["camera"]),
        noise=settings["noise"],
        detours=settings["detours"],
    )
    episode = np.repeat(np.arange(len(walks)), np.diff(walks.decision_start))
    at = walks.decision_frame
    to_object, _ = walks.tasks.to_object.query(episode, walks.x[at], walks.z[at])
    step = at - walks.frame_start[episode]
    metres = np.maximum(to_object - STAND_OFF_M, 0.0)
    return {
        (str(e), int(s) + 1): float(m) for e, s, m in zip(episode.tolist(), step.tolist(), metres.tolist(), strict=True)
    }
