"""One door to the solvers: HiGHS, or CBC through PuLP where HiGHS is not installed."""

from __future__ import annotations

from typing import Any

import pulp

from autopar.errors import AutoparError, UsageError

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
