"""Which values share memory, and which of a divided layer's variables its code lets go of.

A variable holds its tensor until the function ends, where eager code of several modules had
returned. So the code of a divided layer deletes those of large tensors that no operation saves,
behind their last reader; what is small stays.
"""

from __future__ import annotations

from autopar.graph import Graph, Op
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.views import RESHAPES
from autopar.trace.aliases import ALIASES
from autopar.trace.saved import observe_saved, views_of


def memory_roots(ops: list[Op], graph: Graph, views: frozenset[str] = ALIASES) -> dict[str, str]:
    """The value whose memory each value shares; an expanded view that is reshaped is a copy."""
    roots: dict[str, str] = {}
    for op in ops:
        name = op.target.split(".")[1]
        if name not in views:
            continue
        source = op.args[0].name
        root = roots.get(source, source)
        for out in op.outputs:
            larger = graph.values[out].bytes(1) > graph.values[root].bytes(1)
            if name not in RESHAPES or not larger:
                roots[out] = root
    return roots


def with_biases(graph: Graph, roots: dict[str, str]) -> dict[str, str]:
    """The same, where a product to which one call adds a bias along is what it is added to."""
    fused = {
        graph.ops[added].outputs[0]: graph.ops[product].outputs[0]
        for added, product in graph.biased.items()
    }
    return {**{n: fused.get(root, root) for n, root in roots.items()}, **fused}


def released(graph: Graph, pattern: Pattern, sharding: Sharding) -> frozenset[str]:
    """The values whose variables the layer's code deletes, views of each other included.

    A plan does not tell what operations save: those that touch something large are observed.
    """
    limit = largest_kept(graph, pattern, sharding)
    ops = [graph.ops[i] for i in pattern.ops]
    roots = with_biases(graph, memory_roots(ops, graph))
    made = {name: roots.get(name, name) for op in ops for name in op.outputs}
    values = {root: graph.values[root] for root in made.values()}
    large = {n for n, v in values.items() if v.kind == "activation" and v.bytes(1) > limit}
    large -= {roots.get(name, name) for name in pattern.sent}
    for index, op in zip(pattern.ops, ops, strict=True):
        if large.isdisjoint(roots.get(n, n) for n in (*op.inputs(), *op.outputs)):
            continue
        saved = graph.saved.get(index) or observe_saved(op, graph.values, views_of(ops))
        large -= {roots.get(name, name) for name in saved.values}
    return frozenset(name for name, root in made.items() if root in large)


def largest_kept(graph: Graph, pattern: Pattern, sharding: Sharding) -> float:
    """Bytes, for one sample, of the smallest activation between this and the next layers.

    What is no larger has a variable as long as the code likes. Endless for what is no divided
    block: other code is not one function.
    """
    divided = sharding.tp > 1 and not sharding.unsplit and pattern.name in graph.calls
    chained = [graph.values[n].bytes(1) for n in pattern.chained if n in graph.values]
    return min(chained, default=float("inf")) if divided else float("inf")
