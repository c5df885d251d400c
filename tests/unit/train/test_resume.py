"""Who may go on from a checkpoint, and what is said to those who may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.train.background import BackgroundWriter, snapshot
from llava.train.resume import CONVERTED, RunLayout, check_layout, engine_of, read_converted

TWO = RunLayout(engine="plain", world_size=2, batches_per_step=2, samples_per_batch=4)
ONE = replace(TWO, world_size=1, batches_per_step=1, samples_per_batch=8)
WHERE = Path("out/checkpoint-6")


def check(before: RunLayout, now: RunLayout, **options) -> None:
    check_layout(WHERE, {"layout": before.as_dict()}, now, **options)


@pytest.mark.parametrize("engine", ["plain", "fsdp2"])
def test_states_that_any_number_of_ranks_reads_are_taken(engine):
    check(replace(TWO, engine=engine), replace(ONE, engine=engine))


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_states_of_another_number_of_ranks_come_with_the_command_that_converts(engine):
    with pytest.raises(ValueError, match=r"written by 2 processes under zero., found 1") as error:
        check(replace(TWO, engine=engine), replace(ONE, engine=engine))
    assert "--inject_missing_state --input_folder out/checkpoint-6/global_step6 --output_folder" in str(error.value)
    check(replace(TWO, engine=engine), replace(TWO, engine=engine))


@pytest.mark.parametrize(
    ("is_converted", "world_size", "reads"), [(True, 1, True), (True, 2, False), (False, 1, False)]
)
def test_converted_states_are_read_by_other_numbers_of_ranks_only(tmp_path, is_converted, world_size, reads):
    """Two ranks wrote the checkpoint; those that a run of one rank writes later are ordinary ones again."""
    before = replace(TWO, engine="zero2")
    if is_converted:
        (tmp_path / CONVERTED).write_text("global_step6_universal")
        check_layout(tmp_path, {"layout": before.as_dict()}, replace(ONE, engine="zero2"))
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}})
    read_converted(plugin, tmp_path, {"layout": before.as_dict()}, world_size)
    assert plugin.deepspeed_config["checkpoint"]["load_universal"] is reads
    assert engine_of(plugin, False, is_fsdp2=False) == "zero2"


def test_another_engine_is_refused_with_the_way_to_keep_the_weights():
    with pytest.raises(ValueError, match=r"was written under plain, this run uses zero3.*--model_name_or_path"):
        check(TWO, replace(TWO, engine="zero3"))


def test_another_number_of_samples_per_step_is_refused_unless_the_position_does_not_matter():
    wrong = replace(ONE, samples_per_batch=4)
    with pytest.raises(ValueError, match=r"8 samples per step \(2 processes\), found 4 .* = 8, or accept it"):
        check(TWO, wrong)
    check(TWO, wrong, data_position_matters=False)


def test_a_checkpoint_that_says_nothing_is_taken():
    check_layout(WHERE, {}, TWO)


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_product_of_ranks_and_batch_decides(ranks, batch):
    now = RunLayout(engine="plain", world_size=ranks, batches_per_step=ranks, samples_per_batch=batch)
    if ranks * batch == 8:
        check(TWO, now)
    else:
        with pytest.raises(ValueError, match="samples per step"):
            check(TWO, now)


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_wait():
    writer, done = BackgroundWriter(), []

    def fails() -> None:
        raise OSError("disk")

    writer.submit(fails)
    with pytest.raises(OSError, match="disk"):
        writer.submit(lambda: done.append(1))
    writer.submit(lambda: done.append(2))
    writer.wait()
    assert done == [2]


def test_a_snapshot_is_not_changed_by_the_training_and_keeps_shared_weights_shared():
    weight, frozen = torch.zeros(3), torch.ones(2)
    copy = snapshot({"a": [weight, weight.view(3)], "b": frozen, "n": 7}, fixed=[frozen.data_ptr()])
    weight.fill_(5.0)
    assert copy["a"][0].tolist() == [0, 0, 0] and copy["n"] == 7
    assert copy["a"][0].data_ptr() == copy["a"][1].data_ptr()
    assert copy["b"] is frozen
