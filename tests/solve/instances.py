"""Small random problems, and their optimum by trying everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from autopar.solve.fold import turns_through
from autopar.solve.price import objective_seconds, stages, violations
from autopar.solve.problem import Candidate, Configuration, Option, Problem


def option(rng: random.Random, key: str) -> Option:
    forward = rng.uniform(0.5, 4.0)
    return Option(
        key=key, tp_option=rng.choice([0, 0, 1]), zero=rng.choice([0, 2, 3]), recompute="none",
        forward_seconds=forward, backward_seconds=forward * rng.uniform(1.5, 3.0),
        step_seconds=rng.uniform(0.0, 6.0), state_bytes=rng.randint(1, 60),
        activation_bytes=rng.randint(1, 30), transient_bytes=rng.choice([0, 3, 9, 20]),
        weight_seconds=forward * rng.uniform(0.2, 1.4), waiting_bytes=rng.randint(0, 9),
    )  # fmt: skip


def problem(rng: random.Random, layers: int, classes: int, most: int = 4) -> Problem:
    configuration = _configuration(rng, layers)
    menus = tuple(
        tuple(option(rng, f"k{k % 3}") for k in range(rng.randint(2, most))) for _ in range(classes)
    )
    linked = ((0, layers - 1),) if layers > 1 and rng.random() < 0.4 else ()
    count = configuration.stages
    starts = (0, *sorted(rng.sample(range(1, layers), count - 1)))
    return Problem(
        configuration, tuple(rng.randrange(classes) for _ in range(layers)), menus,
        memory_limit_bytes=rng.randint(60, 400), cut_seconds=cut_seconds(rng, layers),
        linked=linked, baseline_bytes=rng.choice([0, 7]),
        cuts=_cuts(rng, starts, layers),
        turns=turns_through(starts, (1,) * layers, configuration.pp)
        if count > configuration.pp else (),
        idle=frozenset(c for c, menu in enumerate(menus) if menu[0].state_bytes % 5 == 0),
    )  # fmt: skip


def cut_seconds(rng: random.Random, layers: int) -> tuple[float, ...]:
    """Boundaries that cost nothing, the same everywhere, little or much, or anything."""
    offered = rng.choice([[0.0], [0.3], [0.1, 2.0], [0.0, 0.4, 0.9, 1.7, 3.0]])
    return tuple(rng.choice(offered) for _ in range(layers))


def on_two_kinds(rng: random.Random, given: Problem) -> Problem:
    """The problem where the first ranks are on devices of another kind than the others."""
    pp, rate = given.configuration.pp, rng.choice([0.3, 0.7, 1.5, 4.0])
    layers = len(given.layers)

    def other(own: Option) -> Option:
        drawn, many = option(rng, own.key), rate * rng.uniform(0.8, 1.2)
        return replace(
            drawn, tp_option=own.tp_option, zero=own.zero,
            forward_seconds=own.forward_seconds * many,
            backward_seconds=own.backward_seconds * many,
            weight_seconds=own.weight_seconds * many,
        )  # fmt: skip

    second = replace(
        given, menus=tuple(tuple(map(other, menu)) for menu in given.menus), device="second",
        memory_limit_bytes=rng.randint(60, 400), cut_seconds=cut_seconds(rng, layers),
        baseline_bytes=rng.choice([0, 3]),
    )  # fmt: skip
    first = rng.randint(1, pp - 1)
    return replace(
        given, cut_seconds=tuple(rng.uniform(0.5, 1.5) for _ in range(layers)),
        kinds=(replace(given, device="first"), second),
        rank_kinds=(0,) * first + (1,) * (pp - first),
    )  # fmt: skip


def _configuration(rng: random.Random, layers: int) -> Configuration:
    pp = rng.choice([p for p in (1, 2, 3, 4) if p <= layers])
    v = rng.choice([v for v in (1, 1, 2, 3) if v == 1 or (pp > 1 and pp * v <= layers)])
    single = ["gpipe", "1f1b", "zero_bubble"] if pp > 1 else ["gpipe", "1f1b"]
    schedule = rng.choice(single if v == 1 else ["interleaved_1f1b", "zero_bubble"])
    m = rng.choice([1, 2, 4, 8])
    return Configuration(
        pp=pp, dp=rng.choice([1, 2]), tp=1, microbatch_size=1,
        num_microbatches=m * (1 if schedule in ("gpipe", "1f1b") else pp), schedule=schedule,
        virtual_stages=v,
    )  # fmt: skip


def _cuts(rng: random.Random, starts: tuple[int, ...], layers: int) -> tuple[tuple[int, ...], ...]:
    """Now and then, where each stage may begin: near these layers."""
    if rng.random() < 0.6:
        return ()
    near = ({s, max(1, s - rng.randint(0, 1)), min(layers - 1, s + 1)} for s in starts[1:])
    return ((0,), *(tuple(sorted(places)) for places in near))


def legal_plans(problem: Problem) -> Iterator[tuple[tuple[int, ...], tuple[Option, ...]]]:
    count, layers = problem.configuration.stages, len(problem.layers)
    for rest in itertools.combinations(range(1, layers), count - 1):
        menus = [
            problem.on(s % problem.configuration.pp).menus[problem.layers[i]]
            for s, layers in enumerate(stages(problem, (0, *rest)))
            for i in layers
        ]
        for options in itertools.product(*menus):
            if not violations(problem, (0, *rest), options):
                yield (0, *rest), options


def intervals(problem: Problem, boundaries: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where each rank's layers begin and end in the order of ``problem.fold``."""
    pp, places = problem.configuration.pp, problem.fold.layers.tolist()
    held = [list(layers) for layers in stages(problem, boundaries)]
    ranks = [sorted(places.index(i) for own in held[p::pp] for i in own) for p in range(pp)]
    return [(own[0], own[-1] + 1) for own in ranks]


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
