"""The op-level ILP of one layer class: its variables, constraints and prices.

Variables: ``z[op, strategy]`` binary, one per op; ``x[parameter, state]`` binary, one per
parameter; ``e[value, made, needed]`` for every possible change of state, at most the
indicator that the value is made so, at least the indicator that an op needs it so; and
``kept[value, state]``, at least the indicator that an op saves it so for backward.
A change of state is paid once however many ops need it. The states at the boundary are given
(``intra.py``), or are indicators that several classes share (``joint.py``).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pulp

from autopar.cluster import Cluster
from autopar.cost.collectives import collective_seconds
from autopar.cost.moves import inner_seconds, move_seconds, tp_group
from autopar.cost.ops import op_cost
from autopar.graph import Graph
from autopar.strategies.choices import divides_samples, movable, outer_factors, strategies
from autopar.strategies.patterns import ENDS
from autopar.strategies.sharding import Moved, Pattern, Sharding, local_elements, local_shape
from autopar.strategies.states import P, R, State, V, divides_batch, move
from autopar.strategies.strategy import Strategy

# The state of each activation at the boundary: an indicator per state that it may have.
Boundary = dict[str, dict[State, Any]]


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
class OpModel:
    """The ILP of one pattern while it is built.

    ``cost`` are its terms in seconds, ``held`` and ``kept`` those in bytes of parameters and of
    activations saved for backward: only their prices differ between the objectives.
    ``boundary`` says in which states an activation may cross the layer's boundary, each with 1 or
    a variable that is one if it does; ``label`` tells the variables of several classes apart.
    """

    graph: Graph
    pattern: Pattern
    cluster: Cluster
    tp: int
    boundary: Boundary
    batch: int
    steps: float
    problem: Any
    label: str = ""
    menu: dict[int, tuple[Strategy, ...]] = field(default_factory=dict)
    cost: list[Any] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    choose: dict[tuple[int, int], Any] = field(default_factory=dict)
    stored: dict[str, dict[State, Any]] = field(default_factory=dict)
    change: dict[tuple[str, State, State], Any] = field(default_factory=dict)
    movable: set[str] = field(default_factory=set)

    def local(self, strategy: Strategy, index: int) -> dict[str, tuple[int, ...]]:
        """What one rank holds of each tensor of an op."""
        op, values = self.graph.ops[index], self.graph.values
        states = [*strategy.inputs, *zip(op.outputs, strategy.outputs, strict=True)]
        return {n: local_shape(values[n], s, self.tp, self.batch) for n, s in states}


def build(model: OpModel) -> bool:
    """Adds the variables and constraints of a class; False if its boundary is impossible."""
    graph, ops = model.graph, [model.graph.ops[i] for i in model.pattern.ops]
    outers = outer_factors(ops, graph.values, model.tp)
    for i in model.pattern.ops:
        menu = strategies(graph.ops[i], graph.values, model.tp, outers)
        model.menu[i] = _of_whole_samples(model, i, menu) if model.batch % model.tp else menu
    model.movable = movable(graph, model.pattern.ops) | model.boundary.keys()
    _choose_strategies(model)
    _store_parameters(model)
    if not _connect_values(model):
        return False
    _keep_for_backward(model)
    return True


def add_terms(model: OpModel, weights: Weights, terms: dict[Any, float], times: int = 1) -> None:
    """Adds the objective's coefficients for ``times`` layers of the class."""
    priced = ((model.cost, 1.0), (model.held, weights.parameter), (model.kept, weights.activation))
    for figures, price in priced:
        for variable, figure in figures:
            terms[variable] = terms.get(variable, 0.0) + times * price * figure


def _of_whole_samples(
    model: OpModel, index: int, menu: tuple[Strategy, ...]
) -> tuple[Strategy, ...]:
    """The strategies that do not divide the samples among the tp ranks."""
    op, values = model.graph.ops[index], model.graph.values
    return tuple(s for s in menu if not divides_samples(s, op, values))


def _choose_strategies(model: OpModel) -> None:
    """sum_s z[op, s] = 1; each pays its seconds."""
    graph = model.graph
    for index, menu in model.menu.items():
        for k, strategy in enumerate(menu):
            model.choose[index, k] = pulp.LpVariable(f"{model.label}z_{index}_{k}", cat="Binary")
            priced = op_cost(
                model.cluster, graph.ops[index], graph.values, model.local(strategy, index)
            )
            seconds = priced.forward_seconds + priced.backward_seconds
            seconds += inner_seconds(model.cluster, strategy, graph.values, model.tp, model.batch)
            model.cost.append((model.choose[index, k], seconds))
        model.problem += pulp.lpSum(model.choose[index, k] for k in range(len(menu))) == 1


def _store_parameters(model: OpModel) -> None:
    """A parameter has one state, and every op that reads it reads it so."""
    for name, uses in _uses(model, parameters=True).items():
        common = set.intersection(*(set(by_state) for by_state in uses.values()))
        # Parameters outside the blocks are stored as the user's modules shape them: no fused dims.
        whole = model.pattern.name == ENDS
        states = sorted(s for s in common - {P} if s.plain or not whole)
        held = {s: pulp.LpVariable(f"{model.label}x_{len(model.stored)}_{i}", cat="Binary")
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


def _gradient_seconds(model: OpModel, name: str) -> float:
    """One micro-batch's share of the all-reduce of a gradient that is a partial sum.

    One call sums all of them, so a gradient pays for its bytes and not for a latency.
    """
    size, group = model.graph.values[name].bytes(1), tp_group(model.cluster, model.tp)
    seconds = collective_seconds(model.cluster, "all_reduce", size, group)
    latency = collective_seconds(model.cluster, "all_reduce", 1, group)
    return model.steps * (seconds - latency)


def _uses(model: OpModel, *, parameters: bool) -> dict[str, dict[int, dict[State, list[Any]]]]:
    """Value -> op -> needed state -> the strategy variables that need it."""
    found: dict[str, dict[int, dict[State, list[Any]]]] = defaultdict(dict)
    for index, menu in model.menu.items():
        for k, strategy in enumerate(menu):
            for name, state in strategy.inputs:
                if (model.graph.values[name].kind == "parameter") == parameters:
                    by_state = found[name].setdefault(index, {})
                    by_state.setdefault(state, []).append(model.choose[index, k])
    return found


def _connect_values(model: OpModel) -> bool:
    """Every state in which an op needs a value comes from the state in which it is made."""
    made = _made(model)
    needed = _uses(model, parameters=False)
    for name in model.pattern.sent:
        needed[name][-1] = {s: [indicator] for s, indicator in model.boundary[name].items()}
    if model.graph.loss in made:
        needed[model.graph.loss][-1] = {R: [1]}
    for number, (name, by_op) in enumerate(needed.items()):
        sources = made.get(name, {R: [1]})
        if not _connect(model, name, number, sources, by_op):
            return False
    return True


def _made(model: OpModel) -> dict[str, dict[State, list[Any]]]:
    """Value -> state -> the strategy variables that make it so."""
    made: dict[str, dict[State, list[Any]]] = defaultdict(dict)
    for index, menu in model.menu.items():
        for k, strategy in enumerate(menu):
            for name, state in zip(model.graph.ops[index].outputs, strategy.outputs, strict=True):
                made[name].setdefault(state, []).append(model.choose[index, k])
    for name in model.pattern.received:
        made[name] = {s: [indicator] for s, indicator in model.boundary[name].items()}
    return made


def _connect(model: OpModel, name: str, number: int, sources: dict[State, list[Any]],
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
            way = pulp.LpVariable(f"{model.label}e_{number}_{i}_{j}", 0, 1)
            model.problem += way <= pulp.lpSum(sources[source])
            model.change[name, source, target] = way
            ways.append(way)
            seconds = sum(move_seconds(model.cluster, step, value, model.tp, model.batch))
            model.cost.append((way, seconds + 1e-9 * bool(step.function)))
        for by_state in by_op.values():
            if target in by_state:
                model.problem += pulp.lpSum(ways) >= pulp.lpSum(by_state[target])
    return all(v for v in by_op.values())


def _keep_for_backward(model: OpModel) -> None:
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
                        kept[name, state] = pulp.LpVariable(f"{model.label}k_{len(kept)}", 0, 1)
                        held = local_elements(graph.values[name], state, model.tp, model.batch)
                        size = held * graph.values[name].bytes(1) // graph.values[name].elements(1)
                        model.kept.append((kept[name, state], size))
                    model.problem += kept[name, state] >= model.choose[index, k]


def read(model: OpModel, layout: str) -> Sharding:
    """The sharding that the solver found."""
    chosen = {
        index: menu[_chosen({k: model.choose[index, k] for k in range(len(menu))})]
        for index, menu in model.menu.items()
    }
    parameters = {name: _chosen(held) for name, held in model.stored.items()}
    boundary = read_boundary(model)
    moves = _moves(model, chosen, boundary)
    unsplit = all(s == R for s in (*parameters.values(), *boundary.values())) and not moves
    values = model.graph.values
    samples = any(divides_samples(s, model.graph.ops[i], values) for i, s in chosen.items())
    samples |= any(divides_batch(state, values[name]) for name, state in boundary.items())
    return Sharding(
        model.tp, layout, chosen, moves, parameters, unsplit, boundary, divides_samples=samples
    )


def read_boundary(model: OpModel) -> dict[str, State]:
    """The state in which each activation crosses the boundary."""
    return {name: _chosen(indicators) for name, indicators in model.boundary.items()}


def _chosen(variables: dict[Any, Any]) -> Any:
    """The key of the one-hot variable that is one."""
    values = {key: v if isinstance(v, int) else v.value() or 0 for key, v in variables.items()}
    return max(values, key=lambda key: values[key])


def _moves(
    model: OpModel, chosen: dict[int, Strategy], boundary: dict[str, State]
) -> tuple[Moved, ...]:
    """Every change of state that the chosen strategies imply, in the order of first need."""
    graph = model.graph
    made = {
        name: state
        for i, strategy in chosen.items()
        for name, state in zip(graph.ops[i].outputs, strategy.outputs, strict=True)
    }
    made |= {name: boundary[name] for name in model.pattern.received}
    needs = [(n, s) for i in chosen for n, s in chosen[i].inputs if n not in model.stored]
    needs += [(name, boundary[name]) for name in model.pattern.sent]
    needs += [(graph.loss, R)] if graph.loss in made else []
    found = []
    for name, target in dict.fromkeys(needs):
        source = made.get(name, R)
        step = move(source, target, graph.values[name], model.tp)
        assert step is not None, f"no move of {name} from {source} to {target}"
        if step.function or (source, target) == (R, V):
            found.append(Moved(name, source, target, step))
    return tuple(m for m in found if m.move.function)
