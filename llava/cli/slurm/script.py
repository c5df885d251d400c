"""The job script: what sbatch is asked for, the environment of the command, the command."""

from __future__ import annotations

import re
import shlex
import sys

from llava.cli.slurm.request import Request
from llava.cli.slurm.times import format_time

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPES = {"\\": "\\\\", "'": "\\'"}

ENVIRONMENT = """\
id="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
export OUTPUT="${OUTPUT:-$OUTPUT_DIR/model}" PYTHONUNBUFFERED=1
export n_node="$SLURM_JOB_NUM_NODES" NNODES="$SLURM_JOB_NUM_NODES"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
"""


def quote(word: str) -> str:
    """The word for bash, on one line whatever it holds."""
    if not _CONTROL.search(word):
        return shlex.quote(word)
    letters = (
        _ESCAPES.get(letter) or (f"\\{ord(letter):03o}" if _CONTROL.match(letter) else letter) for letter in word
    )
    return f"$'{''.join(letters)}'"


def sbatch_options(request: Request) -> list[str]:
    log = "%A_%a.out" if request.array else "%j.out"
    options = [
        f"--job-name={request.full_name}",
        f"--output={request.logs / log}",
        "--open-mode=append",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        f"--time={format_time(request.time_limit)}",
        f"--signal=B:USR1@{request.notice}",
        "--requeue",
    ]
    if request.account:
        options.append(f"--account={request.account}")
    if request.partition:
        options.append(f"--partition={request.partition}")
    if request.gpus_per_node and request.gpu_request != "none":
        gpus = request.gpus_per_node
        options.append(f"--gres=gpu:{gpus}" if request.gpu_request == "gres" else f"--gpus-per-node={gpus}")
    if request.exclusive:
        options.append("--exclusive")
    if request.array:
        count, at_once = request.array
        options.append(f"--array=0-{count - 1}" + (f"%{at_once}" if at_once else ""))
    if request.email:
        options += ["--mail-type=BEGIN,END,FAIL", f"--mail-user={request.email}"]
    if request.wait_for_namesake:
        options.append("--dependency=singleton")
    return [*options, *request.options]


def environment_lines(request: Request) -> str:
    lines = [f"export RUN_NAME={quote(request.job_name)} OUTPUT_DIR={quote(str(request.output_dir))}"]
    lines.append(ENVIRONMENT.rstrip())
    if request.gpus_per_node:
        lines.append(f"export GPUS_PER_NODE={request.gpus_per_node}")
    else:
        lines.append("unset GPUS_PER_NODE")
    if request.nodes > 1:
        lines.append('MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"')
        lines.append("export MASTER_ADDR")
    else:
        lines.append("export MASTER_ADDR=127.0.0.1")
    if request.array:
        lines.append(f'export NUM_CHUNKS={request.array[0]} CHUNK_IDX="$SLURM_ARRAY_TASK_ID"')
    return "\n".join(lines)


def job_script(request: Request, python: str = sys.executable) -> str:
    """Text of the script; it holds everything it needs, because SLURM keeps a copy of it and of nothing else."""
    runner = [python, "-m", "llava.cli.slurm.job", "--notice", str(request.notice)]
    runner += ["--max-retries", str(request.max_retries), "--retry-wait", str(request.retry_wait)]
    if request.max_requeues is not None:
        runner += ["--max-requeues", str(request.max_requeues)]
    head = "".join(f"#SBATCH {_header_word(option)}\n" for option in sbatch_options(request))
    words = "".join(f"    {quote(word)}\n" for word in request.command)
    return (
        f"#!/bin/bash\n{head}"
        "# Written by vila-run. `sbatch THIS_FILE` submits it again: training goes on from its last checkpoint.\n\n"
        "trap '' USR1 # a notice before the runner below can take it must not end the job\n"
        f"{environment_lines(request)}\n\n"
        f"command=(\n{words})\n"
        f'exec {" ".join(map(quote, runner))} --base {quote(str(request.logs))}/"$id" -- "${{command[@]}}"\n'
    )


def terminal_script(request: Request) -> str:
    """Text of a script for `srun --pty`: the same environment, then the command itself."""
    words = " ".join(map(quote, request.command))
    return f"#!/bin/bash\n{environment_lines(request)}\nexport CURRENT_RANK=0 NODE_RANK=0\nexec {words}\n"


def _header_word(option: str) -> str:
    """sbatch takes quotes in its header lines, but only where there is something to quote."""
    if not re.search(r"[\s\"'\\#]", option):
        return option
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'
