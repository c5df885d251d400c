"""What walks: a policy sees running episodes and answers each with one decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llava.navigation.actions import Action


@dataclass(kw_only=True)
class EpisodeView:
    """A running episode as a policy sees it.

    Attributes:
        key: name of the running episode, unique within one evaluation; policies keep their memory under it.
        instruction: the task in words, as the data set gives it.
        frames: uint8 [H, W, 3] pictures in order, the newest last: one per low-level action and the first, or only
            those before a decision when the policy says `needs_every_frame = False`.
        object_masks: bool [H, W] per frame, True = object, where the simulator tells; for models that read background
            and objects apart and bring no detector.
        actions: low-level actions so far (0 stop, 1 forward, 2 left, 3 right).
        simulator: the simulator's own view of this episode, for policies that are allowed to cheat.
    """

    key: str
    instruction: str
    frames: list[np.ndarray] = field(default_factory=list)
    object_masks: list[np.ndarray] | None = None
    actions: list[int] = field(default_factory=list)
    simulator: Any = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One answer of a policy.

    Attributes:
        action: what is done now.
        understood: False where the answer named no action and the declared fallback is done.
        text: the answer, empty for policies without words.
        tokens: positions that the language model read and wrote for this decision, answer included; a growing sequence
            reads only what is new.
        frames_encoded, frames_reused: pictures shown for this decision that went through the tower, and those whose
            features were known; repeated and black ones are not counted.
        kept_tokens: positions whose keys and values were known.
    """

    action: Action
    understood: bool = True
    text: str = ""
    tokens: int = 0
    frames_encoded: int = 0
    frames_reused: int = 0
    kept_tokens: int = 0


@runtime_checkable
class Policy(Protocol):
    """Decides for several running episodes at once. An episode's memory lives from its first `act` to its `finish`."""

    name: str
    needs_every_frame: bool

    def act(self, views: Sequence[EpisodeView]) -> list[Decision]:
        """One decision per view, in order. Views that are left out this time keep their memory."""
        ...

    def finish(self, key: str) -> None:
        """The episode is over: its memory is dropped."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the protocol card says about it: decoding, prompt, checkpoint."""
        ...
