"""Interpolation in the tables of a cost model: linear in the logarithms of sizes and values."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self


@dataclass(frozen=True)
class Axis:
    """The grid lines of one quantity, as logarithms."""

    logs: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The axis through positive, increasing ``values``."""
        return cls(tuple(math.log(value) for value in values))

    def locate(self, value: float) -> tuple[int, int, float]:
        """The two lines around ``value`` and its distance from the first, 0 to 1.

        Outside of the axis both lines are the nearest one.
        """
        logs = self.logs
        x = math.log(value) if value > 0 else -math.inf
        right = bisect_right(logs, x)
        if right == 0:
            return 0, 0, 0.0
        if right == len(logs):
            return right - 1, right - 1, 0.0
        left = right - 1
        return left, right, (x - logs[left]) / (logs[right] - logs[left])


@dataclass(frozen=True)
class Table:
    """Positive values on a grid; ``logs`` holds their logarithms by grid indices."""

    axes: tuple[Axis, ...]
    logs: dict[tuple[int, ...], float]

    @classmethod
    def of(cls, axes: Sequence[Sequence[float]], values: Any) -> Self:
        """The table of nested lists ``values``, one level of nesting per axis."""
        logs = {}
        for index in product(*(range(len(axis)) for axis in axes)):
            value = values
            for i in index:
                value = value[i]
            logs[index] = math.log(value)
        return cls(tuple(Axis.of(axis) for axis in axes), logs)

    def scaled(self, factor: float) -> Table:
        """All values times ``factor``."""
        return Table(self.axes, {key: log + math.log(factor) for key, log in self.logs.items()})

    def at(self, *point: float) -> float:
        """The value at ``point``, multilinear in logarithms, constant outside of the grid."""
        corners: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        for axis, value in zip(self.axes, point, strict=True):
            left, right, part = axis.locate(value)
            low = [((*index, left), weight * (1 - part)) for index, weight in corners]
            high = [((*index, right), weight * part) for index, weight in corners if part]
            corners = low + high
        return math.exp(sum(weight * self.logs[index] for index, weight in corners))
