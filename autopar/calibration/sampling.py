"""How a call is timed: many rounds over all points, each sample long enough for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from autopar.calibration.points import Point
from autopar.calibration.rows import Rows

SAMPLE_SECONDS = 0.002
# Interleaved rounds: a disturbance of some seconds hits one sample of every point, not all
# samples of one. The first rounds are made even where the budget is spent.
ROUNDS, LEAST_ROUNDS = 20, 2

Sampler = Callable[[Point], float]


def seconds_per_call(call: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """Seconds of one call, from a loop of about ``SAMPLE_SECONDS`` behind a warm-up call."""
    warm = _timed(call, synchronize, 1)
    if warm < SAMPLE_SECONDS:
        warm = _timed(call, synchronize, 1)
    count = max(1, int(SAMPLE_SECONDS / max(warm, 1e-7)))
    return _timed(call, synchronize, count) / count


def _timed(call: Callable[[], object], synchronize: Callable[[], object], count: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return time.perf_counter() - start


def missing(rows: Rows, points: Iterable[Point], round_number: int) -> list[Point]:
    """The points that lack their sample of this round."""
    return [point for point in points if rows.count(point) <= round_number]


def measure(
    rows: Rows,
    points: Sequence[Point],
    sampler: Sampler,
    deadline: float,
    progress: Callable[[int, int], None],
) -> None:
    """Samples every point once per round until ``deadline``, as ``time.monotonic`` gives it."""
    for number in range(ROUNDS):
        for point in missing(rows, points, number):
            if number >= LEAST_ROUNDS and time.monotonic() > deadline:
                return
            rows.add(point, sampler(point))
        progress(number + 1, ROUNDS)
