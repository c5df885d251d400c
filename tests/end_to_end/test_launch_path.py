"""One launch path: the same script is one process, several processes, several machines, with and without SLURM."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import llava
from llava.train.callbacks.progress import read_progress
from llava.train.parse import parse_args
from llava.train.train import main
from tests.end_to_end.runs import ENVIRONMENT, ROOT
from tests.unit.train.toy_world import write_toy_world

SCRIPTS = ("align.sh", "pretrain.sh", "sft.sh", "sft_8frames.sh", "sft_episodes.sh", "lora.sh")
CLUSTER = {"MODEL": "m", "DATA_MIXTURE": "d"}
OF_A_LAUNCHER = (
    "GPUS_PER_NODE",
    "n_node",
    "NNODES",
    "CURRENT_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OUTPUT",
)


def environment(**given: str) -> dict[str, str]:
    """This one's without what a launcher sets, and what is given."""
    foreign = {name for name in ENVIRONMENT if name in OF_A_LAUNCHER or name.startswith("SLURM_")}
    return {name: value for name, value in ENVIRONMENT.items() if name not in foreign} | given


def launched(script: str, *flags: str, folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    path = ROOT / "scripts" / "train" / script
    return subprocess.run(
        ["bash", str(path), *flags], env=environment(**given), cwd=folder, capture_output=True, text=True, check=False
    )


def words_of(script: str, *flags: str, folder: Path, **given: str) -> list[str]:
    """What a script would start: its python only repeats the words."""
    done = launched(script, *flags, folder=folder, LLAVA_PYTHON="echo", **given)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def torchrun_of(words: list[str]) -> dict[str, str]:
    """Options of the launcher, up to the program that it starts."""
    assert words[:2] == ["-m", "torch.distributed.run"]
    end = next(i for i, word in enumerate(words) if word.endswith("llava/train/train_mem.py"))
    return dict(zip(words[2:end:2], words[3:end:2], strict=True))


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_gpus_a_script_is_one_process_and_later_flags_win(script, tmp_path):
    words = words_of(script, "--learning_rate", "0.5", folder=tmp_path)
    assert words[:2] == ["-m", "llava.train.train"]
    assert words[-2:] == ["--learning_rate", "0.5"]
    assert parse_args([*words[2:], "--report_to", "none"]).training.learning_rate == 0.5


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_same_script_is_a_process_per_gpu_on_every_machine(script, tmp_path):
    machine = {"GPUS_PER_NODE": "8", "n_node": "4", "CURRENT_RANK": "3", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    words = words_of(script, "--deepspeed", "none", folder=tmp_path, **CLUSTER, **machine)
    options = torchrun_of(words)
    assert (options["--nnodes"], options["--node_rank"], options["--nproc_per_node"]) == ("4", "3", "8")
    assert (options["--master_addr"], options["--master_port"]) == ("first", "29500")
    args = parse_args([*words[2 + 2 * len(options) + 1 :], "--report_to", "none"])
    assert (args.model.model_name_or_path, args.data.data_mixture) == ("m", "d")
    alone = torchrun_of(words_of(script, folder=tmp_path, **CLUSTER, GPUS_PER_NODE="2"))
    assert (alone["--nnodes"], alone["--node_rank"], alone["--master_addr"]) == ("1", "0", "127.0.0.1")


@pytest.mark.parametrize(("script", "samples"), [("pretrain.sh", 1024), ("sft.sh", 2048)])
@pytest.mark.parametrize(("machines", "gpus"), [(1, 1), (1, 8), (4, 8)])
def test_a_step_has_as_many_samples_on_any_number_of_gpus(script, samples, machines, gpus, tmp_path):
    sizes = {"n_node": str(machines), "GPUS_PER_NODE": str(gpus), "CURRENT_RANK": "0", "MASTER_ADDR": "first"}
    words = words_of(script, folder=tmp_path, **CLUSTER, **sizes)
    each = int(words[words.index("--per_device_train_batch_size") + 1])
    accumulated = int(words[words.index("--gradient_accumulation_steps") + 1])
    assert each * accumulated * machines * gpus == samples
    odd = launched(script, folder=tmp_path, **CLUSTER, GPUS_PER_NODE="3", LLAVA_PYTHON="echo")
    assert odd.returncode == 2 and "set GLOBAL_TRAIN_BATCH_SIZE or PER_DEVICE_TRAIN_BATCH_SIZE" in odd.stderr


def test_inside_srun_the_machines_are_those_of_the_step(tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\nprintf \'%s-one\\n%s-two\\n\' "$3" "$3"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n", "SLURM_JOB_ID": "12345"}
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    options = torchrun_of(words_of("sft.sh", folder=tmp_path, **CLUSTER, **step, GPUS_PER_NODE="8", PATH=path))
    assert (options["--nnodes"], options["--node_rank"]) == ("2", "1")
    assert (options["--master_addr"], options["--master_port"]) == ("n-one", "22345")
    given = torchrun_of(words_of("sft.sh", folder=tmp_path, **CLUSTER, **step, GPUS_PER_NODE="8", n_node="1"))
    assert given["--nnodes"] == "1", "what is given wins over the step"


def test_several_machines_without_a_number_of_processes_are_refused(tmp_path):
    done = launched("sft.sh", folder=tmp_path, n_node="2")
    assert done.returncode == 2 and "GPUS_PER_NODE is not set" in done.stderr


@pytest.mark.parametrize("missing", ["CURRENT_RANK", "MASTER_ADDR"])
def test_several_machines_that_could_not_meet_are_refused(missing, tmp_path):
    machine = {"n_node": "2", "GPUS_PER_NODE": "8", "CURRENT_RANK": "0", "MASTER_ADDR": "first"}
    del machine[missing]
    done = launched("sft.sh", folder=tmp_path, **CLUSTER, **machine)
    assert done.returncode == 2 and "set MASTER_ADDR to the first machine and CURRENT_RANK" in done.stderr


def test_a_port_that_is_taken_is_named_and_the_default_gives_way_on_one_machine(tmp_path):
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # another program has it: as good as this one
            server.bind(("127.0.0.1", 25001))
            server.listen()
        alone = torchrun_of(words_of("sft.sh", folder=tmp_path, **CLUSTER, GPUS_PER_NODE="2"))
        assert int(alone["--master_port"]) > 25001
        done = launched("sft.sh", folder=tmp_path, **CLUSTER, GPUS_PER_NODE="2", MASTER_PORT="25001")
        assert done.returncode == 2 and "port 25001 of this machine is taken" in done.stderr


QUICK = "--max_steps 2 --max_train_seconds -1 --vocab_size 400 --logging_steps 1 --report_to none".split()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["align.sh", "pretrain.sh", "sft.sh", "sft_episodes.sh"])
def test_each_stage_trains_the_embedded_model_without_arguments(script, tmp_path):
    world = write_toy_world(tmp_path / "world")
    done = launched(script, *QUICK, folder=tmp_path, DATA_ROOT=str(world), OUTPUT=str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert llava.load(str(tmp_path / "model"), device="cpu").config.version == "llama_3"
    assert [row["step"] for row in read_progress(tmp_path / "model")] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_process_two_processes_and_two_machines_train_the_same(tmp_path):
    """sft.sh three times: the losses of both steps are equal."""
    world = write_toy_world(tmp_path / "world")
    tiny = (
        *QUICK,
        *"--deepspeed none --bf16 False --tf32 False --gradient_checkpointing False --model_max_length 256".split(),
        *"--optim sgd --learning_rate 1e-2 --warmup_steps 0 --weight_decay 0 --dataloader_num_workers 0".split(),
        *("--data_root", str(world), "--save_strategy", "no", "--num_video_frames", "2"),
        *("--tokenizer_mixture", "embedded_grounding"),
    )
    data = {"MODEL": "embedded", "DATA_MIXTURE": "embedded_grounding", "DATA_ROOT": str(world)}
    batch = {"GLOBAL_TRAIN_BATCH_SIZE": "8", "PER_DEVICE_TRAIN_BATCH_SIZE": "4"}

    def start(name: str, **given: str) -> subprocess.Popen[str]:
        settings = environment(**data, **batch, OUTPUT=str(tmp_path / name), **given)
        command = ["bash", str(ROOT / "scripts" / "train" / "sft.sh"), *tiny]
        return subprocess.Popen(
            command, env=settings, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    machines = {"n_node": "2", "GPUS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641"}
    for started in (
        [start("one")],
        [start("two", GPUS_PER_NODE="2", MASTER_PORT="29640")],
        [start("machines", **machines, CURRENT_RANK=rank) for rank in ("0", "1")],
    ):
        for process in started:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said[-3000:]
    one, two, several = ([row["loss"] for row in read_progress(tmp_path / n)] for n in ("one", "two", "machines"))
    assert two == pytest.approx(one, abs=1e-4)
    assert several == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_launcher_of_accelerate_trains_under_fsdp2_what_one_process_does(tmp_path):
    """The command of scripts/README.md on two CPU ranks; the same losses, and a checkpoint of FSDP2."""
    world = write_toy_world(tmp_path / "world")
    flags = (
        "--model_name_or_path embedded --data_mixture embedded_grounding --stage sft --optim sgd --learning_rate 1e-2 "
        "--lr_scheduler_type constant --model_max_length 256 --gradient_checkpointing False --save_steps 2 "
        f"--data_root {world} --max_steps 2 --vocab_size 400 --logging_steps 1 --report_to none"
    ).split()
    assert main([*flags, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "one")]) == 0
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "scripts/fsdp2.yaml")]
    program = [str(ROOT / "llava/train/train_mem.py"), *flags, "--per_device_train_batch_size", "2"]
    program += ["--output_dir", str(tmp_path / "two")]
    done = subprocess.run(
        [*launcher, "--num_processes", "2", "--main_process_port", str(port), *program],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "two" / "checkpoint-2" / "checkpoint_complete.json").read_text())
    assert (facts["layout"]["engine"], facts["layout"]["world_size"]) == ("fsdp2", 2)
    one, two = ([row["loss"] for row in read_progress(tmp_path / name)] for name in ("one", "two"))
    assert len(two) == 2 and two == pytest.approx(one, abs=1e-4)
    assert llava.load(str(tmp_path / "two"), device="cpu").config.version == "llama_3"
