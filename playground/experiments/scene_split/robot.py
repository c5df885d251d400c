"""A camera in the corner of a room looks down on a robot: where should it go? The camera never moves, the robot does.

The room, its landmarks and the picture are those of the embedded world's `one_room`; one landmark is painted red. The
robot is a white cylinder that drives along the axes of the picture in steps of `STEP_M` and passes landmarks freely:
what is in the way is no part of the task. It has arrived when it says "stop" within `ARRIVED_M` of the red landmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.house import HouseBatch, generate_houses, pick_integers, random_pool
from llava.navigation.worlds.renderer import Frames, render
from llava.navigation.worlds.tables import COLOUR_NAMES, CYLINDER, FORWARD_X, FORWARD_Z, RIGHT_X, RIGHT_Z, SHAPE_NAMES

LEVEL = "one_room"
HEADING = 15
"""From the north-west corner to the south-east one."""
CORNER_M = 0.3
STEP_M = 0.8
ARRIVED_M = 0.9
NEAR_M = 0.6
"""The expert stops when neither axis is farther off than this."""
MARGIN_M = 0.7
ROBOT_RADIUS_M, ROBOT_HEIGHT_M = 0.35, 1.0
ROBOT_STREAM = 1 << 25
INSTRUCTION = "Where should the robot go to reach what is red?"
MOVES = ("left", "right", "nearer", "farther", "stop")
CELLS = 8
"""Columns and rows of the picture in which an answer says where things are."""
SPLITS = {"train": 0, "unseen": 1 << 40}
"""First house of each split; the embedded world's own, so the houses are those of its splits."""


def room_camera(side: int) -> CameraProfile:
    return CameraProfile(height_m=2.4, pitch_deg=-38, hfov_deg=90, width=side, height=side)


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """N rooms with a robot in each.

    Attributes:
        x, z: where the robots stand.
    """

    houses: HouseBatch
    x: Float[np.ndarray, " n"]
    z: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, split: str, count: int, *, draw: int = 0) -> Rooms:
        """draw: number of the robot's place in the same rooms."""
        houses = generate_houses(LEVEL, SPLITS[split] + np.arange(count))
        uniform = random_pool(houses.seeds, ROBOT_STREAM + draw, 2)
        free = houses.room_size - 2 * MARGIN_M
        rooms = cls(houses=houses, x=MARGIN_M + free * uniform[:, 0], z=MARGIN_M + free * uniform[:, 1])
        return rooms.marked(houses.goal_object)

    def marked(self, goals: Int[np.ndarray, " n"]) -> Rooms:
        """These landmarks are red and the goals; one that was red takes the paint of its room's goal."""
        red, rows = COLOUR_NAMES.index("red"), np.arange(len(self))
        colour = np.where(self.houses.colour == red, self.houses.colour[rows, goals][:, None], self.houses.colour)
        colour[rows, goals] = red
        return replace(self, houses=replace(self.houses, colour=colour, goal_object=goals))

    def __len__(self) -> int:
        return len(self.x)

    def goals(self) -> Int[np.ndarray, " n"]:
        return self.houses.goal_object

    def answer(self, row: int, move: str, instance_ids: Int[np.ndarray, "h w"]) -> str:
        """Cells of robot and goal, then the move, which follows from both: `move_of` reads it."""
        robot, goal = (self.place(row, int(n[row]), instance_ids) for n in (self.houses.num_objects, self.goals()))
        return f"{robot} {goal} {move}"

    def place(self, row: int, number: int, instance_ids: Int[np.ndarray, "h w"]) -> str:
        """Column and row, of `CELLS` each, where the middle of a landmark is seen; the robot comes after the last one.

        A robot out of sight stands below the picture, as the camera sees everything else; a landmark that it hides has
        its place.
        """
        for each in (number, int(self.houses.num_objects[row])):
            rows, columns = np.nonzero(instance_ids == each + 1)
            if len(rows):
                height, width = instance_ids.shape
                return f"{int(columns.mean() * CELLS / width)} {int(rows.mean() * CELLS / height)}"
        return f"{CELLS // 2} {CELLS - 1}"

    def away(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Metres from robot to goal: to the right and away from the camera."""
        rows, goals = np.arange(len(self)), self.goals()
        dx, dz = self.houses.object_x[rows, goals] - self.x, self.houses.object_z[rows, goals] - self.z
        return (
            dx * RIGHT_X[HEADING] + dz * RIGHT_Z[HEADING],
            dx * FORWARD_X[HEADING] + dz * FORWARD_Z[HEADING],
        )

    def expert(self) -> list[str]:
        """The move along the axis that is farther off."""
        right, ahead = self.away()
        sideways = np.where(right > 0, "right", "left")
        along = np.where(ahead > 0, "farther", "nearer")
        moves = np.where(abs(right) > abs(ahead), sideways, along)
        return np.where(np.maximum(abs(right), abs(ahead)) <= NEAR_M, "stop", moves).tolist()

    def distance(self) -> Float[np.ndarray, " n"]:
        return np.hypot(*self.away())

    def moved(self, moves: Sequence[str]) -> Rooms:
        """After one step each; "stop" and walls hold a robot. Unknown words are refused."""
        unknown = set(moves) - set(MOVES)
        if unknown:
            raise ValueError(f"moves are {sorted(unknown)}, expected some of {MOVES}")
        right = np.array([{"right": 1, "left": -1}.get(move, 0) for move in moves])
        ahead = np.array([{"farther": 1, "nearer": -1}.get(move, 0) for move in moves])
        x = self.x + STEP_M * (right * RIGHT_X[HEADING] + ahead * FORWARD_X[HEADING])
        z = self.z + STEP_M * (right * RIGHT_Z[HEADING] + ahead * FORWARD_Z[HEADING])
        far = self.houses.room_size - MARGIN_M / 2
        return replace(self, x=np.clip(x, MARGIN_M / 2, far), z=np.clip(z, MARGIN_M / 2, far))

    def select(self, rows: Int[np.ndarray, " r"]) -> Rooms:
        return Rooms(houses=self.houses.select(rows), x=self.x[rows], z=self.z[rows])

    def render(self, side: int) -> Frames:
        """What the corner cameras see; the last instance number is the robot's."""
        houses, count = self._with_robots(), len(self)
        corner = np.full(count, CORNER_M)
        heading = np.full(count, HEADING)
        return render(houses, np.arange(count), corner, corner, heading, room_camera(side))

    def _with_robots(self) -> HouseBatch:
        """The houses with the robot as one more landmark behind the others."""
        houses, rows = self.houses, np.arange(len(self))
        columns = {
            "shape": CYLINDER, "colour": COLOUR_NAMES.index("white"), "radius": ROBOT_RADIUS_M,
            "height": ROBOT_HEIGHT_M, "object_x": self.x, "object_z": self.z,
        }  # fmt: skip
        wider = {}
        for name, value in columns.items():
            table = getattr(houses, name)
            table = np.concatenate([table, table[:, :1]], axis=1)
            table[rows, houses.num_objects] = value
            wider[name] = table
        return replace(houses, num_objects=houses.num_objects + 1, **wider)

    def names(self, row: int) -> tuple[str, ...]:
        return (*(SHAPE_NAMES[s] for s in self.houses.shape[row, : self.houses.num_objects[row]]), "robot")


def move_of(answer: str) -> str:
    """The last word."""
    return answer.rpartition(" ")[2]


def random_goals(rooms: Rooms, draw: int) -> Int[np.ndarray, " n"]:
    """For training: any landmark, not only the one that the house calls its goal."""
    uniform = random_pool(rooms.houses.seeds, ROBOT_STREAM + (1 << 20) + draw, 1)[:, 0]
    return pick_integers(uniform, rooms.houses.num_objects)


def near_goal(rooms: Rooms, draw: int) -> Rooms:
    """Robots within reach of their goals, so that "stop" is an answer of the training as often as any other."""
    uniform = random_pool(rooms.houses.seeds, ROBOT_STREAM + (1 << 21) + draw, 2)
    rows, goals = np.arange(len(rooms)), rooms.goals()
    offset = (2 * uniform - 1) * NEAR_M / np.sqrt(2)
    x, z = rooms.houses.object_x[rows, goals] + offset[:, 0], rooms.houses.object_z[rows, goals] + offset[:, 1]
    return replace(rooms, x=x, z=z)
