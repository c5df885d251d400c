"""What tests of whole training runs share: the environment of a run, and a run that kills itself."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LLAVA_PYTHON": sys.executable}


def run_killed_after(step: int) -> str:
    """A program that takes the flags of a training and gets SIGKILL at the end of a step."""
    return f"""
import os, signal, sys
from transformers import TrainerCallback
from llava.train.train import train

class KillAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

train(sys.argv[1:], extra_callbacks=[KillAt()])
"""
