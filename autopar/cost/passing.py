"""What a layer's forward makes and nothing saves, and for how long."""

from __future__ import annotations

from typing import NamedTuple

from autopar.cost.activations import Tensors
from autopar.graph import DTYPE_BYTES, Graph
from autopar.strategies.memory import largest_kept, memory_roots, with_biases
from autopar.strategies.sharding import Pattern, Sharding, local_elements


class Passing(NamedTuple):
    """A value that no operation saves: which makes it, which reads it last, and its bytes.

    Where it is ``released`` no variable holds it for longer, see ``strategies/memory.py``.
    """

    value: str
    made: int
    read: int
    bytes: int
    released: bool


def passing(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int, saved: Tensors
) -> list[Passing]:
    """What forward makes for a micro-batch and no operation saves; these are ``saved``."""
    ops = [graph.ops[i] for i in pattern.ops]
    roots = with_biases(graph, memory_roots(ops, graph))
    kept = {roots.get(name, name) for name, _ in saved}
    readers = {roots.get(n, n): k for k, op in enumerate(ops) for n in op.inputs()}
    end, returned = len(ops) - 1, {roots.get(n, n) for n in pattern.sent}
    limit = largest_kept(graph, pattern, sharding)
    found = []
    for place, index in enumerate(pattern.ops):
        for name, state in zip(ops[place].outputs, sharding.strategies[index].outputs, strict=True):
            value = graph.values[name]
            if name in roots or name in kept or value.kind != "activation":
                continue
            size = local_elements(value, state, sharding.tp, batch) * DTYPE_BYTES[value.dtype]
            last = end if name in returned else readers.get(name, place)
            large = name not in returned and value.bytes(1) > limit
            found.append(Passing(name, place, last, size, large))
    return found
