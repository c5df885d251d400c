"""Group-relative policy optimisation by trl: `python -m llava.train.grpo --flags` (those of trl's GRPOConfig and a few
more). A navigation model is paid for naming the oracle's action, and for saying it as the action format does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from llava.train.rewards import action_reward, format_reward
from llava.train.trl_data import as_dataset, decisions
from llava.train.trl_setup import keeps_folders, require_trl, run, set_up

DEFAULTS: dict[str, Any] = {"learning_rate": 1e-6, "max_completion_length": 32, "report_to": "none"}
REWARDS = [action_reward, format_reward]
"""Their weights: `--reward_weights 1.0 0.2`."""


def build_trainer(argv: Sequence[str], rewards: Sequence[Any] = tuple(REWARDS)) -> Any:
    """trl's GRPOTrainer for a command line.

    Args:
        rewards: functions of (completions, answer, **columns).

    Raises:
        ValueError: with --beta above 0, for which trl reads a reference model by its own path.
    """
    trl = require_trl()
    setup = set_up(argv, trl.GRPOConfig, DEFAULTS)
    arguments = setup.arguments
    if setup.config.beta > 0:
        raise ValueError(
            f"beta is {setup.config.beta:g}: trl would read the reference of its KL term with transformers alone, "
            "which does not know this model; expected 0 (trl's default)"
        )
    if setup.config.use_vllm:
        raise ValueError("use_vllm is True, vllm does not know this model; leave it out")
    parts: dict[str, Any] = {
        "model": setup.policy,
        "reward_funcs": list(rewards),
        "args": setup.config,
        "train_dataset": as_dataset(decisions(arguments.data_path, arguments.image_folder, setup.prompt)),
        "processing_class": setup.processor,
    }
    return keeps_folders(trl.GRPOTrainer)(**parts)


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_trainer, argv)


if __name__ == "__main__":
    sys.exit(main())
