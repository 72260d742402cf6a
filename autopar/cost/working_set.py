"""What a sharded layer holds at its fullest moment, operation by operation.

Autograd lets go of what an operation saved when its backward has run, so the gradients in front of
a layer never meet what is saved behind. Forward is followed as well: what nothing saves is there
until it has been read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from autopar.cost import activations
from autopar.cost.activations import Tensors
from autopar.cost.passing import passing
from autopar.graph import DTYPE_BYTES, Graph
from autopar.strategies.memory import memory_roots, with_biases
from autopar.strategies.sharding import Pattern, Sharding, local_elements
from autopar.strategies.statistics import is_synchronised
from autopar.trace.aliases import RESHAPED

Span = tuple[int, int, int]


class WorkingSet(NamedTuple):
    """Bytes of activations and their gradients on one rank, for one micro-batch of a layer.

    ``backward`` is the most that backward holds, ``summed`` with the gradients of parameters that
    it is about to add up. ``forward`` is the most that forward holds. ``repeated`` is the most
    while selective recomputation runs forward again: what it kept is there until it is read.
    """

    backward: int
    summed: int
    forward: int
    repeated: int


def working_set(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int, saved: Tensors
) -> WorkingSet:
    """Follows one micro-batch through a layer that saves these tensors."""
    steps = range(len(pattern.ops))
    extra = [activations.extra_of(graph, sharding, index, batch) for index in pattern.ops]
    inside = [_inside(graph, sharding, index, batch) for index in pattern.ops]
    there = _saved_spans(graph, pattern, sharding, saved)
    grads = list(activations.gradient_spans(graph, pattern, sharding, batch))
    grads += _added(graph, pattern, sharding, batch)
    last = len(pattern.ops) - 1
    back = _levels(last, ((first, last, size) for _, first, size in there), grads)
    kept = list(accumulate(extra))
    fresh = _parameter_bytes(graph, pattern, sharding)
    met, early = _read_again(graph, pattern, sharding)
    behind = [back[k] + kept[k] + inside[k] for k in steps]
    unsaved = passing(graph, pattern, sharding, batch, saved)
    spans = ((p.made, p.read, p.bytes) for p in unsaved)
    levels = _levels(last, ((made, last, size) for made, _, size in there), spans)
    # Variables may hold some of the rest for longer. To count all of it until the layer ends was
    # tried: up to 73 % too high, for names are used again and most values have none.
    divided = sharding.tp > 1 and not sharding.unsplit
    named = max((p.bytes for p in unsaved if not p.released), default=0) if divided else 0
    ahead = [levels[k] + kept[k] + inside[k] + named for k in steps]
    waiting = _kept_after(graph, pattern, sharding, batch)
    context = context_bytes(graph, pattern, batch)
    return WorkingSet(
        backward=context + max((behind[k] + met[k] for k in steps), default=0),
        summed=context + max((behind[k] + fresh[k] + early[k] for k in steps), default=0),
        forward=context + max(ahead, default=0),
        repeated=context + max((ahead[k] + waiting[k] for k in steps), default=0),
    )


def _inside(graph: Graph, sharding: Sharding, index: int, batch: int) -> int:
    """What an operation has inside while it runs, in either direction.

    As much as it keeps of that, if it is not step by step. A normalisation over the samples is
    written out in programs, and has a copy of its result.
    """
    op, strategy = graph.ops[index], sharding.strategies[index]
    own = 0 if activations.is_stepwise(op) else activations.extra_of(graph, sharding, index, batch)
    if not is_synchronised(op):
        return own
    value, state = graph.values[op.outputs[0]], strategy.outputs[0]
    return own + local_elements(value, state, sharding.tp, batch) * DTYPE_BYTES[value.dtype]


def context_bytes(graph: Graph, pattern: Pattern, batch: int) -> int:
    """Masks, rotary tables and the like that the layer reads: whole, and on a stage once."""
    ops = [graph.ops[i] for i in graph.context]
    roots, made = memory_roots(ops, graph), {n for op in ops for n in op.outputs}
    read = {n for i in pattern.ops for n in graph.ops[i].inputs() if n in made}
    values = (graph.values[n] for n in {roots.get(n, n) for n in read})
    return sum(value.bytes(batch) for value in values if value.kind == "activation")


def _levels(last: int, *spans: Iterable[Span]) -> list[int]:
    """For each operation the bytes of all that is there while it runs."""
    change = [0] * (last + 2)
    for first, end, size in (span for group in spans for span in group):
        change[first] += size
        change[end + 1] -= size
    return list(accumulate(change[:-1]))


def _saved_spans(graph: Graph, pattern: Pattern, sharding: Sharding, saved: Tensors) -> list[Span]:
    """Of each saved tensor the operation that made it, the first that saves it, and its bytes."""
    first = activations.savers(graph, pattern, sharding)
    maker = {name: k for k, i in enumerate(pattern.ops) for name in graph.ops[i].outputs}
    # What is saved of a product with a bias is there from the product on.
    maker |= {graph.ops[a].outputs[0]: maker[graph.ops[p].outputs[0]]
              for a, p in graph.biased.items() if graph.ops[p].outputs[0] in maker}  # fmt: skip
    return [(maker.get(key[0], 0), first.get(key, (0, 0))[0], size) for key, size in saved.items()]


def _added(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> Iterator[Span]:
    """Gradients of what several operations read: where two meet their sum is new."""
    ops = [graph.ops[i] for i in pattern.ops]
    roots = with_biases(graph, memory_roots(ops, graph, RESHAPED))
    later: set[str] = set(pattern.sent)
    for place in reversed(range(len(ops))):
        strategy = sharding.strategies[pattern.ops[place]]
        if ops[place].target.split(".")[1] in RESHAPED:
            continue
        for name, state in strategy.inputs:
            root = graph.values[roots.get(name, name)]
            same = root.name in {roots.get(n, n) for n in ops[place].outputs}
            if same or root.kind != "activation" or not root.requires_grad:
                continue
            if root.name in later:
                held = local_elements(root, state, sharding.tp, batch) * DTYPE_BYTES[root.dtype]
                yield place, place, held
            later.add(root.name)


def _parameter_bytes(graph: Graph, pattern: Pattern, sharding: Sharding) -> list[int]:
    """Gradients of parameters, or of views of them, that the backward of each operation makes."""
    roots = memory_roots([graph.ops[i] for i in pattern.ops], graph)
    return [
        sum(
            local_elements(graph.values[n], state, sharding.tp, 1)
            * DTYPE_BYTES[graph.values[n].dtype]
            for n, state in sharding.strategies[index].inputs
            if graph.values[roots.get(n, n)].kind == "parameter" and graph.values[n].requires_grad
        )
        for index in pattern.ops
    ]


def _read_again(graph: Graph, pattern: Pattern, sharding: Sharding) -> tuple[list[int], list[int]]:
    """Gradients of parameters that several operations read, of which autograd makes one first.

    For each operation the bytes beside those that the step holds, where there are no earlier
    micro-batches, and beside those and ``_parameter_bytes`` where there are. A gradient waits from
    the backward of the last reader to that of the first; where another meets it their sum is new.
    """
    readers: dict[str, list[tuple[int, int]]] = {}
    for place, index in enumerate(pattern.ops):
        for name, state in sharding.strategies[index].inputs:
            value = graph.values[name]
            if value.kind == "parameter" and value.requires_grad:
                held = local_elements(value, state, sharding.tp, 1) * DTYPE_BYTES[value.dtype]
                readers.setdefault(name, []).append((place, held))
    met, waiting = [0] * len(pattern.ops), [0] * len(pattern.ops)
    for places in (places for places in readers.values() if len(places) > 1):
        last, held = places[-1]
        for place in range(places[0][0], last):
            waiting[place] += held
        for place, _ in places[:-1]:
            met[place] += 2 * held
            waiting[place] += held
    return met, waiting


def _kept_after(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> list[int]:
    """What selective recomputation has kept of operations behind each."""
    sizes = []
    for index in pattern.ops:
        strategy, op = sharding.strategies[index], graph.ops[index]
        own = activations.extra_of(graph, sharding, index, batch)
        own += sum(
            graph.values[n].bytes(batch) // (sharding.tp if state.kind == "S" else 1)
            for n, state in zip(op.outputs, strategy.outputs, strict=True)
        )
        learned = any(graph.values[n].requires_grad for n in op.outputs)
        sizes.append(own if activations.is_kept(op) and learned else 0)
    behind = list(accumulate(reversed(sizes), initial=0))[::-1]
    return behind[1:]
