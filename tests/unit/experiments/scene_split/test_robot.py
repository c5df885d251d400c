"""The robot before a fixed camera: its world by hand, and the closed loop with an answerer that knows."""

from __future__ import annotations

import numpy as np
import pytest

from playground.experiments.scene_split.answers import Reply
from playground.experiments.scene_split.closed_loop import drive
from playground.experiments.scene_split.robot import ARRIVED_M, STEP_M, Rooms, move_of

SIDE = 32


@pytest.fixture(scope="module")
def rooms():
    return Rooms.of("unseen", 8)


def test_the_camera_sees_the_same_room_whatever_the_robot_does(rooms):
    before = rooms.render(SIDE)
    after = rooms.moved(["nearer"] * 8).render(SIDE)
    still = (before.instance_ids == 0) & (after.instance_ids == 0)
    assert np.array_equal(before.rgb[still], after.rgb[still])
    assert not np.array_equal(before.instance_ids, after.instance_ids)


def test_the_robot_is_the_last_instance_and_moves_in_the_picture_as_it_is_told(rooms):
    def column_of_robot(placed):
        ids = placed.render(64).instance_ids
        robot = ids == (placed.houses.num_objects + 1)[:, None, None]
        return [np.nonzero(mask)[1].mean() if mask.any() else np.nan for mask in robot]

    middle, left = column_of_robot(rooms), column_of_robot(rooms.moved(["left"] * 8))
    seen = np.isfinite(middle) & np.isfinite(left)
    assert seen.sum() >= 3 and (np.array(left)[seen] < np.array(middle)[seen]).all()


def test_a_step_is_as_long_as_it_says_and_walls_hold(rooms):
    moved = rooms.moved(["farther"] * 8)
    length = np.hypot(moved.x - rooms.x, moved.z - rooms.z)
    assert (length <= STEP_M + 1e-9).all() and length.max() == pytest.approx(STEP_M)
    assert np.array_equal(rooms.moved(["stop"] * 8).x, rooms.x)
    far = rooms
    for _ in range(40):
        far = far.moved(["right"] * 8)
    assert (far.x > 0).all() and (far.z < rooms.houses.room_size).all()


def test_a_word_that_is_no_move_is_refused_by_the_world(rooms):
    with pytest.raises(ValueError, match="up"):
        rooms.moved(["up"] * 8)


def test_one_landmark_of_a_room_is_red_and_the_goal(rooms):
    others = rooms.marked((rooms.goals() + 1) % rooms.houses.num_objects)
    for each in (rooms, others):
        for row, goal in enumerate(each.goals()):
            colours = each.houses.colour[row, : each.houses.num_objects[row]]
            assert len(set(colours)) == len(colours)
            assert [number for number, name in enumerate(each.houses.object_names(row)) if "red" in name] == [goal]
    assert (others.goals() != rooms.goals()).all()


def test_answers_say_where_robot_and_goal_are_seen_and_end_with_the_move(rooms):
    ids = np.zeros((SIDE, SIDE), int)
    assert rooms.answer(0, "stop", ids) == "4 7 4 7 stop"
    ids[8:12, 28:32] = rooms.houses.num_objects[0] + 1
    assert rooms.answer(0, "left", ids) == "7 2 7 2 left"
    ids[31, 0] = rooms.goals()[0] + 1
    assert rooms.answer(0, "left", ids) == "7 2 0 7 left" and move_of("7 2 0 7 left") == "left"


class Knowing:
    """Answers with the expert's move, or with what it was told to say; remembers what it was shown."""

    def __init__(self, rooms, says=None):
        self.rooms, self.says, self.prompts = rooms, says, []

    def answer(self, prompts):
        self.prompts += prompts
        if self.says is not None:
            return [Reply(text=self.says) for _ in prompts]
        rows = np.array([int(prompt.camera) for prompt in prompts])
        moves = self.rooms.select(rows).expert()
        everyone = ["stop"] * len(self.rooms)
        for row, move in zip(rows, moves, strict=True):
            everyone[row] = move
        self.rooms = self.rooms.moved(everyone)
        return [Reply(text=move) for move in moves]


def test_the_expert_arrives_in_every_room_and_a_lazy_robot_in_none_that_it_starts_far_from(rooms):
    found, _ = drive(Knowing(rooms), rooms, max_moves=40)
    assert all(row["success"] == 1 and row["distance_to_goal"] < ARRIVED_M for row in found.values())
    assert all(row["agreement"] == 1 and row["understood"] == 1 for row in found.values())
    lazy, replies = drive(Knowing(rooms, "stop"), rooms, max_moves=40)
    near = rooms.distance() < ARRIVED_M
    assert [row["success"] for row in lazy.values()] == near.astype(float).tolist()
    assert len(replies) == len(rooms) and all(row["moves"] == 1 for row in lazy.values())


def test_an_answer_that_is_no_move_holds_the_robot_and_is_counted(rooms):
    found, _ = drive(Knowing(rooms, "fly"), rooms, max_moves=3)
    assert all(row["understood"] == 0 and row["moves"] == 3 and row["success"] == 0 for row in found.values())
    assert [row["distance_to_goal"] for row in found.values()] == pytest.approx(rooms.distance().tolist())


def test_masks_are_the_landmarks_and_the_robot(rooms):
    eye = Knowing(rooms, "stop")
    drive(eye, rooms, max_moves=1)
    frames = rooms.render(eye.prompts[0].pictures[0].shape[0])
    for row, prompt in enumerate(eye.prompts):
        assert np.array_equal(prompt.masks[0], frames.instance_ids[row] > 0)
        assert np.array_equal(prompt.pictures[0], frames.rgb[row])
