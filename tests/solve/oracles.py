"""Two further ways to the optimum, neither of which shares anything with the search.

``tried`` evaluates every assignment of a small problem with numpy. ``counted`` is an integer
program for larger ones: which interval of the order a rank takes, and how many layers of each class
use each option in each of its stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pulp

from autopar.solve.problem import Problem


def tried(problem: Problem) -> float:
    """The least objective over all boundaries and options; infinite if no plan is legal."""
    menus = [problem.menus[c] for c in problem.layers]
    choices = np.array(list(itertools.product(*(range(len(menu)) for menu in menus))))
    for i, j in problem.linked:
        keys = np.array([[a.key == b.key for b in menus[j]] for a in menus[i]])
        choices = choices[keys[choices[:, i], choices[:, j]]]
    if not len(choices):
        return float("inf")
    bounds = _all_boundaries(problem)
    return min((_least(problem, choices, b) for b in bounds), default=float("inf"))


def _all_boundaries(problem: Problem) -> Iterator[tuple[int, ...]]:
    stages, layers = problem.configuration.stages, len(problem.layers)
    for rest in itertools.combinations(range(1, layers), stages - 1):
        starts = (0, *rest)
        free = not problem.cuts or all(b in c for b, c in zip(starts, problem.cuts, strict=True))
        if free and problem.fold.is_cut_by(starts) and _all_learn(problem, starts):
            yield starts


def _all_learn(problem: Problem, starts: Sequence[int]) -> bool:
    """Whether every rank of a pipeline has a layer with parameters."""
    pp, ends = problem.configuration.pp, [*starts[1:], len(problem.layers)]
    learns = [False] * pp
    for s, (begin, end) in enumerate(zip(starts, ends, strict=True)):
        learns[s % pp] |= any(c not in problem.idle for c in problem.layers[begin:end])
    return pp == 1 or all(learns)


def _least(problem: Problem, choices: Any, starts: tuple[int, ...]) -> float:
    """The best of all ``choices`` (plans, layers) for stages that begin at ``starts``."""
    c, plans = problem.configuration, len(choices)
    work, lead, last = (np.zeros((c.pp, plans)) for _ in range(3))
    each = [problem.on(rank) for rank in range(c.pp)]
    held = np.array([[float(own.baseline_bytes)] * plans for own in each])
    transient = np.zeros((c.pp, plans))
    for s, (begin, end) in enumerate(itertools.pairwise((*starts, len(problem.layers)))):
        rank, depth = s % c.pp, c.depth(s)
        menus = [each[rank].menus[k] for k in problem.layers]
        transfer = transfers(problem, starts, s)
        work[rank] += transfer
        lead[rank] += transfer / c.virtual_stages
        for i in range(begin, end):
            table = np.array([
                (o.microbatch_seconds, c.crossing_seconds(o) / c.virtual_stages, o.step_seconds,
                 o.held_bytes(depth), o.transient_bytes) for o in menus[i]
            ])[choices[:, i]].T  # fmt: skip
            work[rank] += table[0]
            lead[rank] += table[1]
            last[rank] += table[2]
            held[rank] += table[3]
            transient[rank] = np.maximum(transient[rank], table[4])
    total = lead.sum(0) + (c.num_microbatches * work - lead).max(0) + last.max(0)
    fits = ((held + transient) <= [[own.memory_limit_bytes] for own in each]).all(0)
    return float(total[fits].min(initial=np.inf))


def transfers(problem: Problem, starts: Sequence[int], stage: int) -> float:
    """Seconds in which a stage sends to its neighbours, those of another kind by another link."""
    pp, found = problem.configuration.pp, 0.0
    for other in {stage - 1, stage + 1} & set(range(problem.configuration.stages)):
        kinds = {problem.kind(s % pp) for s in (stage, other)}
        cuts = (problem if len(kinds) > 1 else problem.on(stage % pp)).cut_seconds
        found += cuts[starts[max(stage, other)]] if cuts else 0.0
    return found


def counted(problem: Problem) -> float:
    """As ``tried``, without cuts. Linked layers must be the only ones of their classes."""
    if not problem.linked:
        return _count(problem)
    ((i, j),) = problem.linked
    ends = problem.layers[i], problem.layers[j]
    assert all(problem.layers.count(c) == 1 for c in ends)
    keys = {o.key for o in problem.menus[ends[0]]} & {o.key for o in problem.menus[ends[1]]}
    return min((_count(_only(problem, ends, key)) for key in keys), default=float("inf"))


def _only(problem: Problem, classes: tuple[int, ...], key: str) -> Problem:
    menus = [
        tuple(o for o in menu if c not in classes or o.key == key)
        for c, menu in enumerate(problem.menus)
    ]
    return replace(problem, menus=tuple(menus), linked=())


def _count(problem: Problem) -> float:
    model = pulp.LpProblem("counting", pulp.LpMinimize)
    c, stage = problem.configuration, _stages(problem)
    lead: list[Any] = []
    work, last = [[] for _ in range(c.pp)], [[] for _ in range(c.pp)]
    held: list[list[Any]] = [[] for _ in range(c.pp)]
    most = [pulp.LpVariable(f"most_{p}", lowBound=0) for p in range(c.pp)]
    takes = [_intervals(problem, p) for p in range(c.pp)]
    _join(model, problem, takes)
    order = [problem.layers[i] for i in problem.fold.layers]
    for s in range(c.stages):
        rank, moved = s % c.pp, _moved(problem, takes[s % c.pp], s)
        work[rank].append((c.num_microbatches - 1 / c.virtual_stages) * moved)
        lead.append(moved / c.virtual_stages)
        for k in range(len(problem.menus)):
            uses = []
            for number, option in enumerate(problem.menus[k]):
                n = pulp.LpVariable(f"n_{s}_{k}_{number}", 0, len(problem.layers), "Integer")
                used = pulp.LpVariable(f"u_{s}_{k}_{number}", cat="Binary")
                model += n <= len(problem.layers) * used
                model += most[rank] >= option.transient_bytes * used
                crossing = c.crossing_seconds(option) / c.virtual_stages
                lead.append(crossing * n)
                work[rank].append((c.num_microbatches * option.microbatch_seconds - crossing) * n)
                last[rank].append(option.step_seconds * n)
                held[rank].append(option.held_bytes(c.depth(s)) * n)
                uses.append(n)
            mine = [
                own == k and chunk == s // c.pp for own, chunk in zip(order, stage, strict=True)
            ]
            counts = [(x, sum(mine[i:j])) for (i, j), x in takes[rank].items()]
            model += pulp.lpSum(uses) == pulp.LpAffineExpression(counts)
    slowest, finish = (pulp.LpVariable(name, lowBound=0) for name in ("slowest", "finish"))
    for rank in range(c.pp):
        model += slowest >= pulp.lpSum(work[rank])
        model += finish >= pulp.lpSum(last[rank])
        room = problem.memory_limit_bytes - problem.baseline_bytes
        model += pulp.lpSum(held[rank]) + most[rank] <= room
    model.setObjective(pulp.lpSum(lead) + slowest + finish)
    model.solve(pulp.HiGHS(msg=False, gapRel=1e-7, mip_feasibility_tolerance=1e-9))
    solved = pulp.LpStatus[model.status] == "Optimal"
    return float(pulp.value(model.objective)) if solved else float("inf")


def _moved(problem: Problem, take: dict[tuple[int, int], Any], stage: int) -> Any:
    """Transfers of a stage by the interval that its rank takes, on devices of one kind."""
    turns, chunk = _stages(problem), stage // problem.configuration.pp
    cuts = (*problem.cut_seconds, 0.0)  # no rank follows one that takes the last layer
    before = sum(turn < chunk for turn in turns)

    def cut(place: int, inside: bool) -> float:
        return cuts[before + turns[:place].count(chunk)] if inside else 0.0

    last = problem.configuration.stages - 1
    return pulp.lpSum((cut(i, stage > 0) + cut(j, stage < last)) * x for (i, j), x in take.items())


def _stages(problem: Problem) -> tuple[int, ...]:
    """Which of a rank's stages each place of the order belongs to."""
    return problem.turns or (0,) * len(problem.layers)


def _intervals(problem: Problem, rank: int) -> dict[tuple[int, int], Any]:
    """A variable for each interval that a rank may take, with a layer for each of its stages."""
    layers, ranks = len(problem.layers), problem.configuration.pp
    stage, number = _stages(problem), problem.configuration.virtual_stages
    learns = [problem.layers[i] not in problem.idle for i in problem.fold.layers]
    return {
        (i, j): pulp.LpVariable(f"x_{rank}_{i}_{j}", cat="Binary")
        for i in range(layers)
        for j in range(i + 1, layers + 1)
        if (i == 0) == (rank == 0) and (j == layers) == (rank == ranks - 1)
        and len(set(stage[i:j])) == number and (ranks == 1 or any(learns[i:j]))
    }  # fmt: skip


def _join(model: Any, problem: Problem, takes: list[dict[tuple[int, int], Any]]) -> None:
    """Each rank takes one interval, which begins where the one before it ends."""
    for take in takes:
        model += pulp.lpSum(take.values()) == 1
    for before, after in itertools.pairwise(takes):
        for cut in range(1, len(problem.layers)):
            model += pulp.lpSum(x for (_, j), x in before.items() if j == cut) == pulp.lpSum(
                x for (i, _), x in after.items() if i == cut
            )
