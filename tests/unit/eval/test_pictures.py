"""Pictures of episodes show what was walked."""

import numpy as np
import pytest
from PIL import Image

from llava.eval.navigation_loop import run_batch
from llava.eval.navigation_task import NavigationOptions
from llava.eval.pictures import choose_examples, replay, write_pictures
from llava.eval.populations import POPULATIONS
from llava.eval.results import episode_record
from llava.navigation.worlds.pictures import WALKED


@pytest.fixture(scope="module")
def population():
    return POPULATIONS["embedded"](NavigationOptions(episodes=4), None, {"width": 16, "height": 16})


@pytest.fixture(scope="module")
def walks(population):
    oracle = population.oracles["any object"]()
    return run_batch(population.make_lanes(4), oracle, population.episodes)


def test_recorded_actions_lead_to_the_recorded_places(population, walks):
    record = episode_record(walks[2])
    frames, positions, _ = replay(population, walks[2].episode, [int(a) for a in record["actions"]])
    np.testing.assert_array_equal(positions, np.stack(walks[2].positions))
    assert len(frames) == len(positions)


def test_examples_are_half_successes_where_there_are_enough():
    records = {str(i): {"failure_1m": "success" if i < 3 else "stuck", "failure": "success"} for i in range(10)}
    assert len(choose_examples(records, 6)) == 6
    assert sum(int(key) < 3 for key in choose_examples(records, 4)) == 2
    assert len(choose_examples(dict(list(records.items())[:3]), 6)) == 3


def test_pictures_are_named_by_outcome_and_readable(population, walks, tmp_path):
    records = {walk.episode.episode_id: episode_record(walk) for walk in walks}
    files = write_pictures(population, records, tmp_path, count=3)
    assert len(files) == 3
    for file in files:
        picture = np.asarray(Image.open(file))
        assert picture.shape[0] < picture.shape[1]
        assert (picture == WALKED).all(axis=-1).sum() > 20  # the walked way is drawn
    assert {file.stem.rsplit("-", 1)[1] for file in files} <= set(records)
