"""Led astray, the robot stands before wrong objects, is told to go on, and the episode still ends at the goal."""

import numpy as np
import pytest

from llava.navigation.worlds.base import STOP
from llava.navigation.worlds.dataset_writer import write_dataset
from llava.navigation.worlds.demonstrations import demonstrate

MAX_STEPS = 300


def nearest_wrong_object(walks):
    """[E] smallest distance in metres between the robot and an object that is not the goal."""
    houses, episode = walks.houses, walks.episode_of_frame
    away = np.hypot(houses.object_x[episode] - walks.x[:, None], houses.object_z[episode] - walks.z[:, None])
    away[~houses.has_object[episode]] = np.inf
    away[np.arange(len(episode)), houses.goal_object[episode]] = np.inf
    return np.minimum.reduceat(away.min(axis=1), walks.frame_start[:-1])


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_episodes_still_stop_at_the_goal(level):
    walks = demonstrate(level, np.arange(80), detours=1.0, noise=0.15, max_steps=MAX_STEPS)
    last, goal = walks.frame_start[1:] - 1, walks.tasks
    assert walks.stopped.mean() >= 0.97
    assert (np.hypot(walks.x[last] - goal.goal_x, walks.z[last] - goal.goal_z) < 1).mean() >= 0.97


def test_most_detours_end_before_a_wrong_object():
    led, straight = (demonstrate("one_room", np.arange(200), detours=share) for share in (1.0, 0.0))
    assert (nearest_wrong_object(led) < 1.0).mean() > 0.6
    assert (nearest_wrong_object(straight) < 1.0).mean() < 0.3  # passed by on the way


def test_no_stop_is_executed_or_labelled_at_a_wrong_object():
    walks = demonstrate("one_room", np.arange(200), detours=1.0)
    stops = walks.label_kind == STOP
    np.testing.assert_array_equal(walks.executed_kind[stops], STOP)
    assert stops.sum() == walks.stopped.sum() == 200


def test_about_the_asked_share_of_the_episodes_has_one():
    walks = demonstrate("one_room", np.arange(600), detours=0.3)
    changed = (walks.label_kind != walks.executed_kind) | (walks.label_steps != walks.executed_steps)
    episodes = np.add.reduceat(changed, walks.decision_start[:-1]) > 0
    assert episodes.mean() == pytest.approx(0.3, abs=0.05)


def test_a_detour_does_not_depend_on_the_batch():
    many, one = (demonstrate("one_room", seeds, detours=0.8) for seeds in (np.arange(20), np.array([13])))
    part = slice(many.frame_start[13], many.frame_start[14])
    np.testing.assert_array_equal(many.action[part], one.action)


def test_a_data_set_remembers_its_share_and_its_episode_files_stay_the_oracles(tmp_path):
    led = write_dataset(tmp_path / "led", "one_room", 6, noise=0.0, detours=1.0)
    plain = write_dataset(tmp_path / "plain", "one_room", 6, noise=0.0)
    assert led.num_frames > plain.num_frames
    assert not write_dataset(tmp_path / "led", "one_room", 6, noise=0.0, detours=0.5).reused
    one, other = ((tmp_path / name / "train.json.gz").read_bytes() for name in ("led", "plain"))
    assert len(one) == len(other)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=f"detours is {share}"):
        demonstrate("one_room", np.arange(2), detours=share)
