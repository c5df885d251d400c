"""The loop: batches equal single episodes, queues end with their episode, all that is needed later is kept."""

import numpy as np
import pytest

from llava.eval.navigation_loop import run_batch, run_episodes
from llava.eval.policies import Decision, Policy
from llava.navigation.actions import STOP, Action, ActionKind


def facts(walk):
    return (
        walk.actions,
        walk.stopped,
        np.stack(walk.positions).tolist(),
        walk.distances,
        walk.collided,
        [d.text for d in walk.decisions],
    )


def test_the_toy_policy_is_a_policy(brightness):
    assert isinstance(brightness(), Policy)


def test_a_batch_walks_as_its_episodes_alone_and_as_any_navigation_world(batched, one_by_one, episodes, brightness):
    together = run_batch(batched(6), brightness(), episodes, max_steps=40)
    alone = [run_batch(batched(1), brightness(), [episode], max_steps=40)[0] for episode in episodes]
    other = run_batch(one_by_one(6), brightness(), episodes, max_steps=40)
    assert [facts(w) for w in together] == [facts(w) for w in alone]
    for a, b in zip(together, other, strict=True):
        assert a.actions == b.actions
        np.testing.assert_allclose(np.stack(a.positions), np.stack(b.positions), atol=1e-9)
        np.testing.assert_allclose(a.distances, b.distances, atol=1e-9)


class Stubborn:
    name, needs_every_frame = "stubborn", True

    def __init__(self, *actions):
        self.actions, self.calls, self.finished = list(actions), 0, []

    def act(self, views):
        self.calls += 1
        return [Decision(action=self.actions[min(self.calls, len(self.actions)) - 1]) for _ in views]

    def finish(self, key):
        self.finished.append(key)

    def describe(self):
        return {}


def test_the_rest_of_a_queue_dies_with_its_episode(batched, episodes):
    forward = Action(ActionKind.FORWARD, 3)
    (walk,) = run_batch(batched(1), Stubborn(forward, forward), episodes[:1], max_steps=4)
    assert walk.actions == [1, 1, 1, 1]
    assert not walk.stopped
    policy = Stubborn(Action(ActionKind.LEFT, 3))
    walks = [w for batch in run_episodes(batched, policy, episodes[:2], batch_size=1, max_steps=4) for w in batch]
    assert [w.actions for w in walks] == [[2, 2, 2, 2]] * 2
    assert policy.calls == 4  # two decisions each: nothing was left over from the first episode


def test_stop_is_an_action_that_moves_nothing(batched, episodes):
    (walk,) = run_batch(batched(1), Stubborn(STOP), episodes[:1])
    assert walk.actions == [0]
    assert walk.stopped
    np.testing.assert_array_equal(walk.positions[0], walk.positions[1])


def test_every_low_level_picture_is_kept_unless_only_decisions_count(batched, episodes, brightness):
    dense, sparse = brightness(True), brightness(False)
    (walk,) = run_batch(batched(1), dense, episodes[:1], max_steps=9)
    run_batch(batched(1), sparse, episodes[:1], max_steps=9)
    steps = [d.action.steps for d in walk.decisions]
    assert dense.frame_counts["0"] == [1 + sum(steps[:i]) for i in range(len(steps))]
    assert sparse.frame_counts["0"] == list(range(1, len(sparse.frame_counts["0"]) + 1))


def test_a_policy_hears_of_the_end_of_each_episode_once(batched, episodes, brightness):
    policy = brightness()
    list(run_episodes(batched, policy, episodes, batch_size=4, max_steps=20))
    assert sorted(policy.finished) == sorted(e.episode_id for e in episodes)


def test_only_blocked_forward_steps_count_as_collisions(batched, episodes):
    (walk,) = run_batch(batched(1), Stubborn(Action(ActionKind.FORWARD, 3)), episodes[:1], max_steps=80)
    assert sum(walk.collided) > 20  # it ends at a wall
    assert len(walk.collided) == len(walk.positions) == len(walk.actions) + 1


def test_zero_episodes_are_an_error(batched, brightness):
    with pytest.raises(ValueError, match="zero episodes"):
        list(run_episodes(batched, brightness(), [], batch_size=2))
