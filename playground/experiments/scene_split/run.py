"""What do the background/object split and its cache cost in answers? Arms, curves, statistics, a page: one command.

python -m playground.experiments.scene_split.run                     # small: 2 cores, an hour
python -m playground.experiments.scene_split.run --setting large     # bigger models and sets, 5 seeds, one GPU
python -m playground.experiments.scene_split.run --tasks vqa robot --seeds 0 1

Killed or failed: the same command goes on, and finished phases are reused.
"""

from __future__ import annotations

import sys

from playground.experiments.command import Experiment
from playground.experiments.scene_split.collect import collect
from playground.experiments.scene_split.page import write_page
from playground.experiments.scene_split.plan import START, make_plan
from playground.experiments.scene_split.settings import SETTINGS, TASKS, narrowed
from playground.experiments.scene_split.tables import tables
from playground.experiments.scene_split.ways import TRAININGS

EXPERIMENT = Experiment(
    name="scene_split",
    words=__doc__ or "",
    settings=SETTINGS,
    choices={"--tasks": {"choices": TASKS, "help": "default: the setting's"}},
    narrow=narrowed,
    count_trainings=lambda setting: len((START, *TRAININGS)) * len(setting.tasks) * len(setting.seeds),
    make_plan=make_plan,
    collect=collect,
    tables=tables,
    write_page=write_page,
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
