"""vila-run: run a training or an evaluation under SLURM, or here, until it is finished.

vila-run -J sft -N 4 -t 2-00:00:00 bash scripts/train/sft_8frames.sh
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from llava.cli.eval import visible_gpus
from llava.cli.slurm import client
from llava.cli.slurm.attempts import Limits
from llava.cli.slurm.follow import INTERRUPTED, Follower, say
from llava.cli.slurm.local import LocalRun, local_environment
from llava.cli.slurm.request import GPU_REQUESTS, Request, default_notice, job_name, parse_array
from llava.cli.slurm.script import job_script, quote, sbatch_options, terminal_script
from llava.cli.slurm.times import format_time, parse_time

EPILOG = (
    "The command finds RUN_NAME, OUTPUT_DIR, OUTPUT, n_node, GPUS_PER_NODE, MASTER_ADDR, MASTER_PORT, CURRENT_RANK "
    "(and NUM_CHUNKS, CHUNK_IDX). Without sbatch, with NO_SLURM=1 or inside a job it runs here."
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vila-run",
        usage="vila-run [options] [--] COMMAND [ARGUMENT ...]",
        description=(__doc__ or "").splitlines()[0],
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=27),
    )
    add = parser.add_argument
    add("-J", "--job-name", default="run-%t", metavar="NAME", help="names job and folder; %%t is the time")
    add("-m", "--mode", default="train", metavar="MODE", help="train, eval, ... (default train)")
    add("-N", "--nodes", type=int, default=1, metavar="N", help="default 1")
    add("--gpus-per-node", type=int, metavar="G", help="default 8, locally all that are visible")
    add("-t", "--time", metavar="TIME", help="90 (minutes), 48:00:00, 2-00:00:00 (default 4:00:00)")
    add("--timedelta", type=float, metavar="MIN", help="tell it to save so early (default 10)")
    add("-a", "--array", metavar="N[%K]", help="N chunks, K at a time (locally one by one)")
    add("--max-retry", type=int, default=-1, metavar="N", help="after failures in a row: train 3, others 0")
    add("--max-requeues", type=int, metavar="N", help="after time limits (default: no limit)")
    add("--retry-wait", type=int, default=10, metavar="SEC", help="pause before a retry (default 10)")
    add("--output-dir", metavar="DIR", help="default runs/MODE/NAME; logs are in DIR/logs")
    add("-A", "--account", metavar="A", help="default $VILA_SLURM_ACCOUNT")
    add("-p", "--partition", metavar="P", help="default $VILA_SLURM_PARTITION")
    add("--gpu-request", choices=GPU_REQUESTS, default=GPU_REQUESTS[0], metavar="HOW", help=" | ".join(GPU_REQUESTS))
    add("--no-exclusive", action="store_true", help="share nodes with other jobs")
    add("--uuid", action="store_true", help="wait for other jobs of this name")
    add("--email", metavar="TO", help="mail at begin, end and failure")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="one more, as in --sbatch=--mem=0")
    add("--poll", type=float, default=10.0, metavar="SEC", help="ask SLURM so often (default 10)")
    add("--detach", action="store_true", help="submit and leave; restarts go on")
    add("--pty", action="store_true", help="on this terminal, without log and restarts")
    add("--dry-run", action="store_true", help="print the job script and stop")
    add("cmd", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command: 124 at the last time limit, 130 after Ctrl-C, 2 for a request that makes no sense."""
    options = build_parser().parse_args(arguments)
    try:
        here = runs_here(os.environ)
        request = make_request(options, os.environ, here)
        if options.dry_run:
            print(dry_run(request, here), end="")
            return 0
        if options.pty and (request.nodes > 1 or request.array):
            raise ValueError("--pty gives one terminal to one command, expected --nodes 1 and no --array")
        if here:
            return run_here(request, options, here)
        return run_at_terminal(request) if options.pty else run_under_slurm(request, options)
    except (ValueError, client.SlurmError, OSError) as error:
        print(f"vila-run: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return INTERRUPTED


def runs_here(environment: Mapping[str, str]) -> str | None:
    """Why the command runs on this machine, None when SLURM takes it."""
    if environment.get("NO_SLURM"):
        return "NO_SLURM is set"
    if environment.get("SLURM_JOB_ID"):
        return f"this is inside job {environment['SLURM_JOB_ID']}"
    return None if shutil.which("sbatch") else "sbatch is not installed"


def make_request(options: argparse.Namespace, environment: Mapping[str, str], here: str | None) -> Request:
    name = job_name(options.job_name, datetime.now())
    folder = Path(options.output_dir or Path("runs") / options.mode / name).expanduser()
    time_limit = parse_time(options.time or "4:00:00")
    notice = default_notice(time_limit) if options.timedelta is None else round(options.timedelta * 60)
    if options.max_retry < -1:
        raise ValueError(f"--max-retry is {options.max_retry}, expected a number of retries, or -1 for the default")
    if options.poll <= 0:
        raise ValueError(f"--poll is {options.poll:g}, expected a number of seconds above 0")
    gpus = options.gpus_per_node
    if gpus is None:
        gpus = len(visible_gpus()) if here else 8
    words = options.cmd[1:] if options.cmd[:1] == ["--"] else options.cmd
    return Request(
        job_name=name,
        command=tuple(words),
        output_dir=Path(os.path.abspath(folder)),
        mode=options.mode,
        nodes=options.nodes,
        gpus_per_node=gpus,
        time_limit=time_limit,
        notice=notice,
        max_retries=options.max_retry if options.max_retry >= 0 else (3 if options.mode == "train" else 0),
        max_requeues=options.max_requeues,
        retry_wait=options.retry_wait,
        array=parse_array(options.array) if options.array else None,
        account=options.account or environment.get("VILA_SLURM_ACCOUNT") or None,
        partition=options.partition or environment.get("VILA_SLURM_PARTITION") or None,
        email=options.email,
        gpu_request=options.gpu_request,
        wait_for_namesake=options.uuid,
        exclusive=not options.no_exclusive,
        options=tuple(options.sbatch),
    )


def dry_run(request: Request, here: str | None) -> str:
    if not here:
        return job_script(request)
    environment = local_environment(request, {})
    settings = "".join(f"export {name}={quote(value)}\n" for name, value in environment.items())
    return f"# runs here: {here}\n{settings}{' '.join(map(quote, request.command))}\n"


def run_here(request: Request, options: argparse.Namespace, here: str) -> int:
    if request.nodes > 1:
        raise ValueError(f"--nodes is {request.nodes}, but this machine is all there is: {here}")
    if options.detach:
        raise ValueError(f"--detach needs SLURM, which goes on without vila-run: {here}")
    without_meaning = {
        "--account": options.account,
        "--partition": options.partition,
        "--gpu-request": options.gpu_request != GPU_REQUESTS[0],
        "--no-exclusive": options.no_exclusive,
        "--uuid": options.uuid,
        "--email": options.email,
        "--sbatch": options.sbatch,
    }
    ignored = [flag for flag, given in without_meaning.items() if given]
    say(f"runs here: {here}" + (f"; SLURM alone uses {', '.join(ignored)}" if ignored else ""))
    if options.pty:
        return subprocess.call(request.command, env=local_environment(request, os.environ))
    write_report(request, request.logs / f"local-{os.getpid()}.json", {"here": here})
    return LocalRun(request, timed=options.time is not None).run()


def run_at_terminal(request: Request) -> int:
    request.logs.mkdir(parents=True, exist_ok=True)
    script = request.logs / f"terminal-{os.getpid()}.sh"
    write_script(script, terminal_script(request))
    skipped = ("--output=", "--open-mode=", "--signal=", "--requeue", "--mail-type=", "--mail-user=")
    options = [option for option in sbatch_options(request) if not option.startswith(skipped)]
    return subprocess.call(["srun", *options, "--pty", "bash", str(script)])


def run_under_slurm(request: Request, options: argparse.Namespace) -> int:
    if not request.wait_for_namesake and (others := client.queued_with_name(request.full_name)):
        raise ValueError(
            f"job {', '.join(others)} of the name {request.full_name} is in the queue and writes to the same folder; "
            "choose another --job-name, wait for it with --uuid, or scancel it"
        )
    request.logs.mkdir(parents=True, exist_ok=True)
    draft = request.logs / f"draft-{os.getpid()}.sh"
    write_script(draft, job_script(request))
    try:
        job = client.submit(draft)
    except client.SlurmError:
        draft.unlink()
        raise
    draft.replace(request.logs / f"{job}.sh")
    write_report(request, request.logs / f"{job}.json", {"job": job})
    log = request.logs / (f"{job}_*.out" if request.array else f"{job}.out")
    say(f"job {job} ({request.full_name}), {format_time(request.time_limit)} at a time; log {log}")
    if options.detach:
        return 0
    limits = Limits(max_retries=request.max_retries, max_requeues=request.max_requeues)
    return Follower(job, request.logs, limits, options.poll, is_array=request.array is not None).run()


def write_script(path: Path, text: str) -> None:
    """Words of a command line need not be valid text; they are written as the bytes that they were."""
    path.write_bytes(text.encode(errors="surrogateescape"))


def write_report(request: Request, path: Path, facts: Mapping[str, str]) -> None:
    """What was asked for, as JSON beside the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    asked = {**facts, "submitted": now, "folder": os.getcwd(), "request": asdict(request)}
    path.write_text(json.dumps(asked, indent=2, default=str) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
