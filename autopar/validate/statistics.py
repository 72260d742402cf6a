"""How far predictions are from measurements, and how well they rank them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
