"""One run killed again and again: `python killed_often.py FOLDER KILLS SEED FLAGS...`.

First an undisturbed run into FOLDER/whole, then the same into FOLDER/killed, ended by SIGKILL at KILLS random moments
between the start of the training and a few steps later. Every start is a fork, so that libraries are read once.
Prints as JSON how often a process was killed, and at which step the next one began.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from transformers import TrainerCallback

from llava.train.train import train

STEPS_AT_ONCE = 5


class Tell(TrainerCallback):
    """Sends the step of the start through a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_train_begin(self, args, state, control, **kwargs):
        os.write(self.pipe, f"{state.global_step}\n".encode())


def start(flags: list[str]) -> tuple[int, int]:
    """Process and the end of its pipe."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            train(flags, extra_callbacks=[Tell(writing)])
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    return process, reading


def begun(pipe: int) -> int | None:
    """The step at which a process began to train, None where it had nothing to train."""
    with os.fdopen(pipe) as stream:
        line = stream.readline()
    return int(line) if line else None


def finish(process: int) -> None:
    _, status = os.waitpid(process, 0)
    if status != 0:
        sys.exit(f"a start of the run ended with status {status}")


def main(folder: Path, kills: int, seed: int, flags: list[str]) -> None:
    choice = random.Random(seed)
    process, pipe = start([*flags, "--output_dir", str(folder / "whole")])
    begun(pipe)
    since = time.monotonic()
    finish(process)
    lines = (folder / "whole" / "progress.jsonl").read_text().splitlines()
    window = STEPS_AT_ONCE * (time.monotonic() - since) / len(lines)
    command, starts = [*flags, "--output_dir", str(folder / "killed")], []
    while len(starts) < kills:
        process, pipe = start(command)
        step = begun(pipe)
        if step is None:
            break
        starts.append(step)
        time.sleep(choice.uniform(0, window))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            break
    process, pipe = start(command)
    starts.append(begun(pipe))
    finish(process)
    print(json.dumps({"kills": len(starts) - 1, "starts": starts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
