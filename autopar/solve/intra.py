"""The op-level ILP: a strategy for every op of a layer class at one tp degree and layout.

Variables: ``z[op, strategy]`` binary, one per op; ``x[parameter, state]`` binary, one per
parameter; ``e[value, made, needed]`` for every possible change of state, at most the
indicator that the value is made so, at least the indicator that an op needs it so; and
``kept[value, state]``, at least the indicator that an op saves it so for backward.
A change of state is paid once however many ops need it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pulp

from autopar.cluster import Cluster
from autopar.cost.collectives import collective_seconds
from autopar.cost.moves import inner_seconds, move_seconds, tp_group
from autopar.cost.ops import op_cost
from autopar.graph import Graph
from autopar.solve.engine import run_solver
from autopar.strategies.choices import divides_samples, movable, outer_factors, strategies
from autopar.strategies.patterns import ENDS
from autopar.strategies.sharding import Moved, Pattern, Sharding, local_elements, local_shape
from autopar.strategies.states import P, R, State, V, move, shard
from autopar.strategies.strategy import Strategy

LAYOUTS = {"replicate": R, "sequence": shard(1)}


@dataclass(frozen=True)
class Weights:
    """What the ILP minimises: seconds of one micro-batch plus a price in seconds per byte.

    ``parameter`` is paid per byte of parameter held, ``activation`` per byte saved for backward.
    ``steps`` is the share of a once-per-step cost that one micro-batch bears.
    """

    parameter: float = 0.0
    activation: float = 0.0
    steps: float = 0.125


@dataclass
class _Model:
    """The ILP of one pattern while it is built.

    ``cost`` are its terms in seconds, ``held`` and ``kept`` those in bytes of parameters and of
    activations saved for backward: only their prices differ between the objectives.
    """

    graph: Graph
    pattern: Pattern
    cluster: Cluster
    tp: int
    boundary: dict[str, State]
    batch: int
    menu: dict[int, tuple[Strategy, ...]]
    steps: float
    cost: list[Any] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    choose: dict[tuple[int, int], Any] = field(default_factory=dict)
    stored: dict[str, dict[State, Any]] = field(default_factory=dict)
    change: dict[tuple[str, State, State], Any] = field(default_factory=dict)
    problem: Any = None
    movable: set[str] = field(default_factory=set)

    def local(self, strategy: Strategy, index: int) -> dict[str, tuple[int, ...]]:
        op, values = self.graph.ops[index], self.graph.values
        states = [*strategy.inputs, *zip(op.outputs, strategy.outputs, strict=True)]
        return {n: local_shape(values[n], s, self.tp, self.batch) for n, s in states}


def shard_pattern(
    graph: Graph, pattern: Pattern, cluster: Cluster, tp: int, layout: str, batch: int,
    weights: Weights, *, solver: str = "highs",
) -> Sharding | None:  # fmt: skip
    """The cheapest sharding of a pattern, or None if the layout is impossible for it.

    ``batch`` is the micro-batch size at which time is traded against memory.
    """
    return shard_for_each(
        graph, pattern, cluster, tp, layout, batch, [weights], solver=solver
    )[0]  # fmt: skip


def shard_for_each(
    graph: Graph, pattern: Pattern, cluster: Cluster, tp: int, layout: str, batch: int,
    aims: Sequence[Weights], *, solver: str = "highs",
) -> list[Sharding | None]:  # fmt: skip
    """The cheapest sharding for each of ``aims``, which must agree in ``steps``.

    The model is built once, which takes longer than to solve it; the aims change its objective.
    """
    ops = [graph.ops[i] for i in pattern.ops]
    outers = outer_factors(ops, graph.values, tp)
    menu = {i: strategies(graph.ops[i], graph.values, tp, outers) for i in pattern.ops}
    if batch % tp:
        menu = {i: _of_whole_batches(graph, i, choices) for i, choices in menu.items()}
    boundary = pattern.boundary(LAYOUTS[layout])
    model = _Model(graph, pattern, cluster, tp, boundary, batch, menu, aims[0].steps)
    model.movable = movable(graph, pattern.ops)
    model.movable |= {*pattern.received, *pattern.sent}
    model.problem = pulp.LpProblem(f"shard_{tp}", pulp.LpMinimize)
    _choose_strategies(model)
    _store_parameters(model)
    if not _connect_values(model):
        return [None] * len(aims)
    _keep_for_backward(model)
    return [_solve_for(model, weights, layout, solver) for weights in aims]


def _of_whole_batches(graph: Graph, index: int, menu: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
    """The strategies that do not divide the samples among the tp ranks."""
    op, values = graph.ops[index], graph.values
    return tuple(s for s in menu if not divides_samples(s, op, values))


def _solve_for(model: _Model, weights: Weights, layout: str, solver: str) -> Sharding | None:
    """The optimum under the prices of one aim."""
    priced = ((model.cost, 1.0), (model.held, weights.parameter), (model.kept, weights.activation))
    terms: dict[Any, float] = defaultdict(float)
    for figures, price in priced:
        for variable, figure in figures:
            terms[variable] += price * figure
    model.problem.setObjective(pulp.LpAffineExpression(terms))
    if run_solver(model.problem, solver=solver, gap=1e-4, time_limit=20.0).status != "optimal":
        return None
    return _read(model, layout)


def _choose_strategies(model: _Model) -> None:
    """sum_s z[op, s] = 1; each pays its seconds."""
    graph = model.graph
    for index, menu in model.menu.items():
        for k, strategy in enumerate(menu):
            model.choose[index, k] = pulp.LpVariable(f"z_{index}_{k}", cat="Binary")
            priced = op_cost(
                model.cluster, graph.ops[index], graph.values, model.local(strategy, index)
            )
            seconds = priced.forward_seconds + priced.backward_seconds
            seconds += inner_seconds(model.cluster, strategy, graph.values, model.tp, model.batch)
            model.cost.append((model.choose[index, k], seconds))
        model.problem += pulp.lpSum(model.choose[index, k] for k in range(len(menu))) == 1


def _store_parameters(model: _Model) -> None:
    """A parameter has one state, and every op that reads it reads it so."""
    for name, uses in _uses(model, parameters=True).items():
        common = set.intersection(*(set(by_state) for by_state in uses.values()))
        # Parameters outside the blocks are stored as the user's modules shape them: no fused dims.
        whole = model.pattern.name == ENDS
        states = sorted(s for s in common - {P} if s.plain or not whole)
        held = {s: pulp.LpVariable(f"x_{len(model.stored)}_{i}", cat="Binary")
                for i, s in enumerate(states)}  # fmt: skip
        model.stored[name] = held
        for by_state in uses.values():
            for state, chosen in by_state.items():
                model.problem += pulp.lpSum(chosen) == held.get(state, 0)
        for state, variable in held.items():
            size = local_elements(model.graph.values[name], state, model.tp, 1) * 4
            model.held.append((variable, size))
            if state == V:
                model.cost.append((variable, _gradient_seconds(model, name)))


def _gradient_seconds(model: _Model, name: str) -> float:
    """One micro-batch's share of the all-reduce of a gradient that is a partial sum."""
    size, group = model.graph.values[name].bytes(1), tp_group(model.cluster, model.tp)
    return model.steps * collective_seconds(model.cluster, "all_reduce", size, group)


def _uses(model: _Model, *, parameters: bool) -> dict[str, dict[int, dict[State, list[Any]]]]:
    """Value -> op -> needed state -> the strategy variables that need it."""
    found: dict[str, dict[int, dict[State, list[Any]]]] = defaultdict(dict)
    for index, menu in model.menu.items():
        for k, strategy in enumerate(menu):
            for name, state in strategy.inputs:
                if (model.graph.values[name].kind == "parameter") == parameters:
                    by_state = found[name].setdefault(index, {})
                    by_state.setdefault(state, []).append(model.choose[index, k])
    return found


def _connect_values(model: _Model) -> bool:
    """Every state in which an op needs a value comes from the state in which it is made."""
    made = _made(model)
    needed = _uses(model, parameters=False)
    for name in model.pattern.sent:
        needed[name][-1] = {model.boundary[name]: [1]}
    if model.graph.loss in made:
        needed[model.graph.loss][-1] = {R: [1]}
    for number, (name, by_op) in enumerate(needed.items()):
        sources = made.get(name, {R: [1]})
        if not _connect(model, name, number, sources, by_op):
            return False
    return True


def _made(model: _Model) -> dict[str, dict[State, list[Any]]]:
    """Value -> state -> the strategy variables that make it so."""
    made: dict[str, dict[State, list[Any]]] = defaultdict(dict)
    for index, menu in model.menu.items():
        for k, strategy in enumerate(menu):
            for name, state in zip(model.graph.ops[index].outputs, strategy.outputs, strict=True):
                made[name].setdefault(state, []).append(model.choose[index, k])
    for name in model.pattern.received:
        made[name] = {model.boundary[name]: [1]}
    return made


def _connect(model: _Model, name: str, number: int, sources: dict[State, list[Any]],
             by_op: dict[int, dict[State, list[Any]]]) -> bool:  # fmt: skip
    """e[s, t] <= made[s] and sum_s e[s, t] >= needed[t] of each op; a move pays its collectives."""
    value = model.graph.values[name]
    targets = sorted({state for by_state in by_op.values() for state in by_state})
    for j, target in enumerate(targets):
        ways = []
        for i, source in enumerate(sorted(sources)):
            step = move(source, target, value, model.tp)
            if step is None or (source != target and name not in model.movable):
                continue
            way = pulp.LpVariable(f"e_{number}_{i}_{j}", 0, 1)
            model.problem += way <= pulp.lpSum(sources[source])
            model.change[name, source, target] = way
            ways.append(way)
            seconds = sum(move_seconds(model.cluster, step, value, model.tp, model.batch))
            model.cost.append((way, seconds + 1e-9 * bool(step.function)))
        for by_state in by_op.values():
            if target in by_state:
                model.problem += pulp.lpSum(ways) >= pulp.lpSum(by_state[target])
    return all(v for v in by_op.values())


def _keep_for_backward(model: _Model) -> None:
    """kept[value, state] >= z of every op that saves it so; pays for its bytes."""
    kept: dict[tuple[str, State], Any] = {}
    graph = model.graph
    for index, menu in model.menu.items():
        saved = set(graph.saved[index].values)
        for k, strategy in enumerate(menu):
            outputs = zip(graph.ops[index].outputs, strategy.outputs, strict=True)
            for name, state in itertools.chain(strategy.inputs, outputs):
                if name in saved and graph.values[name].kind == "activation":
                    if (name, state) not in kept:
                        kept[name, state] = pulp.LpVariable(f"k_{len(kept)}", 0, 1)
                        held = local_elements(graph.values[name], state, model.tp, model.batch)
                        size = held * graph.values[name].bytes(1) // graph.values[name].elements(1)
                        model.kept.append((kept[name, state], size))
                    model.problem += kept[name, state] >= model.choose[index, k]


def _read(model: _Model, layout: str) -> Sharding:
    chosen = {
        index: menu[_chosen({k: model.choose[index, k] for k in range(len(menu))})]
        for index, menu in model.menu.items()
    }
    parameters = {name: _chosen(held) for name, held in model.stored.items()}
    moves = _moves(model, chosen)
    unsplit = all(s == R for s in parameters.values()) and not moves
    return Sharding(model.tp, layout, chosen, moves, parameters, unsplit, model.boundary)


def _chosen(variables: dict[Any, Any]) -> Any:
    """The key of the one-hot variable that is one."""
    return max(variables, key=lambda key: variables[key].value() or 0)


def _moves(model: _Model, chosen: dict[int, Strategy]) -> tuple[Moved, ...]:
    """Every change of state that the chosen strategies imply, in the order of first need."""
    graph = model.graph
    made = {
        name: state
        for i, strategy in chosen.items()
        for name, state in zip(graph.ops[i].outputs, strategy.outputs, strict=True)
    }
    made |= {name: model.boundary[name] for name in model.pattern.received}
    needs = [(n, s) for i in chosen for n, s in chosen[i].inputs if n not in model.stored]
    needs += [(name, model.boundary[name]) for name in model.pattern.sent]
    needs += [(graph.loss, R)] if graph.loss in made else []
    found = []
    for name, target in dict.fromkeys(needs):
        source = made.get(name, R)
        step = move(source, target, graph.values[name], model.tp)
        assert step is not None, f"no move of {name} from {source} to {target}"
        if step.function or (source, target) == (R, V):
            found.append(Moved(name, source, target, step))
    return tuple(m for m in found if m.move.function)
