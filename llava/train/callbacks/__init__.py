"""What happens beside the training loop: progress, a log per rank, time limits and signals, time budget, loss curve."""

from llava.train.callbacks.autoresume_callback import AutoResumeCallback
from llava.train.callbacks.loss_curve import LossCurveCallback
from llava.train.callbacks.progress import ProgressCallback
from llava.train.callbacks.rank_log import RankLogCallback
from llava.train.callbacks.tensorboard import tensorboard
from llava.train.callbacks.time_budget import TimeBudgetCallback

__all__ = [
    "AutoResumeCallback",
    "LossCurveCallback",
    "ProgressCallback",
    "RankLogCallback",
    "TimeBudgetCallback",
    "tensorboard",
]
