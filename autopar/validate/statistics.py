"""How far predictions are from measurements, and how well they rank them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
# Fewer runs than this have no rank correlation that would mean anything.
FEWEST_RANKED = 4


@dataclass(frozen=True)
class Errors:
    """Relative errors of predicted step times; ``bias`` is their mean, positive if too slow.

    ``rank`` is Spearman's correlation of predicted and measured seconds, None for few runs.
    """

    count: int
    mean_absolute: float
    bias: float
    p10: float
    p90: float
    p90_absolute: float
    rank: float | None


def errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """Statistics of at least one pair of seconds."""
    there, seen = np.array(predicted, dtype=float), np.array(measured, dtype=float)
    relative = there / seen - 1
    size = np.abs(relative)
    p10, p90 = (float(np.quantile(relative, q)) for q in (0.1, 0.9))
    rank = spearman(there, seen) if len(there) >= FEWEST_RANKED else None
    return Errors(
        len(there), float(size.mean()), float(relative.mean()), p10, p90,
        float(np.quantile(size, 0.9)), rank,
    )  # fmt: skip


def spread(repeats: Sequence[Sequence[float]]) -> list[float]:
    """Relative differences of runs of one configuration each, by pairs, in rising order.

    Equal seconds are one figure that a source gives twice.
    """
    pairs = (pair for seconds in repeats for pair in combinations(sorted(set(seconds)), 2))
    return sorted(slow / fast - 1 for fast, slow in pairs)


def ordered(predicted: Sequence[float], measured: Sequence[float], least: float) -> tuple[int, int]:
    """Counts of pairs: those that differ by enough, and of these those predicted in their order.

    Their measured seconds differ by more than ``least`` of the smaller.
    """
    count = right = 0
    for (p, m), (q, n) in combinations(zip(predicted, measured, strict=True), 2):
        if max(m, n) > (1 + least) * min(m, n):
            count += 1
            right += (p < q) == (m < n)
    return count, right


def spearman(first: Vector, second: Vector) -> float | None:
    """Correlation of the ranks, equal values sharing the mean of theirs; None if one is constant.

    Spearman, 1904.
    """
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else None


def _ranks(values: Vector) -> Vector:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means = last - (counts - 1) / 2
    return np.asarray(means[inverse], dtype=float)
