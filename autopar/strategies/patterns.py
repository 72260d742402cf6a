"""The layer classes of a graph, each represented by its first member."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from autopar.graph import Call, Graph, Layer, Ref, Saved
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.states import R
from autopar.trace.simplify import substitute

ENDS = "ends"
ATTENTION = "aten.scaled_dot_product_attention.default"


@dataclass(frozen=True)
class Crossing:
    """An activation that crosses a cut between two layers.

    ``slot`` is the variable that holds it in the program, ``member`` the class of the layer that
    made it and ``value`` its name in that class's pattern, which has its shape and state.
    """

    slot: str
    member: str
    value: str


@dataclass(frozen=True)
class Classes:
    """The classes of a graph's layers.

    ``patterns`` are what the op-level optimisation shards: one per class of blocks, and
    ``ends`` for all that is no block together, because its parts may share a parameter.
    ``members[i]`` is the class of layer i: the pattern's name for a block, the layer's own name
    otherwise. ``parts`` are the latter on their own, to be priced where they run.

    ``reads[i]`` and ``writes[i]`` are the variables that hold what layer i receives and sends, in
    its pattern's order. ``cuts[i]`` is what crosses the cut behind layer i: all that is made at or
    before it and read behind it. ``runs`` are the parts that are runs of a module.
    ``buffer_bytes`` are those of the buffers of one layer's module, by class; those in ``idle``
    read no parameters.
    """

    patterns: dict[str, Pattern]
    parts: dict[str, Pattern]
    members: tuple[str, ...]
    reads: tuple[tuple[str, ...], ...] = ()
    writes: tuple[tuple[str, ...], ...] = ()
    cuts: tuple[tuple[Crossing, ...], ...] = ()
    runs: frozenset[str] = frozenset()
    buffer_bytes: Mapping[str, int] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()

    def home(self, member: str) -> str:
        """The pattern whose sharding holds for a member."""
        return ENDS if member in self.parts else member

    def spread(self) -> list[int]:
        """The layers that are spread over stages: blocks, and runs of modules that are none."""
        return [i for i, m in enumerate(self.members) if m not in self.parts or m in self.runs]

    def priced(self, member: str) -> Pattern:
        """The pattern that a member is priced by."""
        return self.parts.get(member) or self.patterns[member]


def attention_heads(graph: Graph) -> tuple[int, ...]:
    """Head counts of every attention: of the queries and of the keys.

    A single head of keys, which all queries share, is whole on every rank.
    """
    counts = {
        graph.values[a.name].shape[-3].coefficient
        for op in graph.ops
        if op.target == ATTENTION
        for a in op.args[:2]
    }
    return tuple(sorted(counts - {1}))


def find_classes(graph: Graph) -> Classes:
    """Groups the layers of ``graph`` by signature."""
    patterns: dict[str, Pattern] = {}
    parts: dict[str, Pattern] = {}
    for layer in graph.layers:
        own = Pattern(layer.name, layer.ops, layer.received, layer.sent, layer.chained)
        if layer.kind == "block":
            patterns.setdefault(layer.signature, own)
        else:
            parts[layer.name] = own
    members = tuple(_member(layer) for layer in graph.layers)
    if parts:
        patterns[ENDS] = _ends(parts.values())
    classes = Classes(patterns, parts, members)
    slots = _slots(graph)
    return dataclasses.replace(
        classes,
        reads=tuple(tuple(slots[n] for n in layer.received) for layer in graph.layers),
        writes=tuple(tuple(slots[n] for n in layer.sent) for layer in graph.layers),
        cuts=_cuts(graph, classes, slots),
        runs=frozenset(layer.name for layer in graph.layers if layer.kind == "run"),
        buffer_bytes=_buffer_bytes(graph),
        idle=frozenset(_member(layer) for layer in graph.layers if not layer.parameters),
    )


def _buffer_bytes(graph: Graph) -> dict[str, int]:
    """Layers of a class may differ in buffers that nothing reads; then the most counts."""
    found: dict[str, int] = {}
    for layer in graph.layers:
        found[_member(layer)] = max(found.get(_member(layer), 0), layer.buffer_bytes)
    return found


def _member(layer: Layer) -> str:
    return layer.signature if layer.kind == "block" else layer.name


def _ends(parts: Iterable[Pattern]) -> Pattern:
    """All parts as one pattern; what one sends and another receives has two names in it."""
    found = list(parts)
    return Pattern(
        ENDS,
        tuple(i for part in found for i in part.ops),
        tuple(dict.fromkeys(n for part in found for n in part.received)),
        tuple(dict.fromkeys(n for part in found for n in part.sent)),
        frozenset().union(*(part.chained for part in found)),
    )


# ---- variables of the activations between layers


def _slots(graph: Graph) -> dict[str, str]:
    """The variable of each activation between layers.

    The hidden state takes over the variable of the one that it is made from, so that equal
    layers read and write equal variables. Others go by the name of the argument as which a
    block receives them.
    """
    last = {n: k for k, layer in enumerate(graph.layers) for n in layer.received}
    names = _argument_names(graph)
    slots: dict[str, str] = {}
    for k, layer in enumerate(graph.layers):
        busy = {slots[n] for n, end in last.items() if n in slots and end > k}
        free = [slots[n] for n in layer.received if n in layer.chained and last[n] == k]
        for name in layer.sent:
            base = "hidden" if name in layer.chained else names.get(name, "kept")
            if name in layer.chained and free:
                slots[name] = free.pop(0)
            else:
                slots[name] = _unused(base, busy | set(free))
            busy.add(slots[name])
    return slots


def _unused(base: str, busy: set[str]) -> str:
    name, count = base, 2
    while name in busy:
        name, count = f"{base}_{count}", count + 1
    return name


def _argument_names(graph: Graph) -> dict[str, str]:
    """The name of the argument as which blocks receive an activation."""
    names: dict[str, str] = {}
    blocks = [layer.name for layer in graph.layers if layer.kind == "block"]
    for call in (graph.calls[name] for name in blocks if name in graph.calls):
        pairs = [*zip(call.parameters, call.args, strict=False), *call.kwargs.items()]
        for key, argument in pairs:
            if isinstance(argument, Ref):
                names.setdefault(argument.name, key)
    return names


def _cuts(
    graph: Graph, classes: Classes, slots: dict[str, str]
) -> tuple[tuple[Crossing, ...], ...]:
    """What crosses the cut behind each layer but the last; the longest alive comes first."""
    last = {n: k for k, layer in enumerate(graph.layers) for n in layer.received}
    alive: dict[str, Crossing] = {}
    cuts = []
    for k, layer in enumerate(graph.layers[:-1]):
        member = classes.members[k]
        pattern = classes.priced(member)
        for name, own in zip(layer.sent, pattern.sent, strict=True):
            alive[name] = Crossing(slots[name], member, own)
        alive = {name: crossing for name, crossing in alive.items() if last[name] > k}
        cuts.append(tuple(sorted(alive.values(), key=lambda c: c.slot)))
    return tuple(cuts)


# ---- one layer of each class


def reduce(graph: Graph, classes: Classes) -> tuple[Graph, Classes]:
    """The graph with one layer of each class: all that planning and emission look at.

    Ops are numbered anew; the plan file then does not grow with the depth of the model.
    """
    graph, classes = _separate(graph, classes)
    kept = sorted({i for p in classes.patterns.values() for i in p.ops} | set(graph.context))
    number = {old: new for new, old in enumerate(kept)}
    ops = tuple(graph.ops[i] for i in kept)
    boundary = {n for p in classes.patterns.values() for n in (*p.received, *p.sent)}
    used = dict.fromkeys([*(n for op in ops for n in (*op.inputs(), *op.outputs))])
    extra = sorted((boundary | set(graph.inputs.values())) - set(used))
    units = {op.unit for op in ops}
    reduced = dataclasses.replace(
        graph,
        ops=ops,
        values={n: graph.values[n] for n in [*used, *extra]},
        calls={path: call for path, call in graph.calls.items() if path in units},
        context=tuple(number[i] for i in graph.context),
        saved={number[i]: saved for i, saved in graph.saved.items() if i in number},
    )
    return reduced, dataclasses.replace(
        classes,
        patterns={n: _renumber(p, number) for n, p in classes.patterns.items()},
        parts={n: _renumber(p, number) for n, p in classes.parts.items()},
    )


def _renumber(pattern: Pattern, number: dict[int, int]) -> Pattern:
    return dataclasses.replace(pattern, ops=tuple(number[i] for i in pattern.ops))


def _separate(graph: Graph, classes: Classes) -> tuple[Graph, Classes]:
    """Gives what one part makes and another receives a second name where it is received.

    Between them it has the boundary's state, whatever the states in which both parts use it.
    """
    made = {o for p in classes.parts.values() for i in p.ops for o in graph.ops[i].outputs}
    ops, values, saved, calls = (
        list(graph.ops),
        dict(graph.values),
        {**graph.saved},
        {**graph.calls},
    )
    parts = dict(classes.parts)
    for name, part in classes.parts.items():
        names = {n: f"{n}_received" for n in part.received if n in made}
        if not names:
            continue
        values |= {new: dataclasses.replace(values[old], name=new) for old, new in names.items()}
        for i in part.ops:
            op = ops[i]
            ops[i] = dataclasses.replace(
                op, args=substitute(op.args, names), kwargs=substitute(op.kwargs, names)
            )
            saved |= {i: _renamed_saved(saved[i], names)} if i in saved else {}
            if op.unit in calls:
                calls[op.unit] = _renamed_call(calls[op.unit], names)
        parts[name] = dataclasses.replace(
            part,
            received=tuple(names.get(n, n) for n in part.received),
            chained=frozenset(names.get(n, n) for n in part.chained)
            | part.chained.intersection(part.sent),
        )
    patterns = dict(classes.patterns)
    if parts:
        patterns[ENDS] = _ends(parts.values())
    graph = dataclasses.replace(graph, ops=tuple(ops), values=values, saved=saved, calls=calls)
    return graph, dataclasses.replace(classes, patterns=patterns, parts=parts)


def _renamed_saved(saved: Saved, names: dict[str, str]) -> Saved:
    return dataclasses.replace(saved, values=tuple(names.get(n, n) for n in saved.values))


def _renamed_call(call: Call, names: dict[str, str]) -> Call:
    return dataclasses.replace(
        call, args=substitute(call.args, names), kwargs=substitute(call.kwargs, names)
    )


def restrict(sharding: Sharding, pattern: Pattern, graph: Graph) -> Sharding:
    """The share of a sharding that belongs to one part of its pattern."""
    strategies = {i: sharding.strategies[i] for i in pattern.ops}
    needs = {(n, s) for strategy in strategies.values() for n, s in strategy.inputs}
    made = {o for i in pattern.ops for o in graph.ops[i].outputs}
    needs |= {(n, sharding.boundary[n]) for n in pattern.sent}
    needs |= {(graph.loss, R)} if graph.loss in made else set()
    moves = tuple(m for m in sharding.moves if (m.value, m.target) in needs)
    used = {n for i in pattern.ops for n in graph.ops[i].inputs()}
    parameters = {n: s for n, s in sharding.parameters.items() if n in used}
    return dataclasses.replace(sharding, strategies=strategies, moves=moves, parameters=parameters)
