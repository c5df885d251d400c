"""What was executed between two pictures, and how far the answers of records tell it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.navigation.actions import STOP, Action, ActionKind, merge_actions
from llava.navigation.motions import (
    UNKNOWN_ACTION,
    motion_between,
    motions_along,
    parse_actions,
    recover_actions,
)

F, L, R = ActionKind.FORWARD, ActionKind.LEFT, ActionKind.RIGHT


def test_metres_degrees_and_steps_add_up_with_left_positive():
    actions = parse_actions("1123221")
    assert motion_between(actions, 0, 2).tolist() == [0.5, 0.0, 2.0]
    assert motion_between(actions, 2, 4).tolist() == [0.0, 0.0, 2.0]  # left, then right
    assert motion_between(actions, 3, 7).tolist() == [0.25, 15.0, 4.0]  # right, left, left, forward
    assert motion_between(actions, 3, 4).tolist() == [0.0, -15.0, 1.0]
    assert motion_between(actions, 5, 5).tolist() == [0.0, 0.0, 0.0]


def test_the_turn_angle_and_the_step_are_those_of_the_robot():
    assert motion_between(parse_actions("221"), 0, 3, turn_degrees=30, forward_m=0.5).tolist() == [0.5, 60.0, 3.0]


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1), (0, 4), (0, 3)])
def test_a_motion_that_is_not_known_is_nan_and_never_a_part_of_it(start, stop):
    actions = np.array([1, 1, UNKNOWN_ACTION], dtype=np.int8)
    assert np.isnan(motion_between(actions, start, stop)).all()


def test_the_last_of_some_frames_has_no_motion():
    along = motions_along(parse_actions("112"), [0, 2, 3])
    assert along[:2].tolist() == [[0.5, 0.0, 2.0], [0.0, 15.0, 1.0]]
    assert np.isnan(along[2]).all()
    assert along.dtype == np.float32


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3]), max_size=30), st.data())
def test_the_motion_between_two_frames_is_the_sum_of_the_steps(listed, data):
    actions = parse_actions(listed)
    start = data.draw(st.integers(0, len(listed)))
    stop = data.draw(st.integers(start, len(listed)))
    steps = [motion_between(actions, k, k + 1) for k in range(start, stop)]
    assert motion_between(actions, start, stop).tolist() == np.array(steps).reshape(-1, 3).sum(axis=0).tolist()
    frames = sorted(data.draw(st.sets(st.integers(0, len(listed)), min_size=1)))
    along = motions_along(actions, frames)[:-1]
    assert along.sum(axis=0).tolist() == motion_between(actions, frames[0], frames[-1]).tolist()


def test_actions_are_read_from_digits_or_lists():
    assert parse_actions("1130").tolist() == parse_actions([1, 1, 3, 0]).tolist() == [1, 1, 3, 0]
    for wrong in ("114", "1 2", [1, 7], [1, 1.5], [True], ["1"], None, 112):
        with pytest.raises(ValueError, match="executed action"):
            parse_actions(wrong)


def test_answers_that_tile_the_frames_are_the_actions():
    # left 30 after 1 frame, forward 75 after 3, stop after 6: frames 0 .. 5
    actions = recover_actions([(6, STOP), (1, Action(L, 2)), (3, Action(F, 3)), (1, Action(L, 2))])
    assert actions.tolist() == [2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([(1, Action(F, 2)), (2, Action(L, 1)), (3, STOP)], [-1, 2]),  # fewer frames than the answer has actions
        ([(1, Action(F, 1)), (4, Action(L, 1)), (5, STOP)], [-1, -1, -1, 2]),  # a record is missing
        ([(3, Action(F, 1)), (4, STOP)], [-1, -1, 1]),  # before the first decision
        ([(1, STOP), (2, Action(F, 1)), (3, STOP)], [-1, 1]),  # nothing follows a stop
        ([(1, None), (2, Action(R, 1)), (3, STOP)], [-1, 3]),  # an answer without an action
        ([(1, Action(F, 1)), (1, Action(L, 1)), (2, STOP)], [-1]),  # two answers at one frame
        ([(1, STOP)], []),
        ([], []),
    ],
)
def test_what_does_not_tile_is_unknown_and_the_rest_stays_known(decisions, expected):
    assert recover_actions(decisions).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([F, L, R]), max_size=30), st.integers(1, 3), st.randoms())
def test_recovered_actions_are_the_executed_ones_whatever_the_order_and_the_copies(executed, most, chance):
    decisions, seen = [], 1
    for action in merge_actions(executed, most):
        decisions += [(seen, action)] * chance.randint(1, 3)
        seen += action.steps
    decisions.append((seen, STOP))
    chance.shuffle(decisions)
    assert recover_actions(decisions).tolist() == [int(kind) for kind in executed]
