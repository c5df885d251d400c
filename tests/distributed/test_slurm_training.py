"""A training of two ranks as a job of a real SLURM: told before the time limit, it saves, waits and goes on."""

import json
import sys

import pytest

from llava.cli.slurm.attempts import History
from llava.train.callbacks.progress import read_progress
from llava.train.checkpointing import FINISHED
from tests.distributed.slurm_cluster import ROOT, CannotStart, Cluster, wait_until
from tests.unit.train.toy_world import write_toy_world

TRAINING = (
    "--model_name_or_path embedded --data_mixture embedded_streaming --stage sft --model_max_length 256 "
    "--per_device_train_batch_size 1 --logging_steps 1 --report_to none --vocab_size 400 --max_steps 60 "
    "--save_strategy no --dataloader_num_workers 1"
)


@pytest.fixture
def cluster(tmp_path_factory):
    try:
        with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
            yield cluster
    except CannotStart as error:
        pytest.skip(f"SLURM cannot be started here: {error}")


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_ranks_of_a_training_save_at_the_notice_and_go_on_from_there(cluster, tmp_path):
    world, model = write_toy_world(tmp_path / "world"), tmp_path / "model"
    train = [*TRAINING.split(), "--data_root", str(world), "--output_dir", str(model)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = cluster.vila_run(
        tmp_path, "-J", "real", *torchrun, str(ROOT / "llava/train/train.py"), *train, OMP_NUM_THREADS="1"
    )
    wait_until(lambda: model.exists() and len(read_progress(model)) > 4, "the fifth step", 1500)
    ((job, _, _),) = cluster.queue()
    cluster.ask("scancel", "--batch", "--signal=USR1", job)  # what SLURM does before the time limit
    code, output, errors = cluster.finish(process, 2400)
    assert code == 0, output[-3000:] + errors
    (path,) = (tmp_path / "runs" / "train" / "real" / "logs").glob("*.attempts.jsonl")
    assert [end.outcome for end in History.read(path).ends] == ["stopped", "finished"]
    assert [row["step"] for row in read_progress(model)] == list(range(1, 61))
    assert json.loads((model / FINISHED).read_text())["step"] == 60
