"""Sentences that tell the way: to an object in one room, or along a route through rooms."""

from __future__ import annotations

from llava.navigation.worlds.house import HouseBatch, pick_integers, random_pool

INSTRUCTION_STREAM = 1 << 21  # second word of the generator's seed

TO_OBJECT = (
    "Walk to the {goal} and stop.",
    "Go to the {goal} and stop.",
    "Find the {goal} and stop next to it.",
    "Look for the {goal}, walk to it and stop.",
)


def write_instructions(houses: HouseBatch) -> list[str]:
    """One instruction per house; the wording depends on the house's seed only."""
    pool = random_pool(houses.seeds, INSTRUCTION_STREAM, 4)
    template = pick_integers(pool[:, 0], len(TO_OBJECT))
    return [
        TO_OBJECT[template[i]].format(goal=houses.object_name(i, int(houses.goal_object[i])))
        for i in range(len(houses))
    ]
