"""Every way to run one operation on the tp axis: the states it reads and the states it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.graph import Graph, Op, Ref, Size, Value
from autopar.strategies.rules import LINEAR, POINTWISE, REDUCTIONS, Spec, name_of, spec
from autopar.strategies.states import P, R, State, V, divides, shard
from autopar.strategies.views import (
    RESHAPES,
    SPLITS,
    parts_of,
    through_reshape,
    through_split,
)

Values = dict[str, Value]
Outers = dict[tuple[str, int], set[tuple[int, int]]]


@dataclass(frozen=True)
class Strategy:
    """One way to run an op.

    ``special`` names a function of the emitted program that replaces the op, and
    ``collectives`` what it issues in forward, as (kind, elements of the value named).
    """

    inputs: tuple[tuple[str, State], ...]
    outputs: tuple[State, ...]
    special: str = ""
    collectives: tuple[tuple[str, str], ...] = ()

    def state_of(self, name: str) -> State:
        """The state in which the op reads the value ``name``."""
        return dict(self.inputs)[name]


def strategies(op: Op, values: Values, tp: int, outers: Outers) -> tuple[Strategy, ...]:
    """All strategies of ``op``: replicated ones, one per dim that may be sharded, partial sums."""
    found = [uniform(op, values, R)]
    name = name_of(op)
    if name in LINEAR or name in SPLITS:
        found.append(uniform(op, values, V))
    if name in LINEAR or _adds_two(op, values):
        found.append(uniform(op, values, P))
    if name in RESHAPES:
        found += _reshapes(op, values, tp, outers)
    elif name in SPLITS:
        found += _splits(op, values, tp, outers)
    else:
        found += _by_name(op, values, tp, outers)
        found += _special(op, values, tp)
    return tuple(dict.fromkeys(found))


def movable(graph: Graph, ops: Sequence[int]) -> set[str]:
    """Values whose state may change: those that a product, attention or a lookup makes or reads.

    A change between two elementwise ops could as well happen before or behind them, and one
    behind a reshape in front of it; leaving those out only removes equal choices.
    """
    heavy = {i for i in ops if name_of(graph.ops[i]) not in POINTWISE | REDUCTIONS.keys()}
    views = {i for i in heavy if name_of(graph.ops[i]) in RESHAPES | LINEAR | {"expand", "slice"}}
    inside = {out for i in ops for out in graph.ops[i].outputs}
    behind_view = {out for i in views for out in graph.ops[i].outputs}
    touched = {n for i in heavy - views for n in (*graph.ops[i].inputs(), *graph.ops[i].outputs)}
    return (set(graph.values) - inside) | (touched - behind_view) | {graph.loss}


def is_covered(op: Op, values: Values) -> bool:
    """Whether the op has an entry in the sharding table."""
    name = name_of(op)
    special = op.target in (EMBEDDING, CROSS_ENTROPY)
    return name in RESHAPES or name in SPLITS or special or spec(op, values) is not None


def uniform(op: Op, values: Values, state: State) -> Strategy:
    """All tensors in one state; tensors without a gradient are simply replicated."""
    inputs = tuple((n, state if values[n].requires_grad else R) for n in op.inputs())
    outputs = tuple(state if values[o].requires_grad else R for o in op.outputs)
    return Strategy(inputs, outputs)


def _adds_two(op: Op, values: Values) -> bool:
    """Whether it adds two partial sums: a constant would be added once per rank."""
    terms = op.args[:2] if name_of(op) in ("add", "sub") else ()
    learned = [isinstance(a, Ref) and values[a.name].requires_grad for a in terms]
    return len(learned) == 2 and all(learned)


def _by_name(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    named = spec(op, values)
    if named is None:
        return []
    names = dict.fromkeys(n for dims in (*named.inputs.values(), *named.outputs) for n in dims if n)
    found = []
    for dim_name in names:
        if dim_name in named.whole:
            continue
        for outer in sorted(_outers_of(dim_name, op, named, outers)):
            strategy = _sharded(dim_name, outer, op, named, values, tp)
            if strategy:
                found.append(strategy)
    return found


def _outers_of(dim_name: str, op: Op, named: Spec, outers: Outers) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for key in _places(dim_name, op, named):
        found |= outers.get(key, {(1, 0)})
    return found


def _places(dim_name: str, op: Op, named: Spec) -> list[tuple[str, int]]:
    """Every (tensor, dim) of the op that carries ``dim_name``."""
    tensors = [*named.inputs.items(), *zip(op.outputs, named.outputs, strict=True)]
    return [(t, dims.index(dim_name)) for t, dims in tensors if dim_name in dims]


def _sharded(
    dim_name: str, outer: tuple[int, int], op: Op, named: Spec, values: Values, tp: int
) -> Strategy | None:
    """The strategy that shards ``dim_name``: whoever lacks the name is read as V, or made as P."""
    size = Size(*outer)
    for tensor, dim in _places(dim_name, op, named):
        if not divides(values[tensor].shape[dim], outer, tp):
            return None
    inputs = []
    for tensor in op.inputs():
        dims = named.inputs.get(tensor, ())
        whole = V if values[tensor].requires_grad else R
        inputs.append((tensor, shard(dims.index(dim_name), size) if dim_name in dims else whole))
    outputs = tuple(shard(d.index(dim_name), size) if dim_name in d else P for d in named.outputs)
    if P in outputs and not all(values[o].requires_grad for o in op.outputs):
        return None
    return Strategy(tuple(inputs), outputs)


def _reshapes(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    before, after = values[op.args[0].name], values[op.outputs[0]]
    found = []
    for state in _candidate_states(before, tp, outers):
        result = through_reshape(state, before, after, tp)
        if result is not None:
            found.append(Strategy(((before.name, state),), (result,)))
    return found


def _splits(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    before, after = values[op.args[0].name], values[op.outputs[0]]
    found = []
    for state in _candidate_states(before, tp, outers):
        result = through_split(state, op, before, after)
        if result is not None and divides(after.shape[result.dim], result.outer, tp):
            found.append(Strategy(((before.name, state),), (result,) * len(op.outputs)))
    return found


def _candidate_states(value: Value, tp: int, outers: Outers) -> list[State]:
    return [
        State("S", dim, outer)
        for dim, size in enumerate(value.shape)
        for outer in sorted(outers.get((value.name, dim), {(1, 0)}))
        if divides(size, outer, tp)
    ]


EMBEDDING = "aten.embedding.default"
CROSS_ENTROPY = "aten.cross_entropy_loss.default"


def _special(op: Op, values: Values, tp: int) -> list[Strategy]:
    if op.target == EMBEDDING:
        return _embedding(op, values, tp)
    if op.target == CROSS_ENTROPY:
        return _cross_entropy(op, values, tp)
    return []


def _embedding(op: Op, values: Values, tp: int) -> list[Strategy]:
    """Rows of the table (vocabulary), columns (hidden), or any dim of the index may be split.

    A gradient that is scaled by the frequency of a row needs all of the index.
    """
    if any(op.args[3:]):
        return []
    table, index = (values[a.name] for a in op.args[:2])
    out = values[op.outputs[0]]
    plain = len(op.args) < 3 or op.args[2] in (None, -1)
    found = []
    if divides(table.shape[0], (1, 0), tp) and plain:
        inputs = ((table.name, shard(0)), (index.name, R))
        found.append(Strategy(inputs, (P,), special="sharded_embedding"))
    if divides(table.shape[1], (1, 0), tp):
        inputs = ((table.name, shard(1)), (index.name, R))
        found.append(Strategy(inputs, (shard(len(out.shape) - 1),)))
    for dim, size in enumerate(index.shape):
        if divides(size, (1, 0), tp):
            whole = V if table.requires_grad else R
            found.append(Strategy(((table.name, whole), (index.name, shard(dim))), (shard(dim),)))
    return found


def _cross_entropy(op: Op, values: Values, tp: int) -> list[Strategy]:
    """Logits of (rows, classes) sharded over the classes: three small all-reduces per loss."""
    logits, target = (values[a.name] for a in op.args[:2])
    given, defaults = tuple(op.args[2:6]), (None, 1, -100, 0.0)
    weight, reduction, _, smoothing = given + defaults[len(given) :]
    usable = weight is None and reduction == 1 and not smoothing
    usable &= len(logits.shape) == 2 and target.dtype == "int64" and not op.kwargs
    if not usable or not divides(logits.shape[1], (1, 0), tp):
        return []
    inputs = ((logits.name, shard(1)), (target.name, R))
    per_row = ("all_reduce", target.name)
    return [Strategy(inputs, (R,), special="sharded_cross_entropy", collectives=(per_row,) * 3)]


def outer_factors(ops: list[Op], values: Values, tp: int) -> Outers:
    """The outer factors with which each dim may have to be sharded.

    They start at splits of fused projections and travel along equal dim names and
    reshapes, in both directions, until nothing changes.
    """
    outers: Outers = {}
    changed = True
    while changed:
        changed = False
        for op in ops:
            changed |= _spread(op, values, tp, outers)
    return outers


def _spread(op: Op, values: Values, tp: int, outers: Outers) -> bool:
    name = name_of(op)
    if name in RESHAPES:
        return _spread_reshape(op, values, tp, outers)
    if name in SPLITS:
        before, after = values[op.args[0].name], values[op.outputs[0]]
        dim, parts = parts_of(op, before, after)
        return _add(outers, (before.name, dim), {(parts, 0)})
    named = spec(op, values)
    if named is None:
        return False
    changed = False
    for dim_name in {n for dims in (*named.inputs.values(), *named.outputs) for n in dims if n}:
        found = _outers_of(dim_name, op, named, outers)
        for key in _places(dim_name, op, named):
            changed |= _add(outers, key, found)
    return changed


def _spread_reshape(op: Op, values: Values, tp: int, outers: Outers) -> bool:
    before, after = values[op.args[0].name], values[op.outputs[0]]
    changed = False
    for source, target in ((before, after), (after, before)):
        for state in _candidate_states(source, tp, outers):
            result = through_reshape(state, source, target, tp)
            if result is not None and result.kind == "S":
                changed |= _add(outers, (target.name, result.dim), {result.outer})
    return changed


def _add(outers: Outers, key: tuple[str, int], new: set[tuple[int, int]]) -> bool:
    known = outers.setdefault(key, {(1, 0)})
    size = len(known)
    known |= new
    return len(known) > size
