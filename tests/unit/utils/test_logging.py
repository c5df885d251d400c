"""Rank 0 speaks, the others only warn; the launcher's environment is read in one place."""

import importlib
import logging

import pytest

from llava.utils import distributed
from llava.utils.logging import get_logger, setup_logging


@pytest.fixture
def quiet_root():
    root = logging.getLogger("llava")
    state = (root.handlers[:], root.propagate, root.level)
    yield root
    root.handlers[:], root.propagate, root.level = state


@pytest.mark.parametrize(
    ("rank", "all_ranks", "level"), [("0", False, "INFO"), ("3", False, "WARNING"), ("3", True, "INFO")]
)
def test_other_ranks_only_warn(monkeypatch, quiet_root, rank, all_ranks, level):
    monkeypatch.setenv("RANK", rank)
    setup_logging("info", all_ranks=all_ranks)
    assert quiet_root.level == logging.getLevelName(level)
    assert get_logger("llava.data").getEffectiveLevel() == quiet_root.level


def test_setting_up_twice_does_not_double_messages(quiet_root):
    setup_logging()
    setup_logging()
    assert len(quiet_root.handlers) == 1


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="'LOUD', expected DEBUG"):
        setup_logging("LOUD")


def test_a_process_without_a_launcher_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert not distributed.is_distributed()
    distributed.barrier()


def test_a_wrong_launcher_variable_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'two', expected a number"):
        distributed.world_size()


def test_documented_media_names_are_forwarded():
    forwarded = importlib.import_module("llava.utils.media")
    assert forwarded.extract_media.__module__ == "llava.mm_utils"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = forwarded.nothing
