"""Times as users of SLURM write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.cli.slurm.times import format_time, parse_time

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * 60),
        ("90:30", 90 * 60 + 30),
        ("4:00:00", 4 * HOUR),
        ("48:00:00", 48 * HOUR),
        ("100:00:01", 100 * HOUR + 1),
        ("2-00:00:00", 2 * DAY),
        ("2-12", 2 * DAY + 12 * HOUR),
        ("1-02:30", DAY + 2 * HOUR + 30 * 60),
        (" 0:10 ", 10),
    ],
)
def test_every_form_of_slurm_is_understood(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0:00:00", "-1", "1.5", "4h", "1:60", "1:60:00", "1-24:00:00", "1:2:3:4", "1-", "400-0", "٣"]
)
def test_anything_else_is_an_error_that_shows_the_forms(text):
    with pytest.raises(ValueError, match=r"expected minutes \(90\), HH:MM:SS \(48:00:00\) or D-HH:MM:SS"):
        parse_time(text)


def test_a_day_and_more_is_written_with_days():
    assert format_time(48 * HOUR) == "2-00:00:00"
    assert format_time(HOUR + 62) == "01:01:02"


@given(st.integers(min_value=60, max_value=366 * DAY))
def test_what_is_written_means_the_same_time(seconds):
    assert parse_time(format_time(seconds)) == seconds
