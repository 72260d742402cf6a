from __future__ import annotations

from typing import Any

from autopar.errors import InfeasiblePlanError, UsageError
from autopar.solve.baselines import RECIPES, Machines, combined, run_baselines
from autopar.solve.problem import Configuration, Option, Problem, Solution

OPTION = Option("k", 0, 0, "none", 1.0, 2.0, 0.5, 100, 10, 5)


def _solution(pins: dict[str, Any]) -> Solution:
    configuration = Configuration(pins["pp"], pins["dp"], pins["tp"], 1, 8, "1f1b")
    problem = Problem(configuration, (0,) * 32, ((OPTION,),), 10**6)
    boundaries = tuple(range(pins["pp"]))
    return Solution(problem, boundaries, (OPTION,) * 32, 3.0, 3.0, 0.0, "optimal", 0.0, {}, "HiGHS")


def test_each_recipe_runs_where_everything_fits() -> None:
    asked = []

    def solve_pinned(pins: dict[str, Any], even: bool) -> Solution:
        asked.append(pins)
        return _solution(pins)

    found = {b.name: b for b in run_baselines(solve_pinned, 16, 8)}
    names = [r.name for r in RECIPES]
    assert list(found) == [*names[:3], "HSDP", *names[3:]]
    assert all(b.step_seconds == 3.0 and b.memory_bytes for b in found.values())
    assert "dp=16 tp=1" in found["DDP"].description
    assert "dp=2 tp=8" in found["TP in the node"].description
    assert "pp=16 dp=1" in found["GPipe"].description
    assert all(p["pp"] * p["dp"] * p["tp"] == 16 for p in asked)
    assert len({tuple(sorted(p.items())) for p in asked}) == len(asked)
    assert "pp=2 dp=8" in found["Even pipeline"].description, "a stage per node"


def test_the_megatron_rule_grows_tp_then_pp_then_recomputes() -> None:
    def solve_pinned(pins: dict[str, Any], even: bool) -> Solution:
        if pins["tp"] * pins["pp"] < 16 or pins["recompute"] == "none":
            raise InfeasiblePlanError("too big\nby far")
        return _solution(pins)

    found = {b.name: b for b in run_baselines(solve_pinned, 32, 8)}
    assert "pp=2 dp=2 tp=8" in found["Megatron rule"].description
    assert found["DDP"].reason == "too big"
    assert found["DDP"].step_seconds is None
    tried = [(p["tp"], p["pp"]) for p in RECIPES[4].attempts(Machines(32, 8))]
    assert tried[:6] == [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (4, 2)]


def test_one_device_has_no_pipeline() -> None:
    found = {b.name: b for b in run_baselines(lambda pins, _: _solution(pins), 1, 8)}
    assert found["GPipe"].reason == "needs more than one device"
    assert found["DDP"].step_seconds == 3.0


def test_illegal_pins_are_a_reason_too() -> None:
    def solve_pinned(pins: dict[str, Any], even: bool) -> Solution:
        raise UsageError(f"pin tp={pins['tp']}", expected="1")

    assert {b.reason for b in run_baselines(solve_pinned, 4, 8)} == {"pin tp=1", "pin tp=2"}


def test_a_node_that_does_not_divide_the_world() -> None:
    assert Machines(12, 8).node == 6
    assert Machines(4, 8).node == 4


def test_tp_that_does_not_divide_the_heads_gives_way_to_the_next() -> None:
    def solve_pinned(pins: dict[str, Any], even: bool) -> Solution:
        if 12 % pins["tp"]:
            raise UsageError("pin tp=8")
        return _solution(pins)

    found = {b.name: b for b in run_baselines(solve_pinned, 16, 8)}
    assert "dp=4 tp=4" in found["TP in the node"].description


def test_recipes_are_solved_under_the_pins_that_they_can_honour() -> None:
    def solve_pinned(pins: dict[str, Any], even: bool) -> Solution:
        if "microbatch_size" in pins and pins["zero"] == 3:
            raise UsageError("too many")
        return _solution(pins)

    given = {"recompute": {"h.*": "none"}, "microbatch_size": 2}
    found = {b.name: b for b in run_baselines(solve_pinned, 16, 8, given)}
    assert found["DDP"].reason == ""
    assert found["GPipe"].reason == "breaks recompute@h.*=none"
    assert found["FSDP"].reason == "breaks pins under which it cannot run"
    assert found["FSDP"].step_seconds == 3.0


def test_pins_and_recipes_together() -> None:
    recipe = {"tp": 2, "zero": 3}
    assert combined({"stages": [1, 1]}, recipe) == {"stages": [1, 1], "tp": 2, "zero": 3}
    assert combined({"zero": {"h.0": 3}}, recipe) == recipe
    assert combined({"zero": {"h.0": 2}}, recipe) is None
