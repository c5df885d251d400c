"""Does predicting the next frame help a model that walks? Arms, controls, statistics and a page, in one command.

python -m playground.experiments.reconstruction.run                     # 40 minutes on 2 cores
python -m playground.experiments.reconstruction.run --setting controls  # every arm of the streaming format, 2 hours
python -m playground.experiments.reconstruction.run --setting large     # every arm, both formats, 5 seeds, one GPU
python -m playground.experiments.reconstruction.run --arms baseline actions leaking --seeds 0 1 2 3 4

Killed or failed: the same command goes on, and finished arms are reused.
"""

from __future__ import annotations

import sys

from playground.experiments.command import Experiment
from playground.experiments.reconstruction.arms import ARMS
from playground.experiments.reconstruction.collect import collect
from playground.experiments.reconstruction.page import write_page
from playground.experiments.reconstruction.plan import make_plan
from playground.experiments.reconstruction.settings import FORMATS, SETTINGS, narrowed
from playground.experiments.reconstruction.tables import tables

EXPERIMENT = Experiment(
    name="reconstruction",
    words=__doc__ or "",
    settings=SETTINGS,
    choices={
        "--formats": {"choices": FORMATS, "help": "default: the setting's"},
        "--arms": {"metavar": "ARM", "help": f"default: the setting's; of {', '.join(ARMS)}"},
        "--equal-cost": {"metavar": "ARM", "help": "arms trained again for as long as the baseline took"},
    },
    narrow=narrowed,
    count_trainings=lambda setting: len(setting.runs()),
    make_plan=make_plan,
    collect=collect,
    tables=tables,
    write_page=write_page,
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
