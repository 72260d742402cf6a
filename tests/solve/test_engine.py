from __future__ import annotations

import pytest

from autopar.errors import UsageError
from autopar.solve.engine import solver_name


def test_solvers_have_names_and_others_are_refused() -> None:
    assert (solver_name("highs"), solver_name("cbc")) == ("HiGHS", "CBC")
    with pytest.raises(UsageError, match="highs or cbc"):
        solver_name("gurobi")
