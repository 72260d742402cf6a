"""The layer classes of a graph, each represented by its first member."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from autopar.graph import Graph, Layer
from autopar.strategies.sharding import Pattern, Sharding

ENDS = "ends"


@dataclass(frozen=True)
class Classes:
    """The classes of a graph's layers.

    ``patterns`` are what the op-level optimisation shards: one per class of blocks, and
    ``ends`` for embedding and head together, which may share a parameter. ``members[i]`` is
    the class of layer i: the pattern's name for a block, "embedding" or "head" otherwise.
    ``parts`` are these two on their own, to be priced where they run.
    """

    patterns: dict[str, Pattern]
    parts: dict[str, Pattern]
    members: tuple[str, ...]

    def home(self, member: str) -> str:
        """The pattern whose sharding holds for a member."""
        return ENDS if member in self.parts else member

    def priced(self, member: str) -> Pattern:
        """The pattern that a member is priced by."""
        return self.parts.get(member) or self.patterns[member]


def find_classes(graph: Graph) -> Classes:
    """Groups the layers of ``graph`` by signature."""
    maker = {
        out: number
        for number, layer in enumerate(graph.layers)
        for i in layer.ops
        for out in graph.ops[i].outputs
    }
    patterns: dict[str, Pattern] = {}
    parts: dict[str, Pattern] = {}
    for index, layer in enumerate(graph.layers):
        pattern = Pattern(
            layer.name, layer.ops, _received(graph, index, maker), _sent(graph, index)
        )
        if layer.kind == "block":
            patterns.setdefault(layer.signature, pattern)
        else:
            parts[layer.name] = pattern
    members = tuple(ly.signature if ly.kind == "block" else ly.name for ly in graph.layers)
    if parts:
        patterns[ENDS] = _ends(list(parts.values()))
    return Classes(patterns, parts, members)


def reduce(graph: Graph, classes: Classes) -> tuple[Graph, Classes]:
    """The graph with one layer of each class: all that planning and emission look at.

    Ops are numbered anew; the plan file then does not grow with the depth of the model.
    """
    kept = sorted({i for p in classes.patterns.values() for i in p.ops} | set(graph.context))
    number = {old: new for new, old in enumerate(kept)}
    ops = tuple(graph.ops[i] for i in kept)
    boundary = {n for p in classes.patterns.values() for n in (p.received, p.sent) if n}
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


def _ends(parts: list[Pattern]) -> Pattern:
    """Embedding and head as one: it sends what the first sends and receives what the last does."""
    ops = tuple(i for part in parts for i in part.ops)
    return Pattern(ENDS, ops, parts[-1].received, parts[0].sent)


def _received(graph: Graph, index: int, maker: dict[str, int]) -> str | None:
    found = [n for n in graph.layers[index].inputs if maker.get(n, index) == index - 1]
    return found[0] if found else None


def _sent(graph: Graph, index: int) -> str | None:
    if index + 1 == len(graph.layers):
        return None
    following: Layer = graph.layers[index + 1]
    found = [n for n in graph.layers[index].outputs if n in following.inputs]
    return found[0] if found else None


def restrict(sharding: Sharding, pattern: Pattern, graph: Graph) -> Sharding:
    """The share of a sharding that belongs to one part of its pattern."""
    strategies = {i: sharding.strategies[i] for i in pattern.ops}
    needs = {(n, s) for strategy in strategies.values() for n, s in strategy.inputs}
    made = {o for i in pattern.ops for o in graph.ops[i].outputs}
    moves = tuple(
        m for m in sharding.moves
        if (m.value, m.target) in needs or (m.value == pattern.sent and m.value in made)
    )  # fmt: skip
    used = {n for i in pattern.ops for n in graph.ops[i].inputs()}
    parameters = {n: s for n, s in sharding.parameters.items() if n in used}
    return dataclasses.replace(sharding, strategies=strategies, moves=moves, parameters=parameters)
