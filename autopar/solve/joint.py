"""The op-level ILP over one layer of each class, with the states between the layers left open.

It proposes *layouts*: which state each activation has where it goes from one layer to another.
Layers that repeat have equal states in front and behind. Every class is then sharded within each
layout on its own (``intra.py``), so that layers of one layout fit together whatever they choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.cluster import Cluster
from autopar.graph import Graph
from autopar.solve.opmodel import OpModel, op_model, read
from autopar.solve.opprices import Prices, Weights, prices
from autopar.solve.program import Floats, Program, solver_of
from autopar.strategies.patterns import Classes
from autopar.strategies.sharding import Sharding
from autopar.strategies.states import R, State

# Pattern -> activation at its boundary -> state.
Layout = dict[str, dict[str, State]]
GAP = 1e-3
TIME_LIMIT = 5.0
_Place = tuple[str, str]  # pattern, activation


@dataclass
class _Joint:
    """The programs of all classes as one; ``shift`` is what each one's column numbers grew by.

    ``fixed`` are the columns that must not be taken.
    """

    classes: Classes
    models: Mapping[str, OpModel]
    program: Program
    shift: dict[str, int]
    fixed: dict[int, float]


def propose_layouts(
    graph: Graph, classes: Classes, cluster: Cluster, tp: int, batch: int,
    aims: Sequence[Mapping[str, Weights]], *, solver: str = "highs",
    models: Mapping[str, OpModel] | None = None,
    placements: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> list[dict[str, Sharding]]:  # fmt: skip
    """The cheapest sharding of every pattern together, for each aim; each layout once.

    ``aims`` give the prices of each pattern and must agree in ``steps``. ``batch`` is the
    micro-batch size at which time is traded against memory; samples are divided over tp only if
    it is a multiple of tp. ``models`` are those of the patterns, where they are at hand,
    ``placements`` those that parameters of a pattern must have.
    """
    if models is None:
        models = {name: op_model(graph, p, tp) for name, p in classes.patterns.items()}
    if not all(model.possible for model in models.values()):
        return []
    joint = _join(classes, models, batch)
    for name, pinned in (placements or {}).items():
        placed = models[name].placed(pinned)
        if placed is None:
            return []
        joint.fixed |= {joint.shift[name] + column: value for column, value in placed.items()}
    engine = solver_of(joint.program, solver=solver, gap=GAP, time_limit=TIME_LIMIT)
    steps = next(iter(aims[0].values())).steps
    priced = {name: prices(model, cluster, batch, steps) for name, model in models.items()}
    found: dict[str, dict[str, Sharding]] = {}
    for weights in aims:
        values = engine.minimise(_cost(joint, priced, weights), joint.fixed)
        if values is not None:
            shardings = _read(joint, values)
            layout = {name: sharding.boundary for name, sharding in shardings.items()}
            found.setdefault(repr(layout), shardings)
    return list(found.values())


def _join(classes: Classes, models: Mapping[str, OpModel], batch: int) -> _Joint:
    program = Program()
    shift = {name: program.append(model.program) for name, model in models.items()}
    fixed = {shift[n] + c: 0.0 for n, model in models.items() for c in model.of_samples(batch)}
    joint = _Joint(classes, models, program, shift, fixed)
    for group in _groups(classes):
        _agree(joint, group)
    return joint


def _agree(joint: _Joint, group: list[_Place]) -> None:
    """The places that hold one activation have equal states, which all of them can have."""
    columns = [_columns(joint, place) for place in group]
    common = set.intersection(*(set(by_state) for by_state in columns))
    for by_state in columns:
        joint.fixed |= {c: 0.0 for state, c in by_state.items() if state not in common}
    for by_state in columns[1:]:
        for state in sorted(common):
            joint.program.row([columns[0][state]], [by_state[state]], least=0.0, most=0.0)


def _columns(joint: _Joint, place: _Place) -> dict[State, int]:
    """The indicators of a place; what has no gradient is whole there."""
    name, activation = place
    model, shift = joint.models[name], joint.shift[name]
    found = {state: shift + c for state, c in model.boundary[activation].items()}
    if not model.graph.values[activation].requires_grad:
        joint.fixed |= {c: 0.0 for state, c in found.items() if state != R}
        return {R: found[R]}
    return found


def _cost(joint: _Joint, priced: Mapping[str, Prices], weights: Mapping[str, Weights]) -> Floats:
    """The objective over all layers."""
    cost = np.zeros(len(joint.program.whole))
    for name, own in priced.items():
        times = joint.classes.members.count(name) or 1
        start = joint.shift[name]
        cost[start : start + len(own.seconds)] = times * own.weighted(weights[name])
    return cost


def _read(joint: _Joint, values: Floats) -> dict[str, Sharding]:
    return {
        name: read(model, values[joint.shift[name] :], "open")
        for name, model in joint.models.items()
    }


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
