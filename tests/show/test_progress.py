from __future__ import annotations

import time
from io import StringIO

from rich.console import Console

from autopar.show import progress
from autopar.show.progress import ProgressDisplay


def display(terminal, monkeypatch, patience=0.05):
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", patience)
    stream = StringIO()
    # A fixed environment: what the terminal of the person who runs the tests can do is no matter.
    console = Console(file=stream, force_terminal=terminal, width=120, _environ={})
    return stream, ProgressDisplay("planning", console)


def test_shows_after_a_while_on_a_terminal(monkeypatch):
    stream, shown = display(True, monkeypatch)
    with shown:
        shown.plan_progress(3, 10, 0.5, 0.45)
        time.sleep(0.4)
    assert (
        "searched 3 of 10 configurations, best 500 ms, bound 450 ms, gap 10 %" in stream.getvalue()
    )


def test_before_there_is_a_plan_the_bound_is_shown(monkeypatch):
    stream, shown = display(True, monkeypatch)
    with shown:
        shown.plan_progress(0, 10, None, 0.45)
        time.sleep(0.4)
        shown.plan_progress(10, 10, None, float("inf"))
        time.sleep(0.4)
    assert "searched 0 of 10 configurations, no plan yet, bound 450 ms" in stream.getvalue()
    assert "bound inf" not in stream.getvalue()


def test_short_work_shows_nothing(monkeypatch):
    stream, shown = display(True, monkeypatch, patience=60)
    with shown:
        shown.plan_progress(1, 2, None, None)
    assert "planning" not in stream.getvalue()
    assert "searched" not in stream.getvalue()


def test_nothing_without_a_terminal(monkeypatch):
    stream, shown = display(False, monkeypatch)
    with shown:
        shown.labelled("gemm", 1, 2)
        time.sleep(0.1)
    assert stream.getvalue().strip() == ""
