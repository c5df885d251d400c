"""Walked episodes as pictures: the way on a map of the house, and what the robot saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from llava.eval.lanes import EmbeddedLane
from llava.eval.populations import Population
from llava.navigation.actions import ActionKind
from llava.navigation.worlds.base import Episode
from llava.navigation.worlds.pictures import draw_map, film_strip

MAP_SIDE, FRAME_SIDE, NUM_FRAMES, HEAD = 330, 160, 8, 34
INK, PAPER = (40, 40, 40), (250, 250, 248)


def write_pictures(
    population: Population, records: Mapping[str, Mapping[str, Any]], folder: Path, *, count: int = 6
) -> list[Path]:
    """Draw up to `count` episodes, half successes (at the smallest radius) and half failures where there are both."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    episodes = {str(episode.episode_id): episode for episode in population.episodes}
    written = []
    for key in choose_examples(records, count):
        picture = draw_episode(population, episodes[key], records[key])
        written.append(folder / f"{outcome_of(records[key]).replace(' ', '-')}-{key}.png")
        picture.save(written[-1])
    return written


def outcome_of(record: Mapping[str, Any]) -> str:
    """Class of an episode at the smallest radius."""
    return str(record.get("failure_1m", record["failure"]))


def choose_examples(records: Mapping[str, Mapping[str, Any]], count: int) -> list[str]:
    """Keys, spread evenly over the successes and over the failures."""
    good = [key for key, record in records.items() if outcome_of(record) == "success"]
    bad = [key for key, record in records.items() if outcome_of(record) != "success"]
    num_good = min(len(good), max(count // 2, count - len(bad)))
    return [*_spread(good, num_good), *_spread(bad, count - num_good)]


def _spread(items: list[str], count: int) -> list[str]:
    places = np.linspace(0, len(items) - 1, min(max(count, 0), len(items))).astype(int)
    return [items[i] for i in dict.fromkeys(places.tolist())]


def replay(
    population: Population, episode: Episode, actions: Sequence[int]
) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t 3"], Any]:
    """Walk recorded actions again: a picture and a position per low-level action and the first, and the simulator."""
    lanes = population.make_lanes(1)
    frames = lanes.reset([episode])
    positions = [np.asarray(lanes.position(0), dtype=float)]
    for action in actions:
        frames.append(lanes.step({0: action}, render=True)[0])
        positions.append(np.asarray(lanes.position(0), dtype=float))
    return np.stack(frames), np.stack(positions), lanes.simulator(0)


def draw_episode(population: Population, episode: Episode, record: Mapping[str, Any]) -> Image.Image:
    """Instruction and outcome above, the map (where the house is known) at the left, frames in two rows."""
    actions = [int(action) for action in record["actions"]]
    frames, positions, simulator = replay(population, episode, actions)
    names = [ActionKind(action).name.lower() for action in actions] + ["end"]
    captions = [f"{i} {name}" for i, name in enumerate(names)]
    strip = film_strip(frames, shown=NUM_FRAMES, side=FRAME_SIDE, captions=captions)
    half = NUM_FRAMES // 2 * (FRAME_SIDE + 4)
    chart = _chart(simulator, episode, positions)
    sheet = Image.new("RGB", (chart.width + 8 + half, HEAD + max(MAP_SIDE, 2 * FRAME_SIDE + 4)), PAPER)
    sheet.paste(chart, (0, HEAD))
    for number, left in enumerate(range(0, strip.width, half)):
        row = strip.crop((left, 0, min(left + half, strip.width), FRAME_SIDE))
        sheet.paste(row, (chart.width + 8, HEAD + number * (FRAME_SIDE + 4)))
    outcome = f"{outcome_of(record)}, {record['distance_to_goal']:.2f} m from the goal, {len(actions)} actions"
    ImageDraw.Draw(sheet).text((4, 3), f"{episode.instruction}\n{outcome}", fill=INK)
    return sheet


def _chart(simulator: Any, episode: Episode, positions: np.ndarray) -> Image.Image:
    """The map, or nothing (a strip of paper) where the simulator tells no walls."""
    if not isinstance(simulator, EmbeddedLane):
        return Image.new("RGB", (1, MAP_SIDE), PAPER)
    houses, reference = simulator.batch.houses, episode.locations
    return draw_map(houses, 0, walked=positions, reference=reference, goals=episode.goals, side=MAP_SIDE)
