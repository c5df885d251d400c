"""The job script: what it asks for, and that words reach the command as they were given."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.cli.slurm.request import Request, default_notice, parse_array
from llava.cli.slurm.script import job_script, quote, terminal_script

ASK = {"job_name": "sft", "command": ("train", "--x"), "output_dir": Path("/data/runs/train/sft")}
WORDS = st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))), max_size=12)
ALLOCATION = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "1", "PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def printer(tmp_path_factory) -> str:
    """A program that prints its arguments, each closed by a NUL."""
    path = tmp_path_factory.mktemp("bin") / "printer"
    path.write_text("#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n")
    path.chmod(0o755)
    return str(path)


def run(script: str, folder: Path, **environment: str) -> bytes:
    path = folder / "job.sh"
    path.write_bytes(script.encode(errors="surrogateescape"))
    return subprocess.run(["bash", path], env=ALLOCATION | environment, capture_output=True, check=True).stdout


def words_of(output: bytes) -> list[str]:
    return [word.decode(errors="surrogateescape") for word in output.split(b"\0")[:-1]]


@given(words=WORDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_survive_the_job_script(printer, tmp_path, words):
    script = job_script(Request(**{**ASK, "command": ("train", *words)}), python=printer)
    given_to_runner = words_of(run(script, tmp_path))
    assert given_to_runner[given_to_runner.index("--") + 1 :] == ["train", *words]


@given(word=st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"")))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_that_are_no_text_survive_as_well(printer, tmp_path, word):
    text = word.decode(errors="surrogateescape")
    script = terminal_script(Request(**{**ASK, "command": (printer, text)}))
    assert words_of(run(script, tmp_path)) == [text]


def test_every_word_stands_on_one_line_because_sbatch_refuses_dos_line_ends():
    script = job_script(Request(**{**ASK, "command": ("bash", "-c", "a\r\nb\n#SBATCH --time=1\n")}))
    assert "\r" not in script
    assert r"$'a\015\012b\012#SBATCH --time=1\012'" in script.splitlines()[-3]
    assert quote("plain") == "plain"


def test_the_header_asks_for_what_was_asked():
    request = Request(
        **ASK,
        nodes=4,
        gpus_per_node=8,
        time_limit=48 * 3600,
        notice=600,
        account="lab",
        partition="gpu",
        email="a@b.org",
        options=("--mem=0", "--comment=two words"),
    )
    header = [line for line in job_script(request).splitlines() if line.startswith("#SBATCH")]
    assert header == [
        "#SBATCH --job-name=lab:train/sft",
        "#SBATCH --output=/data/runs/train/sft/logs/%j.out",
        "#SBATCH --open-mode=append",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --time=2-00:00:00",
        "#SBATCH --signal=B:USR1@600",
        "#SBATCH --requeue",
        "#SBATCH --account=lab",
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --exclusive",
        "#SBATCH --mail-type=BEGIN,END,FAIL",
        "#SBATCH --mail-user=a@b.org",
        "#SBATCH --mem=0",
        '#SBATCH "--comment=two words"',
    ]


@pytest.mark.parametrize(("how", "line"), [("gres", "--gres=gpu:8"), ("gpus-per-node", "--gpus-per-node=8")])
def test_gpus_can_be_asked_for_in_two_ways(how, line):
    assert f"#SBATCH {line}\n" in job_script(Request(**ASK, gpu_request=how))


def test_clusters_that_give_out_whole_nodes_are_not_asked_for_gpus_but_the_command_hears_of_them():
    script = job_script(Request(**ASK, gpu_request="none"))
    assert "#SBATCH --g" not in script
    assert "export GPUS_PER_NODE=8" in script


def environment_of(request: Request, folder: Path, **outside: str) -> dict[str, str]:
    script = job_script(request).rpartition("command=(")[0] + "exec env -0\n"
    entries = (word.partition("=") for word in words_of(run(script, folder, **outside)))
    return {name: value for name, _, value in entries}


def test_the_command_finds_what_the_training_scripts_read(tmp_path):
    got = environment_of(Request(**ASK, gpus_per_node=4), tmp_path)
    wanted = {
        "RUN_NAME": "sft",
        "OUTPUT_DIR": "/data/runs/train/sft",
        "OUTPUT": "/data/runs/train/sft/model",
        "n_node": "1",
        "NNODES": "1",
        "GPUS_PER_NODE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "20012",
        "PYTHONUNBUFFERED": "1",
    }
    assert {name: got.get(name) for name in wanted} == wanted


def test_what_the_user_set_outside_stays_except_the_number_of_gpus(tmp_path):
    outside = {"OUTPUT": "/elsewhere", "MASTER_PORT": "9", "GPUS_PER_NODE": "8", "MODEL": "m"}
    got = environment_of(Request(**ASK, gpus_per_node=0), tmp_path, **outside)
    assert (got["OUTPUT"], got["MASTER_PORT"], got["MODEL"]) == ("/elsewhere", "9", "m")
    assert "GPUS_PER_NODE" not in got  # the scripts take it as the sign to start torchrun


def test_the_first_of_several_nodes_is_the_master(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames a[1-2]" ] && printf "a1\\na2\\n"\n')
    scontrol.chmod(0o755)
    outside = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    got = environment_of(Request(**ASK, nodes=2), tmp_path, **outside)
    assert (got["MASTER_ADDR"], got["n_node"]) == ("a1", "2")


def test_each_task_of_an_array_knows_its_chunk_and_has_its_own_files(tmp_path):
    request = Request(**ASK, array=parse_array("8%2"))
    script = job_script(request)
    assert "#SBATCH --array=0-7%2\n" in script and "/logs/%A_%a.out\n" in script
    got = environment_of(request, tmp_path, SLURM_ARRAY_JOB_ID="11", SLURM_ARRAY_TASK_ID="3")
    assert (got["NUM_CHUNKS"], got["CHUNK_IDX"]) == ("8", "3")
    output = run(job_script(request, python="echo"), tmp_path, SLURM_ARRAY_JOB_ID="11", SLURM_ARRAY_TASK_ID="3")
    assert b"--base /data/runs/train/sft/logs/11_3 -- train --x" in output


@pytest.mark.parametrize("text", ["", "0", "8%0", "1-4", "x", "-3"])
def test_an_array_is_a_number_of_chunks(text):
    with pytest.raises(ValueError, match="expected a number of chunks such as 8"):
        parse_array(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"job_name": "a/b"}, "--job-name is 'a/b'"),
        ({"job_name": ".."}, "it names a folder"),
        ({"mode": "x y"}, "--mode is 'x y'"),
        ({"command": ()}, "there is no command"),
        ({"command": ("a", "b\0")}, "NUL"),
        ({"nodes": 0}, "--nodes is 0, expected at least 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node is -1"),
        ({"max_requeues": -2}, "--max-requeues is -2"),
        ({"time_limit": 300, "notice": 300}, r"--timedelta is 5 minutes, .* less than --time \(5 minutes\)"),
        ({"notice": 0}, "more than 0"),
        ({"output_dir": Path("/a/100%")}, "--output-dir"),
        ({"gpu_request": "many"}, "one of gpus-per-node, gres, none"),
        ({"options": ("--mem=0\n#SBATCH --x",)}, "line break"),
    ],
)
def test_requests_that_make_no_sense_are_refused_with_the_flag(wrong, message):
    with pytest.raises(ValueError, match=message):
        Request(**{**ASK, **wrong})


@pytest.mark.parametrize(("limit", "notice"), [(4 * 3600, 600), (3000, 600), (600, 120), (60, 12)])
def test_the_notice_is_ten_minutes_or_a_fifth_of_a_short_time(limit, notice):
    assert default_notice(limit) == notice
