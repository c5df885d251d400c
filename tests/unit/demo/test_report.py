"""The report is one file that shows the numbers it was given."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from playground.demo.report import charts
from playground.demo.report.data import rates_on_level, read_json
from playground.demo.report.page import render, write

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import fake_run

VOID = {"meta", "img", "br", "input", "hr"}


class Balance(HTMLParser):
    """Fails on a tag that closes another than the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_no_network(tmp_path):
    page = write(fake_run(), tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "url(" not in page and "<script" not in page and "@import" not in page


def test_every_tag_is_closed():
    balance = Balance()
    balance.feed(render(fake_run(("one room", "several rooms"))))
    assert balance.open == []


def test_both_formats_the_floors_and_their_intervals_are_shown():
    page = render(fake_run())
    for name in ("streaming", "8 frames", "random", "forward", "any object", "oracle"):
        assert name in page
    assert "74.0<small>68–80" in page  # 148 of 200, Wilson
    assert "710.0" in page and "10:55" in page


def test_text_of_a_run_cannot_break_the_page():
    run = fake_run()
    page = render(replace(run, settings={"mixture": "<b>&'\""}))
    assert "<b>&'" not in page and "&lt;b&gt;&amp;" in page


def test_a_demo_without_any_result_still_makes_a_page():
    page = render(replace(fake_run(), evaluations=[], curves={"Align": []}))
    assert "no curve yet" in page


def test_floors_stand_below_the_formats_and_are_grey():
    rates = rates_on_level(fake_run().evaluations, "success_1m")
    assert [rate.label for rate in rates] == ["streaming", "8 frames", "random", "forward", "any object", "oracle"]
    assert [rate.colour == charts.FLOOR for rate in rates] == [False, False, True, True, True, True]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7.3), (0.2, 0.9), (0, 1200)])
def test_ticks_are_few_and_inside(low, high):
    ticks = charts.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 5 and low <= ticks[0] and ticks[-1] <= high + 1e-9


def test_smoothing_keeps_a_straight_line():
    assert charts.smooth([1.0, 2.0, 3.0, 4.0, 5.0], 3)[1:-1] == [2.0, 3.0, 4.0]


def test_a_missing_result_names_the_next_step(tmp_path):
    with pytest.raises(ValueError, match="run the demo again"):
        read_json(tmp_path / "results.json")
