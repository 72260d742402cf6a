"""The op-level ILP over one layer of each class, with the states between the layers left open.

It proposes *layouts*: which state each activation has where it goes from one layer to another.
Layers that repeat have equal states in front and behind. Every class is then sharded within each
layout on its own (``intra.py``), so that layers of one layout fit together whatever they choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pulp

from autopar.cluster import Cluster
from autopar.graph import Graph, Value
from autopar.solve.engine import run_solver
from autopar.solve.opmodel import OpModel, Weights, add_terms, build, read
from autopar.strategies.patterns import Classes
from autopar.strategies.sharding import Sharding
from autopar.strategies.states import R, State, divides, divides_batch, shard

# Pattern -> activation at its boundary -> state.
Layout = dict[str, dict[str, State]]
TIME_LIMIT = 5.0
_Place = tuple[str, str]  # pattern, activation


@dataclass
class _Joint:
    """One problem for all classes; ``groups`` are the places that must have equal states."""

    graph: Graph
    classes: Classes
    cluster: Cluster
    tp: int
    batch: int
    problem: Any
    models: dict[str, OpModel] = field(default_factory=dict)


def propose_layouts(
    graph: Graph, classes: Classes, cluster: Cluster, tp: int, batch: int,
    aims: Sequence[Mapping[str, Weights]], *, solver: str = "highs",
) -> list[dict[str, Sharding]]:  # fmt: skip
    """The cheapest sharding of every pattern together, for each aim; each layout once.

    ``aims`` give the prices of each pattern and must agree in ``steps``. ``batch`` is the
    micro-batch size at which time is traded against memory; samples are divided over tp only if
    it is a multiple of tp.
    """
    problem = pulp.LpProblem(f"joint_{tp}", pulp.LpMinimize)
    joint = _Joint(graph, classes, cluster, tp, batch, problem)
    if not _build(joint, next(iter(aims[0].values())).steps):
        return []
    found: dict[str, dict[str, Sharding]] = {}
    for weights in aims:
        shardings = _solve(joint, weights, solver)
        if shardings is not None:
            layout = {name: sharding.boundary for name, sharding in shardings.items()}
            found.setdefault(repr(layout), shardings)
    return list(found.values())


def _build(joint: _Joint, steps: float) -> bool:
    indicators = _indicators(joint)
    for number, (name, pattern) in enumerate(joint.classes.patterns.items()):
        boundary = {n: indicators[name, n] for n in (*pattern.received, *pattern.sent)}
        model = OpModel(
            joint.graph, pattern, joint.cluster, joint.tp, boundary, joint.batch, steps,
            joint.problem, label=f"c{number}_",
        )  # fmt: skip
        joint.models[name] = model
        if not build(model):
            return False
    return True


def _indicators(joint: _Joint) -> dict[_Place, dict[State, Any]]:
    """b[group, state], of which one is 1: the state of every place of the group."""
    indicators: dict[_Place, dict[State, Any]] = {}
    for number, group in enumerate(_groups(joint.classes)):
        values = [joint.graph.values[name] for _, name in group]
        states = [s for s in _states(joint, values[0]) if all(_fits(joint, s, v) for v in values)]
        chosen = {s: pulp.LpVariable(f"b_{number}_{k}", cat="Binary") for k, s in enumerate(states)}
        joint.problem += pulp.lpSum(chosen.values()) == 1
        indicators |= dict.fromkeys(group, chosen)
    return indicators


def _states(joint: _Joint, value: Value) -> list[State]:
    dims = range(len(value.shape)) if value.requires_grad else ()
    return [R, *(shard(dim) for dim in dims)]


def _fits(joint: _Joint, state: State, value: Value) -> bool:
    if state == R:
        return True
    samples = divides_batch(state, value) and joint.batch % joint.tp
    return not samples and divides(value.shape[state.dim], state.outer, joint.tp)


def _groups(classes: Classes) -> list[list[_Place]]:
    """Places that hold one activation: where it is sent, and wherever it is received."""
    root: dict[_Place, _Place] = {}

    def find(place: _Place) -> _Place:
        root.setdefault(place, place)
        while root[place] != place:
            place = root[place]
        return place

    holder: dict[str, _Place] = {}
    for k, member in enumerate(classes.members):
        home, pattern = classes.home(member), classes.priced(member)
        for name, slot in zip(pattern.received, classes.reads[k], strict=True):
            root[find((home, name))] = find(holder[slot])
        for name, slot in zip(pattern.sent, classes.writes[k], strict=True):
            holder[slot] = (home, name)
            find((home, name))
    groups: dict[_Place, list[_Place]] = {}
    for place in root:
        groups.setdefault(find(place), []).append(place)
    return list(groups.values())


def _solve(
    joint: _Joint, weights: Mapping[str, Weights], solver: str
) -> dict[str, Sharding] | None:
    terms: dict[Any, float] = {}
    for name, model in joint.models.items():
        times = joint.classes.members.count(name) or 1
        add_terms(model, weights[name], terms, times)
    joint.problem.setObjective(pulp.LpAffineExpression(terms))
    outcome = run_solver(
        joint.problem, solver=solver, gap=1e-3, time_limit=TIME_LIMIT, relax_first=True
    )
    if outcome.status != "optimal":
        return None
    return {name: read(model, "open") for name, model in joint.models.items()}
