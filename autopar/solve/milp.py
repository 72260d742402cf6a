"""The one MILP over everything that may still win: configuration, stages and patterns.

For each chain k (a configuration, and a key for its linked layers) the columns are arcs
of a path over layer positions: column x on stage s takes the interval [i, j) with one pattern of
lead ``a``, pace ``b`` (together m times its seconds) and ``g`` seconds per step. Everything is
divided by ``scale``, an objective value, so that the solver's absolute tolerances become relative
ones; bytes are divided by the room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pulp

from autopar.solve.chain import Chain
from autopar.solve.engine import Outcome, Watch, run_solver
from autopar.solve.patterns import Pattern

TOLERANCE = 1e-6  # of the solvers, per row


@dataclass(frozen=True)
class Column:
    """A pattern for the layers [start, end) on a stage; seconds and lead include transfers."""

    stage: int
    start: int
    end: int
    pattern: Pattern
    seconds: float
    lead_seconds: float

    @property
    def step_seconds(self) -> float:
        """Paid once per optimizer step."""
        return self.pattern.step_seconds


@dataclass(frozen=True)
class Choices:
    """A chain with its columns, and lower bounds on its slowest pace and slowest step."""

    chain: Chain
    columns: tuple[Column, ...]
    slowest_pace: float
    slowest_step: float


@dataclass(frozen=True)
class Answer:
    """``chosen`` is (index of the chain, its columns by stage), None if nothing was found."""

    outcome: Outcome
    chosen: tuple[int, tuple[Column, ...]] | None
    bound: float | None
    binaries: int


@dataclass
class _Model:
    """The MILP while it is built; one entry per chain in every list."""

    choices: Sequence[Choices]
    scale: float
    problem: Any = field(default_factory=lambda: pulp.LpProblem("model", pulp.LpMinimize))
    select: list[Any] = field(default_factory=list)
    take: list[list[Any]] = field(default_factory=list)
    repeat: list[Any] = field(default_factory=list)
    finish: list[Any] = field(default_factory=list)


def solve_milp(
    choices: Sequence[Choices], scale: float, *, solver: str, gap: float, time_limit: float,
    watch: Watch | None = None,
) -> Answer:  # fmt: skip
    """Minimises over all chains at once; ``scale`` is the objective of a known plan in seconds."""
    model = _Model(choices, scale)
    _add_variables(model)
    _choose_one(model)
    for k in range(len(choices)):
        _cover(model, k)
        _repeat_slowest(model, k)
        _finish_slowest(model, k)
        _fit(model, k)
    _minimise(model)
    told = (lambda bound: watch(bound * scale)) if watch else None
    outcome = run_solver(
        model.problem, solver=solver, gap=gap, time_limit=max(time_limit, 0.1), watch=told
    )
    bound = None if outcome.bound is None else outcome.bound * scale
    binaries = len(choices) + sum(len(c.columns) for c in choices)
    return Answer(outcome, _read(model, outcome), bound, binaries)


def _add_variables(model: _Model) -> None:
    """z[k], x[k, column] binary; T[k], G[k] >= 0."""
    for k, choice in enumerate(model.choices):
        model.select.append(pulp.LpVariable(f"z_{k}", cat="Binary"))
        columns = range(len(choice.columns))
        model.take.append([pulp.LpVariable(f"x_{k}_{c}", cat="Binary") for c in columns])
        model.repeat.append(pulp.LpVariable(f"T_{k}", lowBound=0))
        model.finish.append(pulp.LpVariable(f"G_{k}", lowBound=0))


def _choose_one(model: _Model) -> None:
    """sum_k z[k] = 1."""
    model.problem += pulp.lpSum(model.select) == 1


def _cover(model: _Model, k: int) -> None:
    """A path: z[k] leaves (stage 0, layer 0); what enters (p, i) leaves it; z[k] enters the end."""
    flow: dict[tuple[int, int], list[tuple[Any, int]]] = defaultdict(list)
    choice = model.choices[k]
    for column, x in zip(choice.columns, model.take[k], strict=True):
        flow[column.stage, column.start].append((x, -1))
        flow[column.stage + 1, column.end].append((x, 1))
    flow[0, 0].append((model.select[k], 1))
    flow[choice.chain.stages, len(choice.chain.layers)].append((model.select[k], -1))
    for terms in flow.values():
        model.problem += pulp.LpAffineExpression(terms) == 0


def _repeat_slowest(model: _Model, k: int) -> None:
    """T[k] >= sum_x b * x on every rank, and at least its known bound."""
    choice, m = model.choices[k], model.choices[k].chain.num_microbatches
    paces = [m * c.seconds - c.lead_seconds for c in choice.columns]
    for terms in _by_rank(model, k, paces, model.scale):
        model.problem += model.repeat[k] >= pulp.LpAffineExpression(terms)
    model.problem += model.repeat[k] >= choice.slowest_pace / model.scale * model.select[k]


def _finish_slowest(model: _Model, k: int) -> None:
    """G[k] >= sum_x g * x on every rank, and at least its known bound."""
    choice = model.choices[k]
    for terms in _by_rank(model, k, [c.step_seconds for c in choice.columns], model.scale):
        model.problem += model.finish[k] >= pulp.LpAffineExpression(terms)
    model.problem += model.finish[k] >= choice.slowest_step / model.scale * model.select[k]


def _fit(model: _Model, k: int) -> None:
    """Where stages share a rank: sum_x held * x + W <= room, with W >= transient of each stage.

    Patterns that are alone on their rank fit as they are. The solver keeps rows to a millionth:
    that much of the room is left, where it is more than a byte.
    """
    choice = model.choices[k]
    if not choice.chain.shares_rank:
        return
    room, pp = float(max(choice.chain.room_bytes, 1)), choice.chain.pp
    full = 1 - (2 * TOLERANCE if room > 1 / TOLERANCE else 0.0)
    held = _by_rank(model, k, [c.pattern.held_bytes for c in choice.columns], room)
    for rank, terms in enumerate(held):
        over = pulp.LpVariable(f"W_{k}_{rank}", lowBound=0)
        model.problem += pulp.LpAffineExpression([*terms, (over, 1.0)]) <= full
        for stage in range(rank, choice.chain.stages, pp):
            pairs = zip(choice.columns, model.take[k], strict=True)
            most = [(x, c.pattern.transient_bytes / room) for c, x in pairs if c.stage == stage]
            model.problem += over >= pulp.LpAffineExpression(most)


def _minimise(model: _Model) -> None:
    """sum_k (sum_x a * x + T[k] + G[k])."""
    terms = [(v, 1.0) for v in (*model.repeat, *model.finish)]
    for choice, take in zip(model.choices, model.take, strict=True):
        pairs = zip(choice.columns, take, strict=True)
        terms += [(x, c.lead_seconds / model.scale) for c, x in pairs]
    model.problem += pulp.LpAffineExpression(terms)


def _by_rank(
    model: _Model, k: int, figures: list[float], scale: float
) -> list[list[tuple[Any, float]]]:
    """(variable, scaled figure) of the columns of each rank."""
    ranks: list[list[tuple[Any, float]]] = [[] for _ in range(model.choices[k].chain.pp)]
    for column, x, figure in zip(model.choices[k].columns, model.take[k], figures, strict=True):
        ranks[column.stage % len(ranks)].append((x, figure / scale))
    return ranks


def _read(model: _Model, outcome: Outcome) -> tuple[int, tuple[Column, ...]] | None:
    """The chosen columns in stage order; None if the variables hold no complete plan."""
    if outcome.status != "optimal":
        return None
    for k, (choice, take) in enumerate(zip(model.choices, model.take, strict=True)):
        chosen = [c for c, x in zip(choice.columns, take, strict=True) if (x.value() or 0) > 0.5]
        ends = [0, *(c.end for c in chosen)]
        joined = all(c.start == end for c, end in zip(chosen, ends, strict=False))
        if len(chosen) == choice.chain.stages and joined and ends[-1] == len(choice.chain.layers):
            return k, tuple(chosen)
    return None
