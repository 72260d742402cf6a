"""One door to the solvers: HiGHS through PuLP, CBC where HiGHS is not installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pulp

from autopar.errors import AutoparError, UsageError
from autopar.solve.highs import run

STATUS = {
    pulp.LpStatusOptimal: "optimal",
    pulp.LpStatusInfeasible: "infeasible",
    pulp.LpStatusUnbounded: "unbounded",
    pulp.LpStatusNotSolved: "not solved",
    pulp.LpStatusUndefined: "infeasible",
}

Watch = Callable[[float], None]


@dataclass(frozen=True)
class Outcome:
    """Status of a solve; the values stay on the problem's variables.

    ``status`` is "optimal" also for the best solution at the time limit, which ``proven`` tells
    apart. ``bound`` is what no solution undercuts, None where the solver does not say.
    """

    status: str
    objective: float | None
    bound: float | None = None
    proven: bool = True
    interrupted: bool = False


class _Watcher:
    """Called by HiGHS between nodes: passes the bound on, and turns Ctrl-C into a clean stop."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.interrupted = watch, False

    def __call__(self, _kind: Any, _message: str, out: Any, control: Any, _data: Any) -> None:
        try:
            self.watch(float(out.mip_dual_bound))
        except KeyboardInterrupt:
            self.interrupted = True
        control.user_interrupt = self.interrupted


_KINDS = {"highs": (pulp.HiGHS, pulp.PULP_CBC_CMD), "cbc": (pulp.PULP_CBC_CMD, pulp.HiGHS)}
_NAMES = {pulp.HiGHS: "HiGHS", pulp.PULP_CBC_CMD: "CBC"}


def available(solver: str) -> Any:
    """The PuLP solver class called ``solver`` ("highs" or "cbc"), or the other if it is missing.

    Raises:
        UsageError: a name that is neither.
        AutoparError: neither is installed.
    """
    if solver not in _KINDS:
        raise UsageError(f"solver={solver!r}", expected=" or ".join(_KINDS), where="solver",
                         hint="leave it out: HiGHS comes with autopar")  # fmt: skip
    for kind in _KINDS[solver]:
        if kind(msg=False).available():
            return kind
    raise AutoparError("no MILP solver is installed", expected="highspy or CBC",
                       where="this Python environment", hint="pip install highspy")  # fmt: skip


def solver_name(solver: str) -> str:
    """The name, for people, of the solver that ``available`` picks."""
    return _NAMES[available(solver)]


def run_solver(
    problem: Any, *, solver: str = "highs", gap: float = 1e-4, time_limit: float = 60.0,
    watch: Watch | None = None,
) -> Outcome:  # fmt: skip
    """Minimises ``problem`` in place to a relative ``gap`` within ``time_limit`` seconds.

    ``watch`` is told the bound from time to time (HiGHS only).
    """
    kind = available(solver)
    watcher = _Watcher(watch) if watch and kind is pulp.HiGHS else None
    configured = kind(msg=False, gapRel=gap, timeLimit=time_limit, threads=1, **_callback(watcher))
    if kind is pulp.HiGHS:
        run(problem, configured)
    else:
        problem.solve(configured)
    status = STATUS[problem.status]
    return Outcome(
        status=status,
        objective=pulp.value(problem.objective) if status == "optimal" else None,
        bound=_bound(problem, kind, gap),
        proven=problem.sol_status != pulp.LpSolutionIntegerFeasible,
        interrupted=bool(watcher and watcher.interrupted),
    )


def _callback(watcher: _Watcher | None) -> dict[str, Any]:
    if watcher is None:
        return {}
    moments = [pulp.HiGHS.hscb.HighsCallbackType.kCallbackMipInterrupt]
    return {"callbackTuple": (watcher, None), "callbacksToActivate": moments}


def _bound(problem: Any, kind: Any, gap: float) -> float | None:
    """The dual bound: HiGHS reports it, CBC's follows from the gap that it has closed."""
    if STATUS[problem.status] == "infeasible":
        return math.inf
    if kind is pulp.HiGHS:
        bound = problem.solverModel.getInfo().mip_dual_bound
        return bound if math.isfinite(bound) else None
    if problem.sol_status == pulp.LpSolutionOptimal:
        value = float(pulp.value(problem.objective))
        return value - gap * abs(value)
    return None
