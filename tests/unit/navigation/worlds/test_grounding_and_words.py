"""Labels of views, and instructions that tell what is there."""

import numpy as np

from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.demonstrations import demonstrate
from llava.navigation.worlds.expert import plan_tasks
from llava.navigation.worlds.grounding import ObjectView, describe_objects, tabulate_objects
from llava.navigation.worlds.house import generate_houses
from llava.navigation.worlds.instructions import split_route, write_instructions


def test_column_distance_and_size_of_a_drawn_object():
    ids, depth = np.zeros((16, 16), np.uint8), np.full((16, 16), 9.0, np.float32)
    ids[4:8, 12:14], depth[4:8, 12:14] = 2, 3.4
    assert describe_objects(ids, depth, ("red ball", "blue box")) == [[ObjectView("blue box", 7, 3, 8)]]


def test_an_object_of_one_pixel_is_not_in_view():
    ids, depth = np.zeros((1, 64, 64), np.uint8), np.ones((1, 64, 64), np.float32)
    ids[0, 5, 5] = 1
    assert describe_objects(ids, depth, ("red ball",)) == [[]]


def test_tables_count_every_picture_and_object_apart():
    chance = np.random.default_rng(0)
    ids = chance.integers(0, 4, (5, 16, 24)).astype(np.uint8)
    table = tabulate_objects(ids, np.ones(ids.shape, np.float32), 3)
    assert table.pixels.tolist() == [[int((picture == k).sum()) for k in (1, 2, 3)] for picture in ids]
    assert set(table.column.ravel()) <= {4, 5}  # spread over the whole width


def test_the_goal_object_is_in_view_when_the_expert_stops():
    camera = CameraProfile()
    walks = demonstrate("one_room", np.arange(60), camera, noise=0.15)
    frames = walks.render(walks.frame_start[1:] - 1, camera)
    table = tabulate_objects(frames.instance_ids, frames.depth, 6)
    rows = np.arange(60)
    assert (table.column[rows, walks.houses.goal_object] > 0).all()
    assert (table.distance_m[rows, walks.houses.goal_object] == 1).mean() > 0.9


def test_one_room_instructions_name_the_goal_in_several_wordings():
    tasks = plan_tasks(generate_houses("one_room", np.arange(50)))
    texts = write_instructions(tasks)
    wordings = set()
    for i, text in enumerate(texts):
        name = tasks.houses.object_name(i, int(tasks.houses.goal_object[i]))
        assert name in text
        wordings.add(text.replace(name, "X"))
    assert len(wordings) == 4


def test_route_instructions_name_every_doorway_and_end_at_the_goal():
    tasks = plan_tasks(generate_houses("multi_room", np.arange(60)))
    for i, text in enumerate(write_instructions(tasks)):
        start = (float(tasks.houses.start_x[i]), float(tasks.houses.start_z[i]))
        doors = sum(leg.door is not None for leg in split_route(tasks.houses, i, [start, *tasks.routes[i]]))
        assert text.count("doorway") == doors >= 1
        assert tasks.houses.object_name(i, int(tasks.houses.goal_object[i])) in text.split(". ")[-1]
        assert "behind you" not in text.split(". ")[0]


def test_sides_in_instructions_are_those_of_a_walker():
    """The first turn that the expert makes has the direction that the instruction tells."""
    walks = demonstrate("multi_room", np.arange(80))
    told = write_instructions(walks.tasks)
    checked = 0
    for e, text in enumerate(told):
        kinds = walks.label_kind[walks.decision_start[e] : walks.decision_start[e + 1]]
        for word, kind in (("Turn left.", 2), ("Turn right.", 3)):
            if text.startswith(word):
                checked += 1
                assert kinds[0] == kind or kinds[0] == 1
    assert checked > 30
