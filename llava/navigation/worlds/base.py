"""What every navigation world offers, and the records that describe an episode.

Coordinates are those of Habitat: metres, y up, heading 0 looks along -z, a left turn increases the heading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

STOP, FORWARD, LEFT, RIGHT = 0, 1, 2, 3
FORWARD_M = 0.25
TURN_DEG = 15
NUM_HEADINGS = 24

Point = tuple[float, float, float]
Coordinates = Sequence[float | int] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class CameraProfile:
    """Where the camera sits and what it sees; stored with data and checkpoints and compared at evaluation.

    Attributes:
        height_m: optical centre above the floor.
        pitch_deg: positive looks up.
        hfov_deg: horizontal field of view; the vertical one follows from the aspect ratio (square pixels).
    """

    height_m: float | int = 1.25
    pitch_deg: float | int = 0.0
    hfov_deg: float | int = 90.0
    width: int = 64
    height: int = 64

    def __post_init__(self) -> None:
        for name in ("height_m", "pitch_deg", "hfov_deg"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0.1 <= self.height_m <= 2.4:
            raise ValueError(f"height_m is {self.height_m}, expected 0.1 to 2.4 (rooms are 2.6 m high)")
        if not -45 <= self.pitch_deg <= 45:
            raise ValueError(f"pitch_deg is {self.pitch_deg}, expected -45 to 45 (positive looks up)")
        if not 20 <= self.hfov_deg <= 140:
            raise ValueError(f"hfov_deg is {self.hfov_deg}, expected 20 to 140")
        for name in ("width", "height"):
            if not 8 <= getattr(self, name) <= 4096:
                raise ValueError(f"camera {name} is {getattr(self, name)} pixels, expected 8 to 4096")

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CameraProfile:
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"camera profile has unknown keys {sorted(unknown)}; expected {list(cls.__dataclass_fields__)}"
            )
        return cls(**dict(values))

    @property
    def tan_half_hfov(self) -> float:
        """tan(hfov / 2) as a multiple of 2^-20: the same bits on every machine, exactly 1 at 90 degrees."""
        return round(math.tan(math.radians(self.hfov_deg) / 2) * 2**20) / 2**20

    @property
    def pitch_cos_sin(self) -> tuple[float, float]:
        """Rational point of the unit circle next to the pitch (error below 1e-6): the same bits on every machine."""
        half = round(math.tan(math.radians(self.pitch_deg) / 2) * 2**20) / 2**20
        return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One task: walk from the start to a goal as the instruction says.

    Attributes:
        scene_id: `embedded/<level>/<seed>` for the embedded world, a .glb path for Matterport scenes.
        start_rotation: quaternion [x, y, z, w].
        goals: goal positions; the distance to the nearest counts.
        reference_path: sparse way-points from start to goal.
        locations: dense ground-truth positions (nDTW is measured against them), empty where unknown.
        actions: ground-truth low-level actions that end in STOP, empty where unknown.
        geodesic_distance: start to goal, None where unknown (test splits).
        info: anything else; the embedded world stores `goal_object` and `objects` {name: [x, y, z]} here.
    """

    episode_id: str
    scene_id: str
    instruction: str
    start_position: Point
    start_rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    goals: tuple[Point, ...] = ()
    goal_radius: float = 3.0
    reference_path: tuple[Point, ...] = ()
    locations: tuple[Point, ...] = ()
    actions: tuple[int, ...] = ()
    geodesic_distance: float | None = None
    trajectory_id: int = 0
    language: str = "en-US"
    camera: CameraProfile | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """What the robot sees: RGB, and z-depth in metres and instance ids (0 = background) where the world has them."""

    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"] | None = None
    instance_ids: UInt8[np.ndarray, "h w"] | None = None


@runtime_checkable
class NavigationWorld(Protocol):
    """A simulator: everything that navigation metrics need is computed from these answers."""

    def reset(self, episode: Episode) -> Observation: ...

    def step(self, action: int) -> Observation:
        """Executes one low-level action (0 STOP, 1 FORWARD, 2 LEFT, 3 RIGHT)."""
        ...

    def position(self) -> Point: ...

    def heading(self) -> float:
        """Radians, counter-clockwise seen from above; 0 looks along -z."""
        ...

    def geodesic(self, start: Coordinates, goals: Sequence[Coordinates]) -> float:
        """Shortest walkable way to the nearest goal in metres; inf where there is none."""
        ...

    @property
    def collided(self) -> bool:
        """True when the last forward step was blocked or slid along something."""
        ...

    def close(self) -> None: ...


def rotation_from_heading(heading_index: int) -> tuple[float, float, float, float]:
    """Quaternion [x, y, z, w] of a heading of `heading_index` * 15 degrees, rounded to 1e-12."""
    half = math.radians(heading_index % NUM_HEADINGS * TURN_DEG) / 2
    return (0.0, round(math.sin(half), 12), 0.0, round(math.cos(half), 12))


def heading_from_rotation(rotation: Coordinates) -> float:
    """Heading in radians, within [0, 2 pi), of a quaternion [x, y, z, w] about any axis."""
    x, y, z, w = (float(value) for value in rotation)
    forward_x, forward_z = -2 * (x * z + w * y), -(1 - 2 * (x * x + y * y))
    return math.atan2(-forward_x, -forward_z) % (2 * math.pi)


def heading_index_from_rotation(rotation: Coordinates) -> int:
    """The multiple of 15 degrees nearest to a quaternion's heading."""
    return round(heading_from_rotation(rotation) / math.radians(TURN_DEG)) % NUM_HEADINGS
