"""A SLURM of this machine alone: munged, slurmctld and two slurmd as ordinary processes in a folder."""

import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=5
KillWait=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished_jobs
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} CPUs=2 Port={ports[1]}
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} CPUs=2 Port={ports[2]}
PartitionName=one Nodes=n1 Default=YES MaxTime=INFINITE State=UP
PartitionName=two Nodes=n1,n2 MaxTime=INFINITE State=UP
"""


def end_with_the_tests() -> None:
    """Runs in a new daemon: it gets SIGTERM when the process that started it ends in whatever way (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class CannotStart(RuntimeError):
    """SLURM is not installed here, or one of its daemons ends at once."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:.0f} seconds")
        time.sleep(0.2)


class Cluster:
    """Use it as a context: all daemons and all steps that they started end with it."""

    def __init__(self, folder: Path, proctrack: str = "pgid") -> None:
        self.folder, self.proctrack = folder, proctrack
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "VILA_"))
            and name not in ("NO_SLURM", "GPUS_PER_NODE", "MASTER_PORT", "MASTER_ADDR", "OUTPUT", "n_node")
        } | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH, "PYTHONPATH": str(ROOT)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._waiting: dict[str, float] = {}

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            stack.callback(self.close)
            self._start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        missing = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]
        if missing:
            raise CannotStart(f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for server in sockets:
                server.bind(("127.0.0.1", 0))
            ports = [server.getsockname()[1] for server in sockets]
        facts = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "proctrack": self.proctrack}
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, ports=ports, **facts))
        at = {name: self.folder / f"munge.{name}" for name in ("sock", "pid", "log", "seed")}
        files = ["--socket", at["sock"], "--pid-file", at["pid"], "--log-file", at["log"], "--seed-file", at["seed"]]
        self._daemon("munged", ["munged", "--foreground", "--force", "--key-file", key, *files])
        self._wait_for_start(at["sock"].exists, "munged")
        self._daemon("slurmctld", ["slurmctld", "-D"])
        for node in ("n1", "n2"):
            self.start_node(node)
        self._wait_for_start(lambda: self._nodes_are("idle"), "slurmctld", "n1", "n2")

    def _daemon(self, name: str, words: Sequence[object]) -> None:
        with (self.folder / f"{name}.stderr").open("ab") as errors:
            self._daemons[name] = subprocess.Popen(
                [str(word) for word in words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                preexec_fn=end_with_the_tests,
            )

    def _wait_for_start(self, condition: Callable[[], bool], *names: str) -> None:
        def started() -> bool:
            for name in names:
                if self._daemons[name].poll() is not None:
                    last = (self.folder / f"{name}.stderr").read_text().strip().splitlines()[-1:]
                    raise CannotStart(f"{name} ends at once: {' '.join(last)}")
            return condition()

        try:
            wait_until(started, "start of SLURM", 60)
        except TimeoutError as error:
            raise CannotStart(str(error)) from error

    def _nodes_are(self, state: str) -> bool:
        return self.ask("sinfo", "-h", "-p", "two", "-o", "%T").split() == [state]

    def start_node(self, name: str) -> None:
        self._daemon(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """SIGKILL to a slurmd of this cluster; what it started lives on, as on a machine that lost its network."""
        self._daemons[name].kill()
        self._daemons[name].wait()

    def steps_of(self, job: str) -> list[str]:
        """Processes that SLURM started on a node for a job and that live."""
        titles = (Path(f"/proc/{pid}/cmdline") for pid in self._strays())
        texts = [title.read_text(errors="replace") for title in titles if title.exists()]
        return [text for text in texts if text.startswith(f"slurmstepd: [{job}.")]

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout

    def queue(self) -> list[list[str]]:
        """Job, state and reason of all that waits or runs."""
        return [line.split("|") for line in self.ask("squeue", "-h", "-r", "-o", "%A|%T|%r").splitlines()]

    def hurry(self) -> None:
        """Start what waits: SLURM lets two minutes pass before a job that went back into the queue.

        Two seconds pass here too: a node refuses credentials of the second in which it ended the same job.
        """
        waiting = {job for job, *why in self.queue() if why == ["PENDING", "BeginTime"]}
        now = time.monotonic()
        self._waiting = {job: self._waiting.get(job, now) for job in waiting}
        for job, since in self._waiting.items():
            if now - since > 2:
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def vila_run(self, folder: Path, *words: str, **environment: str) -> "subprocess.Popen[str]":
        program = [sys.executable, "-m", "llava.cli.run", "--poll", "0.5", "--gpus-per-node", "0"]
        return subprocess.Popen(
            [*program, *words],
            env=self.environment | environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: "subprocess.Popen[str]", seconds: float = 240.0) -> tuple[int, str, str]:
        """Exit code, output and errors of vila-run; nothing that went back into the queue waits long."""
        until = time.monotonic() + seconds
        while True:
            try:
                output, errors = process.communicate(timeout=1)
                return process.returncode, output, errors
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    process.kill()
                    output, errors = process.communicate()
                    raise TimeoutError(f"vila-run goes on after {seconds:.0f} seconds:\n{output}\n{errors}") from None
                self.hurry()

    def close(self) -> None:
        for name in reversed(list(self._daemons)):
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self._strays():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _strays(self) -> Iterator[int]:
        """Steps and commands that outlived their slurmd: all and only these carry this cluster's configuration."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                is_ours = mark in path.read_bytes().split(b"\0")
            except OSError:
                continue
            if is_ours and int(path.parent.name) != os.getpid():
                yield int(path.parent.name)
