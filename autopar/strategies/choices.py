"""Every way to run one operation on the tp axis: the states it reads and the states it makes."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.graph import Graph, Op, Ref, Size, Value
from autopar.strategies.discovery import discovered
from autopar.strategies.rules import (
    KEEPS_ZEROS,
    LINEAR,
    POINTWISE,
    REDUCTIONS,
    SELECTING,
    spec,
)
from autopar.strategies.spec import Spec, Values, name_of
from autopar.strategies.special import SPECIAL
from autopar.strategies.states import D, P, R, State, V, divides, divides_batch, shard
from autopar.strategies.strategy import Outers, Strategy
from autopar.strategies.views import (
    RESHAPES,
    SPLITS,
    parts_of,
    through_reshape,
    through_split,
)
from autopar.trace.inplace import is_inplace


def strategies(op: Op, values: Values, tp: int, outers: Outers) -> tuple[Strategy, ...]:
    """All strategies of ``op``: replicated ones, one per dim that may be sharded, partial sums.

    A buffer is whole on every rank, so what changes one stays whole.
    """
    found = [uniform(op, values, R)]
    name = name_of(op)
    if is_inplace(op):
        return tuple(found)
    if name in LINEAR or name in SPLITS:
        found.append(uniform(op, values, V))
    if name in LINEAR or _adds_two(op, values):
        found.append(uniform(op, values, P))
    found += _of_parts(op, values)
    if name in RESHAPES:
        found += _reshapes(op, values, tp, outers)
    elif name in SPLITS:
        found += _splits(op, values, tp, outers)
    else:
        found += _by_name(op, values, tp, outers)
        found += SPECIAL[name](op, values, tp, outers) if name in SPECIAL else []
    return tuple(dict.fromkeys(found))


def movable(graph: Graph, ops: Sequence[int]) -> set[str]:
    """Values whose state may change: those that a product, attention or a lookup makes or reads.

    A change between two elementwise ops could as well happen before or behind them, and one
    behind a reshape in front of it; leaving those out only removes equal choices. A sum is smaller
    than what it adds.
    """
    heavy = {i for i in ops if name_of(graph.ops[i]) not in POINTWISE | REDUCTIONS.keys()}
    views = {i for i in heavy if name_of(graph.ops[i]) in RESHAPES | LINEAR | {"expand", "slice"}}
    inside = {out for i in ops for out in graph.ops[i].outputs}
    behind_view = {out for i in views for out in graph.ops[i].outputs}
    summed = {o for i in ops if name_of(graph.ops[i]) == "sum" for o in graph.ops[i].outputs}
    touched = {n for i in heavy - views for n in (*graph.ops[i].inputs(), *graph.ops[i].outputs)}
    for i in sorted(views, reverse=True):
        if touched.intersection(graph.ops[i].outputs):
            touched.update(graph.ops[i].inputs())
    return (set(graph.values) - inside) | (touched - behind_view) | summed | {graph.loss}


def is_covered(op: Op, values: Values) -> bool:
    """Whether the op has an entry in the sharding table."""
    name = name_of(op)
    return name in RESHAPES | SPLITS | SPECIAL.keys() or spec(op, values) is not None


def origin(op: Op, values: Values, tp: int) -> str:
    """Where the ways to divide an op come from: "table", "trial", or "none" if nobody knows any.

    An op that reads no tensor, and makes one of numbers and sizes, is "made".
    """
    if not op.inputs():
        return "made"
    if is_covered(op, values):
        return "table"
    return "none" if names(op, values, tp) is None else "trial"


def is_known(op: Op, values: Values, tp: int) -> bool:
    """Whether the table or a trial says how to divide the op; nobody divides a factory."""
    return origin(op, values, tp) != "none"


def divides_samples(strategy: Strategy, op: Op, values: Values) -> bool:
    """Whether the strategy needs micro-batches that are multiples of tp."""
    states = [*strategy.inputs, *zip(op.outputs, strategy.outputs, strict=True)]
    return any(divides_batch(state, values[name]) for name, state in states)


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


def _of_parts(op: Op, values: Values) -> list[Strategy]:
    """Strategies that read partial sums, or the rows of this rank's experts."""
    name, learned = name_of(op), [n for n in op.inputs() if values[n].requires_grad]
    if not learned or not all(values[o].requires_grad for o in op.outputs):
        return []
    first = op.args[0].name if isinstance(op.args[0], Ref) else ""
    if name in SELECTING and learned == [first]:
        return [_with(op, values, first, state, V if state == V else P) for state in (V, P, D)]
    if name in KEEPS_ZEROS | SPLITS and learned == [first]:
        return [uniform(op, values, D)] if _same_rows(op, values, first) else []
    if name not in ("mul", "div"):
        return []
    factors = learned if name == "mul" else [n for n in learned if n == first]
    rows = [n for n in factors if _same_rows(op, values, n)]
    both = [uniform(op, values, D)] if name == "mul" and len(rows) == 2 else []
    found = [_with(op, values, n, P, P) for n in factors]
    return both + found + [_with(op, values, n, D, D) for n in rows]


def _same_rows(op: Op, values: Values, name: str) -> bool:
    """Whether the results have the rows of an input, so that one rank has the same of both."""
    shapes = [values[o].shape for o in op.outputs]
    own = values[name].shape
    return all(len(s) == len(own) and s[:1] == own[:1] for s in shapes)


def _with(op: Op, values: Values, name: str, state: State, made: State) -> Strategy:
    """Reads one input in a state, the other learned ones with a partial gradient each."""
    rest = uniform(op, values, V)
    inputs = tuple((n, state if n == name else other) for n, other in rest.inputs)
    return Strategy(inputs, (made,) * len(op.outputs))


def _by_name(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    named = names(op, values, tp)
    if named is None:
        return []
    found = []
    for dim_name in _dim_names(named):
        if dim_name in named.whole:
            continue
        for outer in sorted(_outers_of(dim_name, op, named, outers)):
            strategy = _sharded(dim_name, outer, op, named, values, tp)
            if strategy:
                found.append(strategy)
    return found


def names(op: Op, values: Values, tp: int) -> Spec | None:
    """The named dims of an op from the table, or else by running it."""
    known = spec(op, values)
    if known is not None or name_of(op) in SPECIAL:
        return known
    return discovered(op, values, tp)


def _dim_names(named: Spec) -> list[str]:
    tensors = [*named.inputs.values(), *(dims or () for dims in named.outputs)]
    return list(dict.fromkeys(n for dims in tensors for n in dims if n))


def _outers_of(dim_name: str, op: Op, named: Spec, outers: Outers) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for key in _places(dim_name, op, named):
        found |= outers.get(key, {(1, 0)})
    return found


def _places(dim_name: str, op: Op, named: Spec) -> list[tuple[str, int]]:
    """Every (tensor, dim) of the op that carries ``dim_name``."""
    tensors = [*named.inputs.items(), *zip(op.outputs, named.outputs, strict=True)]
    return [(t, dims.index(dim_name)) for t, dims in tensors if dims and dim_name in dims]


def _sharded(
    dim_name: str, outer: tuple[int, int], op: Op, named: Spec, values: Values, tp: int
) -> Strategy | None:
    """The strategy that shards ``dim_name``: whoever lacks the name is read as V, or made as P."""
    size = Size(*outer)
    if dim_name in named.units and (outer != (1, 0) or named.units[dim_name] % tp):
        return None
    for tensor, dim in _places(dim_name, op, named):
        if not divides(values[tensor].shape[dim], outer, tp):
            return None
    inputs = []
    for tensor in op.inputs():
        dims = named.inputs.get(tensor, ())
        whole = V if values[tensor].requires_grad else R
        inputs.append((tensor, shard(dims.index(dim_name), size) if dim_name in dims else whole))
    outputs = tuple(_made(dim_name, size, dims) for dims in named.outputs)
    if P in outputs and not all(values[o].requires_grad for o in op.outputs):
        return None
    mean = P in outputs and dim_name in named.averaged
    return Strategy(tuple(inputs), outputs, special="average" if mean else "")


def _made(dim_name: str, outer: Size, dims: tuple[str, ...] | None) -> State:
    if dims is None:
        return R
    return shard(dims.index(dim_name), outer) if dim_name in dims else P


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
    named = names(op, values, tp)
    if named is None:
        return False
    changed = False
    for dim_name in _dim_names(named):
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
