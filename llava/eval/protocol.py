"""The protocol card: everything that must be known before two navigation numbers may stand in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava.eval.navigation_loop import MAX_STEPS
from llava.navigation.metrics import DTW_BACKENDS, SUCCESS_DISTANCE

logger = logging.getLogger(__name__)

CAMERA_TOLERANCE = {"height_m": 0.02, "pitch_deg": 0.5, "hfov_deg": 0.5}


@dataclass(frozen=True, kw_only=True)
class ProtocolCard:
    """Stands in every result file; two results with different cards are not comparable.

    Attributes:
        task: name of the task in the registry.
        population: which episodes, in words: data set, split, level, filters.
        data_hash: of the evaluated episodes themselves, in order.
        num_episodes: how many they are; num_scenes: in how many scenes.
        policy: what walks: checkpoint, prompt format, decoding.
        camera: height, pitch, field of view and size at run time.
        trained_camera: the camera stored in the checkpoint, None where it stores none.
        seeds: of the policy where it draws; greedy decoding draws nothing.
    """

    task: str
    population: str
    data_hash: str
    num_episodes: int
    num_scenes: int
    policy: Mapping[str, Any]
    camera: Mapping[str, Any] | None
    trained_camera: Mapping[str, Any] | None = None
    turn_degrees: float | int = 15
    forward_m: float = 0.25
    max_steps: int = MAX_STEPS
    success_radii_m: Sequence[float | int] = (SUCCESS_DISTANCE, 1.0)
    dtw_backend: str = "exact"
    interval: str = "95 %, Wilson for rates, bootstrap over episodes for means"
    seeds: Sequence[int] = (0,)
    unparsed_answer: str = "forward 25 cm, counted"
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_episodes < 1:
            raise ValueError(f"num_episodes is {self.num_episodes}, expected at least 1")
        if self.dtw_backend not in DTW_BACKENDS:
            DTW_BACKENDS[self.dtw_backend]

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the fields whose change makes old episodes unusable for this evaluation (versions may differ)."""
        mine = self.to_dict()
        return [name for name in mine if name != "versions" and mine[name] != other.get(name)]


def episodes_hash(episodes: Sequence[Any]) -> str:
    """Twelve hexadecimal digits that name the evaluated population, its order and its instructions."""
    digest = hashlib.sha256()
    for e in episodes:
        facts = [e.episode_id, e.scene_id, e.instruction, list(e.start_position), list(e.start_rotation), list(e.goals)]
        digest.update(json.dumps(facts, default=list).encode())
    return digest.hexdigest()[:12]


def compare_cameras(
    trained: Mapping[str, Any] | None, used: Mapping[str, Any] | None, *, allow_mismatch: bool = False
) -> list[str]:
    """Differences between the camera a checkpoint was trained with and the one it is about to look through.

    Raises:
        ValueError: they differ in height, pitch or field of view and `allow_mismatch` is False.
    """
    if not trained or not used:
        logger.warning("cameras are not compared: %s stores none", "the checkpoint" if not trained else "the data set")
        return []
    different = [
        f"{name} {trained[name]:g} -> {used[name]:g}"
        for name, tolerance in CAMERA_TOLERANCE.items()
        if name in trained and name in used and not math.isclose(trained[name], used[name], abs_tol=tolerance)
    ]
    sizes = [
        f"{name} {trained[name]} -> {used[name]}" for name in ("width", "height") if trained.get(name) != used.get(name)
    ]
    if different and not allow_mismatch:
        raise ValueError(
            f"the checkpoint was trained with another camera ({', '.join(different)}); evaluate on data rendered "
            "with its camera, or pass --allow-camera-mismatch to measure exactly this"
        )
    if different or sizes:
        logger.warning("camera of training -> of evaluation: %s", ", ".join(different + sizes))
    return different + sizes
