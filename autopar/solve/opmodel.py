"""The op-level program of one layer class at one tp degree: its columns and rows.

Columns: ``choose[op, strategy]`` whole, one per op; ``stored[parameter, state]`` whole, one per
parameter; ``boundary[activation, state]`` whole, one per activation that crosses the layer's
boundary; ``change[value, made, needed]`` for every possible change of state, at most the
indicator that the value is made so, at least the indicator that an op needs it so; and
``kept[value, state]``, at least the indicator that an op saves it so for backward.
A change of state is paid once however many ops need it.

The rows know nothing of micro-batches, costs or layouts: one model serves for all of these.
``opprices.py`` has what the columns cost. Who solves the model fixes the states at the boundary
(``intra.py``) or joins classes by them (``joint.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopar.graph import Graph
from autopar.solve.program import ONE, Floats, Program
from autopar.strategies.choices import divides_samples, movable, outer_factors, strategies
from autopar.strategies.patterns import ENDS
from autopar.strategies.sharding import Moved, Pattern, Sharding, local_shape
from autopar.strategies.states import (
    D,
    P,
    R,
    State,
    divides,
    divides_batch,
    move,
    placement_of,
    shard,
)
from autopar.strategies.strategy import Strategy

# Where the state in which the layer must send a value, or have its loss, stands among the ops.
SENT = -1


@dataclass
class OpModel:
    """The program of one pattern; the dicts say which column stands for what.

    ``possible`` tells whether every value can get to where it is needed.
    """

    graph: Graph
    pattern: Pattern
    tp: int
    program: Program = field(default_factory=Program)
    possible: bool = True
    menu: dict[int, tuple[Strategy, ...]] = field(default_factory=dict)
    choose: dict[tuple[int, int], int] = field(default_factory=dict)
    stored: dict[str, dict[State, int]] = field(default_factory=dict)
    boundary: dict[str, dict[State, int]] = field(default_factory=dict)
    change: dict[tuple[str, State, State], int] = field(default_factory=dict)
    kept: dict[tuple[str, State], int] = field(default_factory=dict)
    movable: set[str] = field(default_factory=set)

    def local(self, strategy: Strategy, index: int, batch: int) -> dict[str, tuple[int, ...]]:
        """What one rank holds of each tensor of an op."""
        op, values = self.graph.ops[index], self.graph.values
        states = [*strategy.inputs, *zip(op.outputs, strategy.outputs, strict=True)]
        return {n: local_shape(values[n], s, self.tp, batch) for n, s in states}

    def fixed(self, states: Mapping[str, State], batch: int) -> dict[int, float] | None:
        """Columns that have a value at this boundary and micro-batch; None if it cannot be."""
        found = dict.fromkeys(self.of_samples(batch), 0.0)
        for name, state in states.items():
            columns = self.boundary[name]
            if state not in columns:
                return None
            found |= {column: float(s == state) for s, column in columns.items()}
        return found

    def placed(self, placements: Iterable[tuple[str, str]]) -> dict[int, float] | None:
        """Columns that parameters with these placements do not take; None if one has none left."""
        found: dict[int, float] = {}
        for name, placement in placements:
            others = [c for s, c in self.stored[name].items() if placement_of(s) != placement]
            if len(others) == len(self.stored[name]):
                return None
            found |= dict.fromkeys(others, 0.0)
        return found

    def of_samples(self, batch: int) -> list[int]:
        """Columns of what divides the samples of a micro-batch, where tp does not divide them."""
        if batch % self.tp == 0:
            return []
        ops, values = self.graph.ops, self.graph.values
        chosen = [
            column
            for (index, k), column in self.choose.items()
            if divides_samples(self.menu[index][k], ops[index], values)
        ]
        crossing = [
            column
            for name, columns in self.boundary.items()
            for state, column in columns.items()
            if divides_batch(state, values[name])
        ]
        return chosen + crossing


def op_model(graph: Graph, pattern: Pattern, tp: int) -> OpModel:
    """The columns and rows of a pattern."""
    model = OpModel(graph, pattern, tp)
    ops = [graph.ops[i] for i in pattern.ops]
    outers = outer_factors(ops, graph.values, tp)
    for i in pattern.ops:
        model.menu[i] = strategies(graph.ops[i], graph.values, tp, outers)
    _drop_unreachable(model)
    _choose_strategies(model)
    _cross_boundary(model)
    model.movable = movable(graph, pattern.ops) | model.boundary.keys()
    _store_parameters(model)
    model.possible = _connect_values(model)
    _keep_for_backward(model)
    return model


def _drop_unreachable(model: OpModel) -> None:
    """Leaves out strategies that read rows of experts where nothing makes them.

    ``made`` says for every value that may be such rows which tensor tells the experts' rows apart:
    what an op reads must all be told apart by the same.
    """
    made: dict[str, str] = {}
    for index, menu in model.menu.items():
        op, found = model.graph.ops[index], []
        for strategy in menu:
            parts = {made.get(n, "") for n, state in strategy.inputs if state == D}
            parts |= {op.inputs()[2]} if strategy.special == "sharded_experts" else set()
            if len(parts) < 2 and "" not in parts:
                found.append(strategy)
                new = zip(op.outputs, strategy.outputs, strict=True)
                made |= {o: "".join(parts) for o, state in new if state == D}
        model.menu[index] = tuple(found)


def _choose_strategies(model: OpModel) -> None:
    """sum_s choose[op, s] = 1."""
    for index, menu in model.menu.items():
        columns = _whole(model, len(menu))
        model.choose |= {(index, k): column for k, column in enumerate(columns)}


def _whole(model: OpModel, count: int) -> list[int]:
    """Whole columns of which one is 1."""
    columns = [model.program.column(whole=True) for _ in range(count)]
    model.program.row(columns, least=1.0, most=1.0)
    return columns


def _cross_boundary(model: OpModel) -> None:
    """sum_s boundary[activation, s] = 1."""
    for name in dict.fromkeys((*model.pattern.received, *model.pattern.sent)):
        sizes = model.graph.values[name].shape
        dims = [d for d, size in enumerate(sizes) if divides(size, R.outer, model.tp)]
        states = [R, *(shard(d) for d in dims)]
        columns = _whole(model, len(states))
        model.boundary[name] = dict(zip(states, columns, strict=True))


def _store_parameters(model: OpModel) -> None:
    """A parameter has one state, and every op that reads it reads it so."""
    for name, uses in _uses(model, parameters=True).items():
        common = set.intersection(*(set(by_state) for by_state in uses.values()))
        # Parameters outside the blocks are stored as the user's modules shape them: no fused dims.
        whole = model.pattern.name == ENDS
        states = sorted(s for s in common - {P} if s.plain or not whole)
        held = {s: model.program.column(whole=True) for s in states}
        model.stored[name] = held
        for by_state in uses.values():
            for state, chosen in by_state.items():
                same = [held[state]] if state in held else []
                model.program.row(chosen, same, least=0.0, most=0.0)


def _uses(model: OpModel, *, parameters: bool) -> dict[str, dict[int, dict[State, list[int]]]]:
    """Value -> op -> needed state -> the columns of the strategies that need it."""
    found: dict[str, dict[int, dict[State, list[int]]]] = defaultdict(dict)
    for (index, k), column in model.choose.items():
        for name, state in model.menu[index][k].inputs:
            if (model.graph.values[name].kind == "parameter") == parameters:
                found[name].setdefault(index, {}).setdefault(state, []).append(column)
    return found


def _connect_values(model: OpModel) -> bool:
    """Every state in which an op needs a value comes from the state in which it is made."""
    made = _made(model)
    needed = _uses(model, parameters=False)
    for name in model.pattern.sent:
        needed[name][SENT] = {s: [column] for s, column in model.boundary[name].items()}
    if model.graph.loss in made:
        needed[model.graph.loss][SENT] = {R: [ONE]}
    for name, by_op in needed.items():
        _connect(model, name, made.get(name, {R: [ONE]}), by_op)
    return all(by_state for by_op in needed.values() for by_state in by_op.values())


def _made(model: OpModel) -> dict[str, dict[State, list[int]]]:
    """Value -> state -> the columns of what makes it so."""
    made: dict[str, dict[State, list[int]]] = defaultdict(dict)
    for (index, k), column in model.choose.items():
        outputs = zip(model.graph.ops[index].outputs, model.menu[index][k].outputs, strict=True)
        for name, state in outputs:
            made[name].setdefault(state, []).append(column)
    for name in model.pattern.received:
        made[name] = {s: [column] for s, column in model.boundary[name].items()}
    return made


def _connect(model: OpModel, name: str, sources: dict[State, list[int]],
             by_op: dict[int, dict[State, list[int]]]) -> None:  # fmt: skip
    """change[s, t] <= made[s] and sum_s change[s, t] >= needed[t] of each op."""
    value, program = model.graph.values[name], model.program
    for target in sorted({state for by_state in by_op.values() for state in by_state}):
        ways = []
        for source in sorted(sources):
            if source != target and name not in model.movable:
                continue
            if move(source, target, value, model.tp) is None:
                continue
            way = program.column()
            program.row([way], sources[source], most=0.0)
            model.change[name, source, target] = way
            ways.append(way)
        for by_state in by_op.values():
            if target in by_state:
                program.row(ways, by_state[target], least=0.0)


def _keep_for_backward(model: OpModel) -> None:
    """kept[value, state] >= choose of every strategy of an op that saves it so."""
    graph = model.graph
    for (index, k), column in model.choose.items():
        strategy, saved = model.menu[index][k], set(graph.saved[index].values)
        outputs = zip(graph.ops[index].outputs, strategy.outputs, strict=True)
        for name, state in (*strategy.inputs, *outputs):
            if name in saved and graph.values[name].kind == "activation":
                if (name, state) not in model.kept:
                    model.kept[name, state] = model.program.column()
                model.program.row([model.kept[name, state]], [column], least=0.0)


def read(model: OpModel, values: Floats, layout: str) -> Sharding:
    """The sharding that the solver found, from the values of the model's columns."""
    chosen = {
        index: menu[_chosen({k: model.choose[index, k] for k in range(len(menu))}, values)]
        for index, menu in model.menu.items()
    }
    parameters = {name: _chosen(held, values) for name, held in model.stored.items()}
    boundary = {name: _chosen(columns, values) for name, columns in model.boundary.items()}
    moves = _moves(model, chosen, boundary)
    unsplit = all(s == R for s in (*parameters.values(), *boundary.values())) and not moves
    known = model.graph.values
    samples = any(divides_samples(s, model.graph.ops[i], known) for i, s in chosen.items())
    samples |= any(divides_batch(state, known[name]) for name, state in boundary.items())
    return Sharding(
        model.tp, layout, chosen, moves, parameters, unsplit, boundary, divides_samples=samples
    )


def _chosen(columns: Mapping[Any, int], values: Floats) -> Any:
    """The key of the column that is one."""
    return max(columns, key=lambda key: float(values[columns[key]]))


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
    needs: Iterable[tuple[str, State]] = [
        *((n, s) for i in chosen for n, s in chosen[i].inputs if n not in model.stored),
        *((name, boundary[name]) for name in model.pattern.sent),
        *([(graph.loss, R)] if graph.loss in made else []),
    ]
    found = []
    for name, target in dict.fromkeys(needs):
        source = made.get(name, R)
        step = move(source, target, graph.values[name], model.tp)
        assert step is not None, f"no move of {name} from {source} to {target}"
        if step.function:
            found.append(Moved(name, source, target, step))
    return tuple(found)
