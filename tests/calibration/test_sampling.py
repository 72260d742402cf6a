from __future__ import annotations

import time

from autopar.calibration.points import Point
from autopar.calibration.rows import Rows
from autopar.calibration.sampling import (
    LEAST_ROUNDS,
    ROUNDS,
    SAMPLE_SECONDS,
    measure,
    seconds_per_call,
)

POINTS = [Point("gemm", "x", (n,)) for n in range(3)]


def test_seconds_of_one_call():
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.0005)

    seconds = seconds_per_call(call, lambda: None)
    assert 0.0005 <= seconds < 0.05
    assert len(calls) <= 3 + SAMPLE_SECONDS / 0.0005


def test_a_slow_call_is_made_twice():
    calls = []
    seconds_per_call(lambda: calls.append(time.sleep(0.01)), lambda: None)
    assert len(calls) == 2


def test_rounds_are_interleaved(tmp_path):
    order = []

    def sampler(point):
        order.append(point)
        return 1.0

    measure(Rows(tmp_path / "a.csv", "c"), POINTS, sampler, time.monotonic() + 60, lambda *_: None)
    assert order == POINTS * ROUNDS


def test_stops_at_the_deadline_and_continues(tmp_path):
    path = tmp_path / "a.csv"
    measure(Rows(path, "c"), POINTS, lambda _: 1.0, 0.0, lambda *_: None)
    assert {Rows(path, "c").count(p) for p in POINTS} == {LEAST_ROUNDS}
    reports = []
    measure(
        Rows(path, "c"), POINTS, lambda _: 1.0, time.monotonic() + 60,
        lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert {Rows(path, "c").count(p) for p in POINTS} == {ROUNDS}
    assert reports[-1] == (ROUNDS, ROUNDS)
