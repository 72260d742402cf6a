from __future__ import annotations

import pytest

from autopar.solve.price import (
    objective_seconds,
    rank_memory_bytes,
    stage_seconds,
    stage_step_seconds,
    violations,
)
from autopar.solve.problem import Configuration, Option, Problem

FAST = Option("a", 0, 0, "none", 1.0, 2.0, 0.5, state_bytes=10, activation_bytes=4,
              transient_bytes=3)  # fmt: skip
LEAN = Option("b", 0, 3, "full", 2.0, 3.0, 0.25, state_bytes=5, activation_bytes=1,
              transient_bytes=6)  # fmt: skip


def _problem(**changes: object) -> Problem:
    values: dict[str, object] = {
        "configuration": Configuration(2, 1, 1, 1, 4, "1f1b"), "layers": (0, 0, 0),
        "menus": ((FAST, LEAN),), "memory_limit_bytes": 60, "cut_seconds": (0.0, 9.0, 0.5),
        "baseline_bytes": 7,
    }  # fmt: skip
    return Problem(**{**values, **changes})  # type: ignore[arg-type]


def test_a_plan_priced_by_hand() -> None:
    options = (FAST, LEAN, FAST)
    assert stage_seconds(_problem(), (0, 2), options) == [3 + 5 + 0.5, 3 + 0.5]
    assert stage_step_seconds(_problem(), (0, 2), options) == [0.75, 0.5]
    # stage 0 holds two micro-batches, stage 1 one
    memory = [7 + 15 + 2 * 5 + 6, 7 + 10 + 4 + 3]
    assert rank_memory_bytes(_problem(), (0, 2), options) == memory
    assert objective_seconds(_problem(), (0, 2), options) == pytest.approx(12 + 3 * 8.5 + 0.75)


def test_transfers_are_borne_by_both_sides() -> None:
    given = _problem(configuration=Configuration(4, 1, 1, 1, 4, "1f1b"), layers=(0,) * 6,
                     cut_seconds=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))  # fmt: skip
    assert [given.transfer_seconds((0, 1, 3, 4), p) for p in range(4)] == [1, 1 + 3, 3 + 4, 4]
    one = _problem(configuration=Configuration(1, 1, 1, 1, 4, "1f1b"))
    assert one.transfer_seconds((0,), 0) == 0


def test_each_rank_pays_the_links_and_the_memory_of_its_kind() -> None:
    fast, slow = (
        _problem(cut_seconds=(1.0,) * 4),
        _problem(cut_seconds=(2.0,) * 4, memory_limit_bytes=20),
    )
    four = Configuration(4, 1, 1, 1, 4, "1f1b")
    given = _problem(
        configuration=four, layers=(0,) * 4, cut_seconds=(5.0,) * 4, kinds=(fast, slow),
        rank_kinds=(0, 0, 1, 1),
    )  # fmt: skip
    assert [given.transfer_seconds((0, 1, 2, 3), p) for p in range(4)] == [1, 6, 7, 2]
    assert violations(given, (0, 1, 2, 3), (FAST,) * 4) == [
        f"rank {p} needs {7 + 10 + depth * 4 + 3} of 20 bytes" for p, depth in ((2, 2), (3, 1))
    ]


def test_every_broken_rule_is_named() -> None:
    legal = (0, 2), (FAST, LEAN, FAST)
    assert violations(_problem(), *legal) == []
    assert "rank 0 needs 38 of 37 bytes" in violations(_problem(memory_limit_bytes=37), *legal)
    assert "differ: a, b" in violations(_problem(linked=((0, 1),)), *legal)[0]
    assert "do not cover" in violations(_problem(), (0, 3), legal[1])[0]
    assert "no option b" in violations(_problem(menus=((FAST,),)), *legal)[0]
    assert "one option per layer" in violations(_problem(), (0,), legal[1])[0]
