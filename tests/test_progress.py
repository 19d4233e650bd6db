"""The progress of long work: a bar where one can be drawn, lines in the log elsewhere."""

import io
import logging

import pytest
import rich
from rich.console import Console

from splade_lit.core import progress
from splade_lit.core.progress import WorkProgress


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    caplog.set_level(logging.INFO)
    return clock


def show_on(monkeypatch: pytest.MonkeyPatch, **settings: bool) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=screen, width=100, **settings))
    return screen


def test_a_log_gets_a_line_now_and_then(clock, monkeypatch, caplog):
    screen = show_on(monkeypatch)
    with WorkProgress("encoding", "documents", 5_000) as work:
        for _ in range(5):
            clock.now += 20
            work.advance(200)
    assert caplog.messages == [
        "encoding: 400 of 5,000 documents, 10 a second, about 8 min left",
        "encoding: 800 of 5,000 documents, 10 a second, about 7 min left",
    ]
    assert screen.getvalue() == ""


def test_work_that_is_spared_makes_nothing_faster(clock, monkeypatch, caplog):
    show_on(monkeypatch)
    with WorkProgress("encoding", "documents", 5_000) as work:
        work.skip(4_000)
        clock.now += 40
        work.advance(400)
    assert caplog.messages == ["encoding: 4,400 of 5,000 documents, 10 a second, about 60 s left"]


def test_a_total_need_not_be_known(clock, monkeypatch, caplog):
    show_on(monkeypatch)
    with WorkProgress("tokenising", "texts", None) as work:
        clock.now += 40
        work.advance(400)
    assert caplog.messages == ["tokenising: 400 texts, 10 a second"]


def test_a_terminal_gets_a_bar_and_no_lines(clock, monkeypatch, caplog):
    screen = show_on(monkeypatch, force_terminal=True)
    with WorkProgress("encoding", "documents", 5_000) as work:
        work.skip(1_000)
        clock.now += 40
        work.advance(400)
    assert "encoding" in screen.getvalue()
    assert "1400/5000" in screen.getvalue()
    assert caplog.messages == []


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_told_unasked(clock, monkeypatch, caplog, terminal):
    screen = show_on(monkeypatch, force_terminal=terminal)
    with WorkProgress("encoding", "documents", 5_000, show=False) as work:
        clock.now += 40
        work.advance(400)
    assert screen.getvalue() == ""
    assert caplog.messages == []
