"""Small random problems, and their optimum by trying everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from autopar.solve.price import objective_seconds, violations
from autopar.solve.problem import Candidate, Configuration, Option, Problem


def option(rng: random.Random, key: str) -> Option:
    forward = rng.uniform(0.5, 4.0)
    return Option(
        key=key, tp_option=0, zero=rng.choice([0, 2, 3]), recompute="none",
        forward_seconds=forward, backward_seconds=forward * rng.uniform(1.5, 3.0),
        step_seconds=rng.uniform(0.0, 6.0), state_bytes=rng.randint(1, 60),
        activation_bytes=rng.randint(1, 30), transient_bytes=rng.choice([0, 3, 9, 20]),
    )  # fmt: skip


def problem(rng: random.Random, layers: int, classes: int, most: int = 4) -> Problem:
    pp = rng.choice([p for p in (1, 2, 3, 4) if p <= layers])
    configuration = Configuration(
        pp=pp, dp=rng.choice([1, 2]), tp=1, microbatch_size=1,
        num_microbatches=rng.choice([1, 2, 4, 8]), schedule=rng.choice(["gpipe", "1f1b"]),
    )  # fmt: skip
    menus = tuple(
        tuple(option(rng, f"k{k % 3}") for k in range(rng.randint(2, most))) for _ in range(classes)
    )
    linked = ((0, layers - 1),) if layers > 1 and rng.random() < 0.4 else ()
    return Problem(
        configuration, tuple(rng.randrange(classes) for _ in range(layers)), menus,
        memory_limit_bytes=rng.randint(60, 400), p2p_seconds=rng.choice([0.0, 0.3]),
        linked=linked, baseline_bytes=rng.choice([0, 7]),
    )  # fmt: skip


def legal_plans(problem: Problem) -> Iterator[tuple[tuple[int, ...], tuple[Option, ...]]]:
    pp, layers = problem.configuration.pp, len(problem.layers)
    for rest in itertools.combinations(range(1, layers), pp - 1):
        for options in itertools.product(*(problem.menus[c] for c in problem.layers)):
            if not violations(problem, (0, *rest), options):
                yield (0, *rest), options


def optimum(problems: list[Problem]) -> float:
    """The least objective over all of them; infinite if none has a legal plan."""
    return min(
        (objective_seconds(p, *plan) for p in problems for plan in legal_plans(p)),
        default=float("inf"),
    )


def candidates(problems: list[Problem], bounds: list[float] | None = None) -> list[Candidate]:
    bounds = bounds or [0.0] * len(problems)
    return [
        Candidate(p.configuration, bound, lambda p=p: p)
        for p, bound in zip(problems, bounds, strict=True)
    ]
