"""Direct preference optimisation by trl: `python -m llava.train.dpo --flags` (those of DPOConfig and a few more)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from llava.train.trl_data import as_dataset, preference_pairs
from llava.train.trl_policy import reference_of
from llava.train.trl_setup import keeps_folders, require_trl, run, set_up

DEFAULTS: dict[str, Any] = {"learning_rate": 5e-7, "beta": 0.1, "max_length": None, "report_to": "none"}


def build_trainer(argv: Sequence[str]) -> Any:
    """trl's DPOTrainer for a command line; the reference is a frozen copy of the model as it begins."""
    trl = require_trl()
    setup = set_up(_modern(argv), trl.DPOConfig, DEFAULTS)
    arguments = setup.arguments
    rows = preference_pairs(arguments.data_path, arguments.image_folder, setup.prompt)
    parts: dict[str, Any] = {
        "model": setup.policy,
        "ref_model": reference_of(setup.policy),
        "args": setup.config,
        "train_dataset": as_dataset(rows),
        "processing_class": setup.processor,
    }
    return keeps_folders(trl.DPOTrainer)(**parts)


def _modern(argv: Sequence[str]) -> list[str]:
    """`--dpo_beta` is the older spelling."""
    return [f"--beta{word[len('--dpo_beta') :]}" if word.startswith("--dpo_beta") else word for word in argv]


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_trainer, argv)


if __name__ == "__main__":
    sys.exit(main())
