"""What an attempt's end means, and whether another follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.cli.slurm.attempts import OUTCOMES, End, History, Limits, describe, judge, ranks_that_failed

TORCHRUN = """\
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-31_10:00:00
  host      : n1
  rank      : 3 (local_rank: 3)
  exitcode  : {code} (pid: 4711)
  error_file: <N/A>
============================================================
"""


def ends(*outcomes: str) -> list[End]:
    return [End(outcome=outcome, code=1, reason=outcome) for outcome in outcomes]


def test_zero_is_finished_even_when_it_was_told_to_stop():
    assert [judge(0, told=told).outcome for told in (None, "time", "user")] == ["finished"] * 3


def test_124_is_stopped():
    assert judge(124, told=None) == End(
        outcome="stopped", code=124, reason="saved and stopped by itself, exit code 124"
    )


@pytest.mark.parametrize("code", [1, 124, 137, 138])
def test_whatever_it_says_after_the_notice_it_stopped(code):
    end = judge(code, told="time")
    assert (end.outcome, end.code) == ("stopped", 124)


def test_a_command_that_had_to_be_killed_at_the_limit_failed():
    end = judge(137, told="late")
    assert (end.outcome, end.code) == ("failed", 124)
    assert "--timedelta" in end.reason


def test_a_stop_on_request_is_no_failure():
    assert judge(143, told="user").outcome == "cancelled"


def test_a_failure_names_code_signal_and_notes():
    assert judge(3, told=None).reason == "exit code 3"
    assert judge(139, told=None, notes=["on n2"]).reason == "SIGSEGV (exit code 139), on n2"
    assert describe(-9) == "SIGKILL (exit code 137)"
    assert describe(255) == "exit code 255"


def test_torchrun_hides_the_exit_code_of_its_ranks_and_its_report_is_read():
    assert ranks_that_failed(TORCHRUN.format(code=-9)) == [(3, -9)]
    stopped, failed = (judge(1, told=None, log_text=TORCHRUN.format(code=code)) for code in (124, -9))
    assert (stopped.outcome, stopped.code) == ("stopped", 124)
    assert failed.reason == "exit code 1, first failure on rank 3: SIGKILL (exit code 137)"


@pytest.mark.parametrize(
    ("outcomes", "another"),
    [
        (["finished"], False),
        (["cancelled"], False),
        (["failed"], True),
        (["failed", "failed"], True),
        (["failed", "lost", "failed"], False),
        (["failed", "failed", "stopped", "failed"], True),
        (["stopped"] * 50, True),
    ],
)
def test_failures_in_a_row_are_counted_and_time_limits_are_not(outcomes, another):
    assert Limits(max_retries=2).allow_another(ends(*outcomes)) is another


def test_time_limits_are_counted_when_asked():
    limits = Limits(max_requeues=2)
    assert [limits.allow_another(ends(*["stopped"] * count)) for count in (1, 2, 3)] == [True, True, False]


@given(st.integers(0, 2), st.integers(0, 2), st.lists(st.sampled_from(OUTCOMES), max_size=12))
def test_no_sequence_of_ends_makes_more_attempts_than_allowed(retries, requeues, outcomes):
    limits, done = Limits(max_retries=retries, max_requeues=requeues), []
    for outcome in outcomes:
        done += ends(outcome)
        if not limits.allow_another(done):
            break
    assert sum(end.outcome == "stopped" for end in done) <= requeues + 1
    assert sum(end.outcome in ("finished", "cancelled") for end in done) <= 1
    assert len(done) <= (requeues + 1) * (retries + 2)


def test_a_history_is_read_as_it_was_written(tmp_path):
    history = History.read(tmp_path / "logs" / "1.attempts.jsonl")
    assert (history.begin(nodes="n1"), history.is_running) == (1, True)
    history.end(judge(3, told=None))
    history.begin(nodes="n2")
    again = History.read(history.path)
    assert (again.started, again.is_running, again.ends) == (2, True, [judge(3, told=None)])


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path):
    history = History(tmp_path / "1.attempts.jsonl")
    history.begin()
    with history.path.open("a") as stream:
        stream.write('{"event": "end", "outco')
    assert History.read(history.path).is_running
