"""vila-run on a real SLURM, which the tests start here: two nodes, as processes of this machine."""

import json
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from tests.distributed.slurm_cluster import CannotStart, Cluster, wait_until

PYTHON = [sys.executable, "-u", "-c"]
SAVES_WHEN_TOLD = textwrap.dedent("""\
    import os, pathlib, signal, sys, time
    saved = pathlib.Path("saved")
    def save(*_):
        saved.write_text(saved.read_text() + "x" if saved.exists() else "x")
        sys.exit(124)
    signal.signal(signal.SIGUSR1, save)
    if saved.exists() and "--once" in sys.argv:
        sys.exit(print("goes on and finishes"))
    print("ready", flush=True)
    time.sleep(300)
    """)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
            yield cluster
    except CannotStart as error:
        pytest.skip(f"SLURM cannot be started here: {error}")


@pytest.fixture(autouse=True)
def _clean_queue(cluster):
    yield
    jobs = {job for job, _, _ in cluster.queue()}
    if jobs:
        cluster.ask("scancel", *jobs)
        wait_until(lambda: not cluster.queue(), "empty queue")


def wait_for_text(folder: Path, text: str, job_name: str) -> None:
    logs = folder / "runs" / "train" / job_name / "logs"
    wait_until(lambda: any(text in log.read_text() for log in logs.glob("*.out")), f"{text!r} in the log")


def attempts(folder: Path, job_name: str, mode: str = "train") -> list[tuple[str, int]]:
    (path,) = (folder / "runs" / mode / job_name / "logs").glob("*.attempts.jsonl")
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["outcome"], line["code"]) for line in lines if line["event"] == "end"]


def test_a_job_gets_its_words_and_its_environment_and_its_log_is_shown(cluster, tmp_path):
    words = ["", "a b", "$HOME", "`id`", "x\ny\r\n", "\"'\\", "--nodes", "-N", "é", "#SBATCH --time=1", "*"]
    names = "RUN_NAME n_node MASTER_ADDR CURRENT_RANK GPUS_PER_NODE OUTPUT".split()
    program = f"import os, sys, json; print(json.dumps([sys.argv[1:], [os.environ.get(n) for n in {names}]]))"
    process = cluster.vila_run(tmp_path, "-J", "words", *PYTHON, program, *words, VILA_SLURM_PARTITION="one")
    code, output, errors = cluster.finish(process)
    assert code == 0, errors
    (line,) = (line for line in output.splitlines() if line.startswith("[["))
    model = str(tmp_path / "runs" / "train" / "words" / "model")
    assert json.loads(line) == [words, ["words", "1", "127.0.0.1", "0", None, model]]
    logs = tmp_path / "runs" / "train" / "words" / "logs"
    (script,) = logs.glob("*.sh")
    job = script.stem
    assert sorted(path.name for path in logs.iterdir()) == [
        f"{job}{end}" for end in (".attempts.jsonl", ".json", ".out", ".sh")
    ]
    assert json.loads((logs / f"{job}.json").read_text())["request"]["command"][4:] == words
    assert f"job {job}: finished" in errors


def test_the_exit_code_of_a_failure_comes_back_with_its_reason(cluster, tmp_path):
    code, _, errors = cluster.finish(cluster.vila_run(tmp_path, "-J", "bad", "-m", "eval", "bash", "-c", "exit 7"))
    assert code == 7
    assert "exit code 7" in errors
    assert attempts(tmp_path, "bad", "eval") == [("failed", 7)]


@pytest.mark.slow
def test_a_signal_that_ends_the_command_is_named(cluster, tmp_path):
    code, _, errors = cluster.finish(
        cluster.vila_run(tmp_path, "-J", "killed", "-m", "eval", "bash", "-c", "kill -9 $$")
    )
    assert code == 137
    assert "SIGKILL" in errors


@pytest.mark.slow
def test_failures_are_retried_as_often_as_allowed(cluster, tmp_path):
    process = cluster.vila_run(tmp_path, "-J", "retry", "--max-retry", "1", "--retry-wait", "0", "bash", "-c", "exit 3")
    code, output, _ = cluster.finish(process)
    assert code == 3
    assert attempts(tmp_path, "retry") == [("failed", 3), ("failed", 3)]
    assert "attempt 1: exit code 3" in output


def test_ctrl_c_lets_the_command_save_and_does_not_restart_it(cluster, tmp_path):
    process = cluster.vila_run(tmp_path, "-J", "stop", *PYTHON, SAVES_WHEN_TOLD)
    wait_for_text(tmp_path, "ready", "stop")
    process.send_signal(signal.SIGINT)
    code, _, errors = cluster.finish(process)
    assert code == 130, errors
    assert (tmp_path / "saved").read_text() == "x"
    assert attempts(tmp_path, "stop") == [("cancelled", 124)]
    assert cluster.queue() == []


@pytest.mark.slow
def test_ctrl_c_twice_kills_a_command_that_does_not_listen(cluster, tmp_path):
    program = (
        "import signal, time; signal.signal(signal.SIGUSR1, print); print('ready', flush=True)\nwhile 1: time.sleep(1)"
    )
    process = cluster.vila_run(tmp_path, "-J", "deaf", *PYTHON, program)
    wait_for_text(tmp_path, "ready", "deaf")
    process.send_signal(signal.SIGINT)
    wait_for_text(tmp_path, "10 <frame", "deaf")
    process.send_signal(signal.SIGINT)
    code, _, errors = cluster.finish(process)
    assert code == 130, errors
    assert "cancelled" in errors
    wait_until(lambda: cluster.ask("sinfo", "-h", "-o", "%T").split() == ["idle"], "nodes without remains", 30)


def test_ctrl_c_takes_a_waiting_job_out_of_the_queue(cluster, tmp_path):
    process = cluster.vila_run(tmp_path, "-J", "later", "--sbatch=--begin=now+1hour", "true")
    wait_until(cluster.queue, "the job in the queue")
    process.send_signal(signal.SIGINT)
    code, _, errors = cluster.finish(process)
    assert code == 130, errors
    assert cluster.queue() == []


def test_a_second_job_of_the_same_name_is_refused(cluster, tmp_path):
    code, _, _ = cluster.finish(
        cluster.vila_run(tmp_path, "-J", "twin", "--detach", "--sbatch=--begin=now+1hour", "true")
    )
    assert code == 0
    code, _, errors = cluster.finish(cluster.vila_run(tmp_path, "-J", "twin", "true"))
    assert code == 2
    assert "train/twin is in the queue" in errors


def test_what_sbatch_says_is_passed_on(cluster, tmp_path):
    code, _, errors = cluster.finish(cluster.vila_run(tmp_path, "-J", "where", "-p", "nowhere", "true"))
    assert code == 1
    assert "invalid partition" in errors
    assert list((tmp_path / "runs" / "train" / "where" / "logs").iterdir()) == []


def test_a_command_that_saved_itself_goes_back_into_the_queue_until_it_is_finished(cluster, tmp_path):
    process = cluster.vila_run(
        tmp_path, "-J", "again", "bash", "-c", "if [ -e half ]; then exit 0; fi; touch half; exit 124"
    )
    code, _, errors = cluster.finish(process)
    assert code == 0, errors
    assert attempts(tmp_path, "again") == [("stopped", 124), ("finished", 0)]
    assert "restart 1" in errors


@pytest.mark.slow
def test_requeues_end_at_their_limit_with_124(cluster, tmp_path):
    code, _, errors = cluster.finish(
        cluster.vila_run(tmp_path, "-J", "ever", "--max-requeues", "1", "bash", "-c", "exit 124")
    )
    assert code == 124, errors
    assert attempts(tmp_path, "ever") == [("stopped", 124)] * 2


@pytest.mark.slow
def test_the_chunks_of_an_array_run_as_their_own_jobs(cluster, tmp_path):
    program = 'echo "chunk $CHUNK_IDX of $NUM_CHUNKS"; [ "$CHUNK_IDX" != 1 ] || exit 4'
    process = cluster.vila_run(
        tmp_path, "-J", "shares", "-m", "eval", "-a", "3%2", "--no-exclusive", "bash", "-c", program
    )
    code, _, errors = cluster.finish(process)
    assert code == 4, errors
    logs = {path.stem.split("_")[1]: path.read_text() for path in (tmp_path / "runs/eval/shares/logs").glob("*.out")}
    assert sorted(logs) == ["0", "1", "2"]
    assert all(f"chunk {chunk} of 3" in text for chunk, text in logs.items())
    assert "chunk 0 of job" in errors and "exit code 4" in errors


@pytest.mark.slow
def test_a_command_is_told_before_the_time_limit_and_goes_on_afterwards(cluster, tmp_path):
    process = cluster.vila_run(
        tmp_path, "-J", "long", "-t", "1", "--timedelta", "0.75", *PYTHON, SAVES_WHEN_TOLD, "--once"
    )
    code, output, errors = cluster.finish(process)
    assert code == 0, errors
    assert "goes on and finishes" in output
    assert attempts(tmp_path, "long") == [("stopped", 124), ("finished", 0)]


@pytest.mark.slow
def test_a_command_that_does_not_stop_at_the_time_limit_is_a_failure(cluster, tmp_path):
    program = "import signal, time; signal.signal(signal.SIGUSR1, print)\nwhile 1: time.sleep(1)"
    process = cluster.vila_run(tmp_path, "-J", "stuck", "-m", "eval", "-t", "1", "--timedelta", "0.5", *PYTHON, program)
    code, _, errors = cluster.finish(process)
    assert code == 124, errors
    assert "--timedelta" in errors
    assert attempts(tmp_path, "stuck", "eval") == [("failed", 124)]


@pytest.mark.slow
def test_a_job_whose_node_disappears_starts_again_when_there_is_one(cluster, tmp_path):
    program = "if [ -e begun ]; then echo second; exit 0; fi; touch begun; echo first; sleep 300"
    process = cluster.vila_run(tmp_path, "-J", "lost", "bash", "-c", program)
    wait_for_text(tmp_path, "first", "lost")
    cluster.kill_node("n1")
    try:
        wait_until(lambda: any(state == "PENDING" for _, state, _ in cluster.queue()), "NODE_FAIL", 120)
    finally:
        cluster.start_node("n1")
    ((job, _, _),) = cluster.queue()
    wait_until(lambda: not cluster.steps_of(job), "end of what the lost node went on with")
    code, output, errors = cluster.finish(process)
    assert code == 0, errors
    assert "second" in output
    assert attempts(tmp_path, "lost") == [("lost", 1), ("finished", 0)]
    assert "the node failed or was taken back; restart 1" in errors


@pytest.mark.slow
def test_two_nodes_know_their_ranks_and_the_first_failure_counts(cluster, tmp_path):
    program = (
        'echo "rank $CURRENT_RANK of $n_node at $MASTER_ADDR"; [ "$CURRENT_RANK" = 0 ] && sleep 300; sleep 2; exit 5'
    )
    process = cluster.vila_run(tmp_path, "-J", "pair", "-m", "eval", "-N", "2", "-p", "two", "bash", "-c", program)
    code, output, errors = cluster.finish(process)
    assert code == 5, errors
    assert "rank 0 of 2 at n1" in output and "rank 1 of 2 at n1" in output


@pytest.mark.slow
def test_all_nodes_hear_that_they_should_stop(cluster, tmp_path):
    program = SAVES_WHEN_TOLD.replace('"saved"', '"saved" + os.environ["CURRENT_RANK"]')
    process = cluster.vila_run(tmp_path, "-J", "both", "-N", "2", "-p", "two", *PYTHON, program)
    log = tmp_path / "runs" / "train" / "both" / "logs"
    wait_until(lambda: any(path.read_text().count("ready") == 2 for path in log.glob("*.out")), "both nodes")
    process.send_signal(signal.SIGINT)
    code, _, errors = cluster.finish(process)
    assert code == 130, errors
    assert (tmp_path / "saved0").read_text() == (tmp_path / "saved1").read_text() == "x"
