"""Mixed integer programs as arrays, each solved for several objectives and bounds.

PuLP's objects take longer to make than most op-level problems take to solve, so those go to HiGHS
as they are, first without integrality: most of them have whole solutions then. To start an
objective where the last one ended was tried: presolving anew is a quarter faster, and what is
found does not depend on what was asked before. CBC gets the problems from PuLP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pulp
from numpy.typing import NDArray

from autopar.solve.engine import available

Floats = NDArray[np.float64]
WHOLE = 1e-6  # what a whole number may be off by, as in HiGHS
# Costs are scaled so that the largest is this: the solvers' tolerances are absolute.
SCALE = 1e4
ONE = 0  # the column that is 1


@dataclass
class Program:
    """Columns with bounds and kinds, and rows sparse row by row; column ``ONE`` is fixed to 1.

    Row k has ``index`` and ``factor`` from ``start[k]`` up to ``start[k + 1]``, and lies between
    ``least[k]`` and ``most[k]``.
    """

    lower: list[float] = field(default_factory=lambda: [1.0])
    upper: list[float] = field(default_factory=lambda: [1.0])
    whole: list[bool] = field(default_factory=lambda: [False])
    start: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    factor: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def column(self, *, whole: bool = False) -> int:
        """A new column between 0 and 1; returns its number."""
        self.lower.append(0.0)
        self.upper.append(1.0)
        self.whole.append(whole)
        return len(self.whole) - 1

    def row(
        self, plus: Iterable[int], minus: Iterable[int] = (), least: float = -math.inf,
        most: float = math.inf,
    ) -> None:  # fmt: skip
        """``least <= sum(plus) - sum(minus) <= most``; no column may stand on both sides."""
        positive, negative = list(plus), list(minus)
        self.index += positive + negative
        self.factor += [1.0] * len(positive) + [-1.0] * len(negative)
        self.start.append(len(self.index))
        self.least.append(least)
        self.most.append(most)

    def append(self, other: Program) -> int:
        """Adds the columns and rows of ``other``; returns what their column numbers grow by.

        Its column ``ONE`` is one more that is fixed to 1.
        """
        shift, size = len(self.whole), len(self.index)
        self.lower += other.lower
        self.upper += other.upper
        self.whole += other.whole
        self.index += [i + shift for i in other.index]
        self.factor += other.factor
        self.start += [s + size for s in other.start[1:]]
        self.least += other.least
        self.most += other.most
        return shift


class Solver(Protocol):
    """A program that is solved again and again."""

    def minimise(self, cost: Floats, fixed: dict[int, float]) -> Floats | None:
        """Values of the columns at the least ``cost`` [columns], None if there are none.

        Columns that are ``fixed`` have these values, for this time alone.
        """


def solver_of(program: Program, *, solver: str, gap: float, time_limit: float) -> Solver:
    """``program`` in HiGHS or CBC, to be minimised to a relative ``gap``.

    ``time_limit`` are the seconds of each run. Raises as ``engine.available``.
    """
    kind = available(solver)
    return (_Highs if kind is pulp.HiGHS else _Pulp)(program, gap, time_limit)


class _Highs:
    def __init__(self, program: Program, gap: float, time_limit: float) -> None:
        import highspy  # is missing where CBC stands in for it

        self._kinds = highspy.HighsVarType
        self._optimal = highspy.HighsModelStatus.kOptimal
        self._stopped = (self._optimal, highspy.HighsModelStatus.kTimeLimit)
        make: Any = highspy.Highs
        self._program, self._engine = program, make()
        self._seconds = time_limit
        options = {"output_flag": False, "threads": 1, "mip_rel_gap": gap}
        for name, value in options.items():
            self._engine.setOptionValue(name, value)
        self._engine.passModel(_linear(program, highspy))
        self._columns = np.arange(len(program.whole), dtype=np.int32)
        self._whole = np.flatnonzero(program.whole).astype(np.int32)

    def minimise(self, cost: Floats, fixed: dict[int, float]) -> Floats | None:
        lower, upper = _bounds(self._program, fixed)
        count, engine = len(self._columns), self._engine
        engine.clearSolver()
        engine.changeColsCost(count, self._columns, _scaled(cost))
        engine.changeColsBounds(count, self._columns, lower, upper)
        values = self._run((self._optimal,))
        if values is None or (np.abs(values - values.round())[self._whole] <= WHOLE).all():
            return values
        self._be(self._kinds.kInteger)
        values = self._run(self._stopped)
        self._be(self._kinds.kContinuous)
        return values

    def _be(self, kind: Any) -> None:
        kinds = np.full(len(self._whole), int(kind), dtype=np.uint8)
        self._engine.changeColsIntegrality(len(self._whole), self._whole, kinds)

    def _run(self, good: Sequence[Any]) -> Floats | None:
        # Its clock runs on from one run to the next, and the limit is compared with it.
        self._engine.setOptionValue("time_limit", self._engine.getRunTime() + self._seconds)
        self._engine.run()
        if self._engine.getModelStatus() not in good:
            return None
        if not math.isfinite(self._engine.getObjectiveValue()):
            return None
        return np.array(self._engine.getSolution().col_value)


def _linear(program: Program, highspy: Any) -> Any:
    model, columns, rows = highspy.HighsLp(), len(program.whole), len(program.least)
    model.num_col_, model.num_row_ = columns, rows
    model.col_cost_ = np.zeros(columns)
    model.col_lower_, model.col_upper_ = np.array(program.lower), np.array(program.upper)
    model.row_lower_, model.row_upper_ = np.array(program.least), np.array(program.most)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.num_col_, model.a_matrix_.num_row_ = columns, rows
    model.a_matrix_.start_ = np.array(program.start, dtype=np.int32)
    model.a_matrix_.index_ = np.array(program.index, dtype=np.int32)
    model.a_matrix_.value_ = np.array(program.factor, dtype=np.float64)
    return model


class _Pulp:
    def __init__(self, program: Program, gap: float, time_limit: float) -> None:
        self._program, self._limits = program, (gap, time_limit)

    def minimise(self, cost: Floats, fixed: dict[int, float]) -> Floats | None:
        given, (lower, upper) = self._program, _bounds(self._program, fixed)
        problem = pulp.LpProblem("program", pulp.LpMinimize)
        columns = [
            pulp.LpVariable(f"x{k}", a, b, pulp.LpInteger if whole else pulp.LpContinuous)
            for k, (a, b, whole) in enumerate(zip(lower, upper, given.whole, strict=True))
        ]
        problem += pulp.LpAffineExpression(list(zip(columns, _scaled(cost).tolist(), strict=True)))
        for k, (least, most) in enumerate(zip(given.least, given.most, strict=True)):
            span = slice(given.start[k], given.start[k + 1])
            terms = zip(given.index[span], given.factor[span], strict=True)
            row = pulp.LpAffineExpression([(columns[i], factor) for i, factor in terms])
            if math.isfinite(least):
                problem += row >= least
            if math.isfinite(most):
                problem += row <= most
        gap, time_limit = self._limits
        problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=gap, timeLimit=time_limit, threads=1))
        if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return None
        return np.array([column.varValue or 0.0 for column in columns])


def _bounds(program: Program, fixed: dict[int, float]) -> tuple[Floats, Floats]:
    lower, upper = np.array(program.lower), np.array(program.upper)
    columns, values = list(fixed), list(fixed.values())
    lower[columns], upper[columns] = values, values
    return lower, upper


def _scaled(cost: Floats) -> Floats:
    largest = float(np.abs(cost).max(initial=0.0))
    return cost * (SCALE / largest) if largest else cost
