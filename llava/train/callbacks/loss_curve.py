"""The loss curve as a picture, at the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

CURVE_FILE = "loss_curve.png"


class LossCurveCallback(TrainerCallback):
    """Writes `loss_curve.png` from the trainer's own log; without matplotlib it says so and goes on."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / CURVE_FILE

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        rows = [row for row in state.log_history if "loss" in row]
        if not rows:
            return
        try:
            draw_curve([int(row["step"]) for row in rows], [row["loss"] for row in rows], self.path)
        except ImportError:
            logger.warning("no %s: install matplotlib (pip install matplotlib) to have the loss drawn", self.path.name)


def smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Exponential average whose memory is a share of the curve, without the pull of a zero start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(average / weight if weight else value)
    return result


def draw_curve(steps: Sequence[int], losses: Sequence[float], path: Path) -> None:
    """Loss over steps, every log line and the smoothed curve.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.plot(steps, losses, linewidth=0.8, alpha=0.4, label="logged")
    axes.plot(steps, smooth(losses), linewidth=1.8, label="smoothed")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
