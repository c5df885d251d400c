"""The folder `autoregressive/` beside the parts: the predictor of the next-frame loss, never its teacher.

The teacher is said, not written: a hash of its weights, and whether it is the live tower.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llava.model.autoregressive_reconstruction.module import AutoregressiveReconstructionModule
from llava.model.checkpoints.stored import read_json
from llava.utils.weight_names import weight_names

logger = logging.getLogger(__name__)

FOLDER = "autoregressive"
PREFIX = "autoregressive_reconstruction."
"""What every weight of the predictor is called in the state of a whole model."""

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def is_of_predictor(name: str) -> bool:
    return name.startswith(PREFIX)


def write(model: Any, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Writes the predictor of a model that has one, and what its teacher was.

    Args:
        state_dict: replaces the model's weights where they are split over ranks; names of the whole model.
    """
    module: AutoregressiveReconstructionModule | None = model.autoregressive_reconstruction
    if module is None:
        return
    root = Path(folder) / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    state = _weights(module) if state_dict is None else _weights_in(state_dict, module)
    save_file(state, root / _WEIGHTS, metadata={"format": "pt"})
    own = {"is_live_tower": module.teacher.is_shared, "fingerprint": module.teacher.fingerprint()}
    teacher = module.teacher.of_training or own  # who only measures surprise changes nothing of what was trained
    settings = {"config": module.config.to_dict(), "teacher": teacher}
    (root / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def is_there(folder: str | Path) -> bool:
    return (Path(folder) / FOLDER / _WEIGHTS).is_file()


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The settings with which the predictor of a checkpoint was trained.

    Raises:
        FileNotFoundError: the checkpoint has none.
    """
    if not is_there(folder):
        raise FileNotFoundError(
            f"{folder} has no {FOLDER}/{_WEIGHTS}: it was trained without the next-frame loss; train it with "
            "--enable_autoregressive True"
        )
    return read_json(Path(folder) / FOLDER / _CONFIG)["config"]


def read_into(module: AutoregressiveReconstructionModule, folder: str | Path) -> None:
    """Weights of a checkpoint's predictor into a module of the same settings.

    Raises:
        FileNotFoundError: the checkpoint has none.
        ValueError: it has other sizes.
    """
    read_settings(folder)
    try:
        module.load_state_dict(load_file(Path(folder) / FOLDER / _WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"{Path(folder) / FOLDER} does not fit {module.config}: {error}") from error


def attach(model: Any, folder: str | Path, teacher: nn.Module | None = None) -> None:
    """Adds the predictor of a checkpoint to the model that was read from it, to measure surprise.

    Args:
        teacher: vision tower with whose features the predictor was trained, where the checkpoint's own tower was tuned
            along. None = the tower of the model, which is frozen and so its own teacher.

    Raises:
        FileNotFoundError: the checkpoint has none.
        ValueError: `teacher` is another one.
    """
    settings = read_settings(folder)
    if teacher is None:
        model.vision_tower.requires_grad_(False)
    module: AutoregressiveReconstructionModule = model.initialize_continuous_autoregressive_modules(settings)
    read_into(module, folder)
    if teacher is not None:
        module.teacher.replace(teacher)
    stored = read_json(Path(folder) / FOLDER / _CONFIG)["teacher"]
    module.teacher.of_training = stored
    module.eval()
    if module.teacher.fingerprint() != stored["fingerprint"]:
        _judge_other_teacher(folder, is_live_tower=stored["is_live_tower"], was_given=teacher is not None)


def _judge_other_teacher(folder: str | Path, *, is_live_tower: bool, was_given: bool) -> None:
    if was_given:
        raise ValueError(
            f"the tower given as teacher is not the one with which the predictor of {folder} was trained (or has "
            "another dtype); give the model_name_or_path of that training's first start"
        )
    why = (
        "its weights have another dtype or were changed since"
        if is_live_tower
        else "it was tuned along, while the targets came from a copy as it was before"
    )
    logger.warning(
        "surprise is measured against features of the loaded vision tower, which are not those of the training: %s. "
        "Compare frames with each other, not with figures of the training; llava.load(..., surprise=True, "
        "teacher=FIRST_MODEL) measures against the original ones",
        why,
    )


def check_teacher(module: AutoregressiveReconstructionModule, folder: str | Path) -> None:
    """That the module has the teacher with which a checkpoint was trained.

    Raises:
        ValueError: it has another: its targets would change in the middle of a run.
    """
    stored = read_json(Path(folder) / FOLDER / _CONFIG)["teacher"]
    found = module.teacher.fingerprint()
    if found != stored["fingerprint"]:
        raise ValueError(
            f"the teacher of {folder} has the fingerprint {stored['fingerprint'][:12]}, found {found[:12]}; start with "
            "the model_name_or_path (and seed) of the run's first start, or choose another --output_dir"
        )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}


def _weights_in(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The part of a gathered state that is the predictor's."""
    values = {name.removeprefix(PREFIX): value for name, value in state.items() if is_of_predictor(name)}
    lacking = sorted(weight_names(module) - values.keys())
    if lacking:
        raise ValueError(
            f"the gathered weights lack {PREFIX}{lacking[0]}; for ZeRO-3 its configuration needs "
            '"stage3_gather_16bit_weights_on_model_save": true'
        )
    return {name: value.detach().cpu().clone().contiguous() for name, value in values.items()}
