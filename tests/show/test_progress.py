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
    assert "searched 3 of 10 configurations, best 500 ms, gap 10 %" in stream.getvalue()


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
