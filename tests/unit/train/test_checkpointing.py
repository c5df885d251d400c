"""Checkpoints on disk: whole or not there, whatever moment a process is killed at, and never the last one lost."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

import pytest
from torch import nn

from llava.train import checkpointing, disk_space


def write(folder: Path, text: str = "weights") -> Path:
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "model.safetensors").write_text(text)
    return folder


def whole(output: Path, step: int, text: str = "weights") -> Path:
    staged = write(output / checkpointing.STAGING / f"checkpoint-{step}", text)
    checkpointing.mark_complete(staged, {"step": step})
    final = output / f"checkpoint-{step}"
    checkpointing.publish(staged, final)
    return final


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda c: (c / checkpointing.MARKER).unlink(), "has no checkpoint_complete.json"),
        (lambda c: (c / checkpointing.MARKER).write_text('{"step"'), "that cannot be read"),
        (lambda c: (c / "llm" / "model.safetensors").unlink(), "lacks llm/model.safetensors"),
        (lambda c: os.truncate(c / "llm" / "model.safetensors", 3), "has 3 of 7 bytes of llm/model.safetensors"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_named_and_skipped(tmp_path, caplog, damage, fault):
    good = whole(tmp_path, 4)
    damage(whole(tmp_path, 8))
    with caplog.at_level(logging.WARNING):
        assert checkpointing.newest_checkpoint(tmp_path) == good
    assert "checkpoint-8" in caplog.text and fault in caplog.text


def test_a_marker_of_an_older_version_that_lists_no_files_counts(tmp_path):
    checkpoint = write(tmp_path / "checkpoint-2")
    checkpointing.write_json(checkpoint / checkpointing.MARKER, {"step": 2})
    assert checkpointing.newest_checkpoint(tmp_path) == checkpoint


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(8))
def test_a_kill_while_a_checkpoint_of_the_same_step_is_replaced_leaves_one_of_the_two(tmp_path, monkeypatch, call):
    """The process ends at the n-th rename or removal; the next start finds the old or the new one, whole."""
    whole(tmp_path, 4, "old")
    count = iter(range(100))

    def dies_at(function):
        def wrapper(*args, **kwargs):
            if next(count) == call:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies_at(Path.replace))
        patch.setattr(checkpointing.shutil, "rmtree", dies_at(checkpointing.shutil.rmtree))
        with contextlib.suppress(Killed):
            whole(tmp_path, 4, "new")
    checkpointing.clear_staging(tmp_path)
    (found,) = checkpointing.complete_checkpoints(tmp_path)
    assert (found / "llm" / "model.safetensors").read_text() in ("old", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (2, 4):
        whole(tmp_path, step)

    def dies(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.shutil, "rmtree", dies)
        with pytest.raises(Killed):
            checkpointing.remove_old(tmp_path, 1)
    assert [path.name for path in checkpointing.complete_checkpoints(tmp_path)] == ["checkpoint-4"]


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    usage = disk_space.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    disk_space.require_space(tmp_path, 900_000)
    with pytest.raises(OSError, match=r"has 1 MB free, the next checkpoint needs 2 MB; nothing was written"):
        disk_space.require_space(tmp_path, 2_000_000)


def test_the_expected_size_counts_weights_and_optimizer_or_follows_the_newest_checkpoint(tmp_path):
    model = nn.Linear(10, 10, bias=False)  # 100 weights
    frozen = nn.Linear(10, 10, bias=False).requires_grad_(False)
    both = nn.Sequential(model, frozen)
    count = {"engine_copies": 0, "moments": 2}
    assert disk_space.expected_size(tmp_path, both, trained_only=False, **count) == 4 * 200 + 4 * 2 * 100
    assert disk_space.expected_size(tmp_path, both, trained_only=True, **count) == 4 * 100 + 4 * 2 * 100
    marker = json.loads((whole(tmp_path, 2) / checkpointing.MARKER).read_text())
    assert disk_space.expected_size(tmp_path, both, trained_only=True, **count) == sum(marker["files"].values()) == 7
    assert disk_space.model_size(both, trained_only=False) == 4 * 200
    assert disk_space.model_size(both, trained_only=True) == 4 * 100


def test_a_checkpoint_that_is_asked_for_by_name_must_be_whole(tmp_path):
    checkpoint = whole(tmp_path, 2)
    assert checkpointing.asked_for(checkpoint) == checkpoint
    (checkpoint / "llm" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks llm/model.safetensors; name one that is whole"):
        checkpointing.asked_for(checkpoint)
    (checkpoint / checkpointing.MARKER).unlink()
    assert checkpointing.asked_for(checkpoint) == checkpoint, "another program may have written it"
    with pytest.raises(ValueError, match=r"checkpoint-3, which is no folder"):
        checkpointing.asked_for(tmp_path / "checkpoint-3")
