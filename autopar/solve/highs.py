"""HiGHS for PuLP problems, handed over as arrays.

PuLP's own door adds columns and rows one by one and sorts the variables three times, which takes
longer than most of our problems take to solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pulp

# Kinds of end of a run (``HighsModelStatus``), and what PuLP calls them. All others are "not
# solved"; those that may have stopped early hold a solution if their objective is finite.
_ENDS = {
    "kOptimal": (pulp.LpStatusOptimal, pulp.LpSolutionOptimal),
    "kInfeasible": (pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible),
    "kUnboundedOrInfeasible": (pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible),
    "kUnbounded": (pulp.LpStatusUnbounded, pulp.LpSolutionUnbounded),
    "kObjectiveBound": (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible),
    "kObjectiveTarget": (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible),
    "kInterrupt": (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible),
    "kTimeLimit": (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible),
    "kIterationLimit": (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible),
}
_NOTHING = (pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound)


@dataclass(frozen=True)
class Rows:
    """The constraints of a problem, sparse row by row.

    ``number`` gives each variable its column; row k has ``index`` and ``value`` from ``start[k]``
    up to ``start[k + 1]``, and lies between ``lower[k]`` and ``upper[k]``.
    """

    number: dict[Any, int]
    start: list[int]
    index: list[int]
    value: list[float]
    lower: list[float]
    upper: list[float]


def _rows_of(problem: Any) -> Rows:
    rows = Rows({}, [0], [], [], [], [])
    constraints = problem.constraints
    # PuLP 3.3 has a mapping there, which in later releases is to be called for a list.
    for constraint in constraints() if callable(constraints) else constraints.values():
        for variable, factor in constraint.items():
            if factor:
                rows.index.append(rows.number.setdefault(variable, len(rows.number)))
                rows.value.append(factor)
        rows.start.append(len(rows.index))
        rows.lower.append(_bound(constraint.getLb(), -np.inf))
        rows.upper.append(_bound(constraint.getUb(), np.inf))
    return rows


def run(problem: Any, configured: Any) -> None:
    """Minimises ``problem`` with a ``configured`` ``pulp.HiGHS``; leaves what PuLP would leave."""
    rows = _rows_of(problem)
    for variable in problem.objective:
        rows.number.setdefault(variable, len(rows.number))
    configured.createAndConfigureSolver(problem)
    problem.solverModel.passModel(_model(problem, rows))
    problem.solverModel.run()
    values = problem.solverModel.getSolution().col_value
    for variable, column in rows.number.items():
        variable.varValue = values[column] if column < len(values) else None
    problem.assignStatus(*_end(problem.solverModel))


def _end(solved: Any) -> tuple[int, int]:
    """PuLP's status of the problem and of its solution."""
    ended: tuple[int, int] = _ENDS.get(solved.getModelStatus().name, _NOTHING)
    early = ended[1] == pulp.LpSolutionIntegerFeasible
    return _NOTHING if early and not np.isfinite(solved.getObjectiveValue()) else ended


def _model(problem: Any, rows: Rows) -> Any:
    import highspy  # is missing where CBC stands in for it

    model, columns = highspy.HighsLp(), list(rows.number)
    model.num_col_, model.num_row_ = len(columns), len(rows.lower)
    model.col_cost_ = np.array([problem.objective.get(v, 0.0) for v in columns], dtype=np.float64)
    model.col_lower_ = np.array([_bound(v.lowBound, -np.inf) for v in columns], dtype=np.float64)
    model.col_upper_ = np.array([_bound(v.upBound, np.inf) for v in columns], dtype=np.float64)
    kinds = highspy.HighsVarType
    model.integrality_ = [
        kinds.kInteger if v.cat == pulp.LpInteger else kinds.kContinuous for v in columns
    ]
    model.row_lower_ = np.array(rows.lower, dtype=np.float64)
    model.row_upper_ = np.array(rows.upper, dtype=np.float64)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.num_col_, model.a_matrix_.num_row_ = len(columns), len(rows.lower)
    model.a_matrix_.start_ = np.array(rows.start, dtype=np.int32)
    model.a_matrix_.index_ = np.array(rows.index, dtype=np.int32)
    model.a_matrix_.value_ = np.array(rows.value, dtype=np.float64)
    return model


def _bound(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given
