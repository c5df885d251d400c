"""Stages as data: a name stands for a row of settings; a flag that is given wins over the row.

The rows follow the published recipes (what is tuned and at which learning rate); batch sizes stay with the launcher.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.utils.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe.

    Attributes:
        purpose: what the model can do after it.
        settings: argument name -> value, applied where the command line says nothing.
    """

    purpose: str
    settings: Mapping[str, Any]


def _tuned(*, tower: bool, projector: bool, language_model: bool) -> dict[str, bool]:
    return {
        "tune_vision_tower": tower,
        "tune_mm_projector": projector,
        "tune_language_model": language_model,
    }


_SCHEDULE = {"lr_scheduler_type": "cosine", "warmup_steps": 0.03, "weight_decay": 0.0}

STAGES = Registry[Stage]("training stage")
STAGES.register("align")(
    Stage(
        purpose="the projector learns the language model's space; tower and language model stay as they are",
        settings={**_tuned(tower=False, projector=True, language_model=False), **_SCHEDULE, "learning_rate": 1e-3},
    )
)
STAGES.register("pretrain")(
    Stage(
        purpose="projector and language model learn to read pictures",
        settings={**_tuned(tower=False, projector=True, language_model=True), **_SCHEDULE, "learning_rate": 5e-5},
    )
)
STAGES.register("sft")(
    Stage(
        purpose="all parts learn the tasks",
        settings={**_tuned(tower=True, projector=True, language_model=True), **_SCHEDULE, "learning_rate": 2e-5},
    )
)
