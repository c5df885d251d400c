"""Pictures for people and the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from llava.cli.world import main
from llava.navigation.worlds.house import generate_houses
from llava.navigation.worlds.pictures import draw_map, film_strip
from llava.navigation.worlds.tables import COLOUR_NAMES, OBJECT_COLOURS


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_a_map_shows_every_object_in_its_colour_where_it_stands(level):
    houses = generate_houses(level, [3])
    picture = np.asarray(draw_map(houses, 0, side=300)).astype(int)
    x0, z0, x1, z1 = houses.bounds[0]
    scale = 300 / (max(x1 - x0, z1 - z0) + 0.6)
    for k in range(houses.num_objects[0]):
        column, row = (houses.object_x[0, k] - x0 + 0.3) * scale, (houses.object_z[0, k] - z0 + 0.3) * scale
        pixel = picture[round(row + 0.2 * scale), round(column)]
        assert abs(pixel - OBJECT_COLOURS[COLOUR_NAMES[houses.colour[0, k]]]).max() < 30


def test_ways_change_the_map():
    houses = generate_houses("one_room", [3])
    plain = np.asarray(draw_map(houses, 0))
    way = np.array([[2.0, 0, 2.0], [3.0, 0, 2.0], [3.0, 0, 4.0]])
    drawn = np.asarray(
        draw_map(
            houses, 0, walked=way, reference=[(2.0, 0, 2.0), (5.0, 0, 5.0)], goals=[(5.0, 0, 5.0)], start_heading=3
        )
    )
    assert (plain != drawn).any(-1).mean() > 0.002


def test_a_strip_shows_the_first_and_the_last_frame():
    frames = np.zeros((9, 8, 8, 3), np.uint8)
    frames[0, :, :, 0], frames[-1, :, :, 2] = 255, 255
    strip = np.asarray(film_strip(frames, shown=4, side=40))
    assert strip[35, 20].tolist() == [255, 0, 0] and strip[35, -20].tolist() == [0, 0, 255]


def test_the_command_writes_a_data_set_twice_and_says_that_the_second_was_there(tmp_path, capsys):
    arguments = ["write", "--out", str(tmp_path / "d"), "--houses", "3", "--width", "16", "--height", "16"]
    assert main(arguments) == 0
    assert "The next action is move forward 75 cm." in capsys.readouterr().out
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*arguments, "--split", "val_unseen"]) == 0
    assert len(json.loads((tmp_path / "d" / "annotations.json").read_text())) > 20


def test_the_command_shows_episodes_as_a_picture(tmp_path):
    target = tmp_path / "page.png"
    assert main(["show", "--level", "multi_room", "--out", str(target), "--houses", "1", "--noise", "0.2"]) == 0
    assert Image.open(target).size[0] > 600


def test_a_wrong_level_is_an_error_of_one_line(tmp_path, capsys):
    assert main(["write", "--level", "multiroom", "--out", str(tmp_path)]) == 1
    assert "did you mean 'multi_room'" in capsys.readouterr().err
