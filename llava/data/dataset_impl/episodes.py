"""NaVILA records joined into episodes: decisions in order, copies counted once, what was executed between pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llava.data.base import Dataset
from llava.data.utils import BrokenSampleError, read_json
from llava.navigation.actions import Action, ActionKind, SentenceFormat
from llava.navigation.motions import ExecutedActions, motions_along, parse_actions, recover_actions


def episode_of(record: Mapping[str, Any]) -> str:
    """Episode part of `video_id`, "<episode>-<step>"."""
    video_id = str(record.get("video_id", "?"))
    return video_id.rpartition("-")[0] or video_id


def check_decision(record: Mapping[str, Any]) -> None:
    """Raise where a decision lacks its instruction, its answer or its frames."""
    for key in ("q", "a"):
        if not isinstance(record.get(key), str):
            raise BrokenSampleError(f"'{key}' is {record.get(key)!r}, expected a string; keys are {sorted(record)}")
    if not record.get("frames"):
        raise BrokenSampleError(
            "'frames' is missing or empty; expected the paths of all frames so far, current one last"
        )


@dataclass(frozen=True)
class Decision:
    """What was seen last and what the expert did then."""

    num_frames: int
    frame: str
    answer: str


@dataclass(frozen=True)
class Window:
    """Consecutive decisions of one episode. `first` counts from the episode's first decision.

    `following` is the decision behind the window, where there is one.
    """

    episode: str
    instruction: str
    first: int
    decisions: tuple[Decision, ...]
    problem: str = ""
    following: Decision | None = None


def join_episodes(records: Iterable[Mapping[str, Any]]) -> list[Window]:
    """Episodes in the order in which they first occur, decisions sorted by the number of frames seen.

    Copies made by oversampling (same episode, same number of frames, same answer) count once. Records that contradict
    each other or lack a field leave their `problem` in the episode, which then counts as broken.
    """
    episodes: dict[tuple[str, str], dict[int, Decision]] = {}
    problems: dict[tuple[str, str], str] = {}
    for record in records:
        video_id = str(record.get("video_id", "?"))
        key = episode_of(record), str(record.get("q"))
        decisions = episodes.setdefault(key, {})
        try:
            check_decision(record)
        except BrokenSampleError as error:
            problems.setdefault(key, f"record {video_id}: {error}")
            continue
        new = Decision(len(record["frames"]), record["frames"][-1], record["a"])
        if decisions.setdefault(new.num_frames, new) != new:
            problems.setdefault(
                key, f"two records {video_id} contradict: {decisions[new.num_frames].answer!r}, {new.answer!r}"
            )
    return [
        Window(episode, task, 0, tuple(found[n] for n in sorted(found)), problems.get((episode, task), ""))
        for (episode, task), found in episodes.items()
    ]


def cut_windows(episode: Window, max_decisions: int | None) -> list[Window]:
    """Windows of nearly equal size, at most `max_decisions` each; each decision is in one, each has the task."""
    total = len(episode.decisions)
    if max_decisions is None or total <= max_decisions:
        return [episode]
    count = -(-total // max_decisions)
    bounds = [total * i // count for i in range(count + 1)]
    following = (*episode.decisions, None)
    return [
        Window(episode.episode, episode.instruction, a, episode.decisions[a:b], episode.problem, following[b])
        for a, b in pairwise(bounds)
    ]


class Executed:
    """What was executed in the episodes of one data set, and which decision follows which.

    A file of executed actions wins over the answers of the records, which tell them only as far as they leave no doubt
    (`motions.recover_actions`) and not at all in episodes whose records contradict each other.
    """

    def __init__(
        self,
        episodes: Iterable[Window],
        recorded: Mapping[str, ExecutedActions] | None,
        *,
        frame_per_action: bool,
        turn_degrees: int,
    ) -> None:
        self._decisions = {(e.episode, e.instruction): () if e.problem else e.decisions for e in episodes}
        self._recorded = recorded
        self._recovered: dict[tuple[str, str], ExecutedActions] = {}
        self._frame_per_action = frame_per_action
        self._turn_degrees = turn_degrees
        self._sentences = SentenceFormat(turn_degrees=turn_degrees)  # pyright: ignore[reportCallIssue]

    @classmethod
    def of(cls, dataset: Dataset, episodes: Iterable[Window], path: str | Path | None) -> Executed | None:
        """What the options of the data set ask for; None = no clips, and no file is read."""
        options = dataset.context.options
        if options.clips is None:
            return None
        recorded = None if path is None else read_executed(Path(path).expanduser(), dataset.name)
        return cls(episodes, recorded, frame_per_action=options.frame_per_action, turn_degrees=options.turn_degrees)

    def along(self, episode: str, instruction: str, frames: Sequence[int]) -> Float[Tensor, "t 3"]:
        """The motion from each of some frames of an episode to the next of them; -1 = no frame."""
        actions = self._actions(episode, instruction, max(frames))
        return torch.from_numpy(motions_along(actions, frames, turn_degrees=self._turn_degrees))

    def following(self, episode: str, instruction: str, num_frames: int) -> Decision | None:
        """The first decision that saw more frames; None where the records know none."""
        decisions = self._decisions[episode, instruction]
        place = bisect_right(decisions, num_frames, key=lambda decision: decision.num_frames)
        return decisions[place] if place < len(decisions) else None

    def is_stop(self, answer: str) -> bool:
        action = self._read(answer)
        return action is not None and action.kind is ActionKind.STOP

    def _actions(self, episode: str, instruction: str, last_frame: int) -> ExecutedActions:
        if self._recorded is not None:
            known = self._recorded.get(episode)
            if known is None or len(known) < last_frame:
                raise BrokenSampleError(
                    f"episode {episode} has {0 if known is None else len(known)} executed actions, expected at least "
                    f"{last_frame}, one from each frame to the next; write annotations and actions in one go"
                )
            return known
        key = (episode, instruction)
        if key not in self._recovered:
            decisions = self._decisions[key] if self._frame_per_action else ()
            self._recovered[key] = recover_actions((d.num_frames, self._read(d.answer)) for d in decisions)
        return self._recovered[key]

    def _read(self, answer: str) -> Action | None:
        return self._sentences.read(answer)


def read_executed(path: Path, dataset: str) -> dict[str, ExecutedActions]:
    """`{episode: "1132..." | [1, 1, 3, 2, ...]}`, action k leads from frame k to frame k + 1; .json or .json.gz."""
    if not path.exists():
        raise FileNotFoundError(
            f"data set '{dataset}': actions_path is {path}, which does not exist; clips need the executed actions: "
            "write the data again (vila-world write), or remove actions_path where answers were executed as they stand"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object {{episode: executed actions}}")
    executed = {}
    for episode, actions in content.items():
        try:
            executed[episode] = parse_actions(actions)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, episode {episode}: {error}") from error
    return executed
