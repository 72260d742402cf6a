"""Bytes of a sharded layer's activations: what backward needs, and what it has at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from autopar.graph import DTYPE_BYTES, Graph, Op, refs
from autopar.strategies.memory import memory_roots, with_biases
from autopar.strategies.sharding import Pattern, Sharding, local_elements
from autopar.trace.aliases import ALIASES, RESHAPED
from autopar.trace.saved import RECURRENT

# What selective recomputation keeps the results of, as KEEP does in the emitted program.
KEPT = frozenset({
    "linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "convolution",
    "scaled_dot_product_attention",
})  # fmt: skip

# Collectives that put what arrives in order, or do so before they send it.
_ORDERED = {"all_gather", "reduce_scatter", "all_to_all"}

Tensors = dict[tuple[str, bool], int]


class Hosted(NamedTuple):
    """Bytes of a layer's activations in host memory, and what backward has at most at one moment.

    ``fetched_bytes`` are those that came back, what operations kept inside, and gradients.
    """

    moved_bytes: int
    fetched_bytes: int


NOT_HOSTED = Hosted(0, 0)


def crossing_bytes(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int
) -> tuple[int, int]:
    """Bytes of the activations that enter and that leave, on one rank.

    What several layers read is counted where it is made.
    """
    chained = (n for n in pattern.received if n in pattern.chained)
    received, sent = (
        sum(boundary_bytes(graph, sharding, n, batch) for n in names)
        for names in (chained, pattern.sent)
    )
    return received, sent


def boundary_bytes(graph: Graph, sharding: Sharding, name: str, batch: int) -> int:
    """Bytes on one rank of an activation between layers."""
    value = graph.values[name]
    elements = local_elements(value, sharding.boundary[name], sharding.tp, batch)
    return elements * DTYPE_BYTES[value.dtype]


def saved_tensors(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> Tensors:
    """Bytes of what backward needs: each tensor once, in the state in which it is kept.

    By the value whose memory it is, and whether that is a shard. What several layers read is
    kept where it is made, or where it was received into.
    """
    ops = [graph.ops[i] for i in pattern.ops]
    roots, made = memory_roots(ops, graph), {name for op in ops for name in op.outputs}
    elsewhere = set(pattern.received) - pattern.chained
    kept: Tensors = {}
    for name, size in handed_bytes(graph, pattern, sharding, batch).items():
        kept[roots.get(name, name), False] = size
    for index in pattern.ops:
        op, strategy, saved = graph.ops[index], sharding.strategies[index], graph.saved[index]
        states = {**dict(zip(op.outputs, strategy.outputs, strict=True)), **dict(strategy.inputs)}
        for name in saved.values:
            root = graph.values[roots.get(name, name)]
            # A view of a parameter stays anyway; what has no gradient is the layer's if it made it.
            if root.kind != "activation" or not (root.requires_grad or root.name in made):
                continue
            split = states[name].kind == "S"
            if split or root.name not in elsewhere:
                own = graph.values[name].bytes(batch)
                kept[root.name, split] = _held(root.bytes(batch), own, sharding.tp if split else 1)
    return kept


def _held(root_bytes: int, own_bytes: int, parts: int) -> int:
    """Bytes on one rank of the memory behind a value, of which it has a part of so many.

    What is expanded may be whole on every rank although its copies are divided.
    """
    return max(root_bytes // parts, min(root_bytes, own_bytes // parts))


def handed_bytes(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> dict[str, int]:
    """Bytes of the results that not only the next layer reads."""
    names = set(pattern.sent) - pattern.chained
    return {name: boundary_bytes(graph, sharding, name, batch) for name in names}


def extra_bytes(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> int:
    """Bytes that ops make inside and keep for their backward."""
    return sum(extra_of(graph, sharding, index, batch) for index in pattern.ops)


def has_extra(graph: Graph, index: int) -> bool:
    """Whether the op makes something inside and keeps it for its backward."""
    return graph.saved[index].extra_bytes + graph.saved[index].fixed_bytes > 0


def extra_of(graph: Graph, sharding: Sharding, index: int, batch: int) -> int:
    """Bytes that one op makes inside and keeps; those of any batch are a parameter's in a copy."""
    strategy, saved = sharding.strategies[index], graph.saved[index]
    split = strategy.outputs[0].kind == "S" or strategy.special
    divided = any(s.kind == "S" and graph.values[n].kind == "parameter" for n, s in strategy.inputs)
    grown = saved.extra_bytes * batch // (sharding.tp if split else 1)
    return grown + saved.fixed_bytes // (sharding.tp if divided else 1)


def is_kept(op: Op) -> bool:
    """Whether selective recomputation keeps the results of the op."""
    return op.target.split(".")[1] in KEPT


def can_keep(graph: Graph, pattern: Pattern) -> bool:
    """Whether selective recomputation works: something is kept, and nothing changes it in place."""
    ops = [graph.ops[i] for i in pattern.ops]
    roots = memory_roots(ops, graph)
    kept = {out for op in ops if is_kept(op) for out in op.outputs}
    changed = {roots.get(n, n) for op in ops if op.inplace for n in op.inputs()}
    return bool(kept) and not kept & changed


def kept_tensors(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int
) -> tuple[Tensors, int]:
    """Bytes of the results of the kept ops that have a gradient, and of what comes with them."""
    kept: Tensors = {}
    extra = 0
    for index in pattern.ops:
        op, strategy = graph.ops[index], sharding.strategies[index]
        if not is_kept(op) or not any(graph.values[n].requires_grad for n in op.outputs):
            continue
        extra += extra_of(graph, sharding, index, batch)
        for name, state in zip(op.outputs, strategy.outputs, strict=True):
            split = state.kind == "S"
            kept[name, split] = graph.values[name].bytes(batch) // (sharding.tp if split else 1)
    return kept, extra


def transient_bytes(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int
) -> tuple[int, int]:
    """Largest working set of one op's backward: gradients of its results and of its inputs.

    Of activations alone, and with the gradients of parameters, which are new beside their sum.
    """
    largest = summed = 0
    roots = memory_roots([graph.ops[i] for i in pattern.ops], graph)
    for index in pattern.ops:
        op, strategy = graph.ops[index], sharding.strategies[index]
        if op.target.split(".")[1] in RESHAPED:
            continue
        states = [*strategy.inputs, *zip(op.outputs, strategy.outputs, strict=True)]
        total, fresh = 0 if is_stepwise(op) else extra_of(graph, sharding, index, batch), 0
        for name, state in states:
            value = graph.values[name]
            if not value.requires_grad:
                continue
            held = local_elements(value, state, sharding.tp, batch) * DTYPE_BYTES[value.dtype]
            if graph.values[roots.get(name, name)].kind == "parameter":
                fresh += held
            else:
                total += held
        largest, summed = max(largest, total), max(summed, total + fresh)
    return largest, summed


def hosted(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int, saved: Tensors
) -> Hosted:
    """Where activations wait in host memory: how many bytes do, and what backward has at most.

    What is ``saved`` comes back with the first operation of backward that reads it and goes with
    the last. The first tensor that a block is called with is moved too, if the block saves it, even
    where further layers read it. What is handed on stays.
    """
    taken = _taken(graph, pattern, sharding, batch)
    handed = handed_bytes(graph, pattern, sharding, batch)
    moved = {key: size for key, size in {**taken, **saved}.items() if key[0] not in handed}
    change = [0] * (len(pattern.ops) + 1)
    known = savers(graph, pattern, sharding)
    spans = ((*known[key], size) for key, size in moved.items() if key in known)
    for first, last, size in [*spans, *gradient_spans(graph, pattern, sharding, batch)]:
        change[first] += size
        change[last + 1] -= size
    extra = [extra_of(graph, sharding, index, batch) for index in pattern.ops]
    pairs = [(graph.ops[i], own) for i, own in zip(pattern.ops, extra, strict=True)]
    back = (own // _turns(op) + (0 if is_stepwise(op) else own) for op, own in pairs)
    there = [held + own for held, own in zip(accumulate(change), back, strict=False)]
    # A gather over tp has the whole tensor twice: as it arrives, and in order.
    sizes = [
        graph.values[m.value].bytes(batch)
        for m in sharding.moves
        if _ORDERED & {m.move.forward, m.move.backward}
    ]
    most = max(there, default=0) + max(sizes, default=0)
    return Hosted(sum(moved.values()) + sum(extra), most)


def is_stepwise(op: Op) -> bool:
    """Whether what the op makes inside has no gradients of its size: it goes back step by step."""
    return op.target.split(".")[1] in RECURRENT


def _turns(op: Op) -> int:
    """How many parts of an op go back one after the other: layers and directions."""
    if not is_stepwise(op):
        return 1
    form = op.target.split(".")[2]
    layers, _, _, both_ways = op.args[-4:] if form == "data" else op.args[-5:-1]
    return int(layers) * (2 if both_ways else 1)


def _taken(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> Tensors:
    """The first tensor that a block is called with, if further layers read it too."""
    call = graph.calls.get(pattern.name)
    first = next(refs((call.args, call.kwargs)), "") if call else ""
    if first not in set(pattern.received) - pattern.chained:
        return {}
    roots = memory_roots([graph.ops[i] for i in pattern.ops], graph)
    saved = {roots.get(name, name) for i in pattern.ops for name in graph.saved[i].values}
    return {(first, False): boundary_bytes(graph, sharding, first, batch)} if first in saved else {}


def savers(
    graph: Graph, pattern: Pattern, sharding: Sharding
) -> dict[tuple[str, bool], tuple[int, int]]:
    """Of each tensor (see ``saved_tensors``) the first and the last operation that saves it."""
    roots = memory_roots([graph.ops[i] for i in pattern.ops], graph)
    by: dict[tuple[str, bool], list[int]] = {}
    for place, index in enumerate(pattern.ops):
        op, strategy = graph.ops[index], sharding.strategies[index]
        states = {**dict(zip(op.outputs, strategy.outputs, strict=True)), **dict(strategy.inputs)}
        for name in graph.saved[index].values:
            split = name in states and states[name].kind == "S"
            by.setdefault((roots.get(name, name), split), []).append(place)
    return {key: (places[0], places[-1]) for key, places in by.items()}


def gradient_spans(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int
) -> Iterator[tuple[int, int, int]]:
    """Of each gradient between which operations' backward it is there, and its bytes.

    From that of the value's last reader, or of the layer, to that of its maker.
    """
    ops = [graph.ops[i] for i in pattern.ops]
    roots = with_biases(graph, memory_roots(ops, graph, RESHAPED))
    sent = {roots.get(name, name) for name in pattern.sent}
    spans: dict[str, tuple[int, int, int]] = {}
    for place, index in enumerate(pattern.ops):
        strategy = sharding.strategies[index]
        made = zip(ops[place].outputs, strategy.outputs, strict=True)
        for name, state in (*strategy.inputs, *made):
            root = graph.values[roots.get(name, name)]
            if root.kind != "activation" or not root.requires_grad:
                continue
            held = local_elements(root, state, sharding.tp, batch) * DTYPE_BYTES[root.dtype]
            first, _, size = spans.get(root.name, (0 if name in pattern.received else place, 0, 0))
            last = len(ops) - 1 if root.name in sent else place
            spans[root.name] = first, last, max(size, held)
    return iter(spans.values())


def waiting_bytes(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> int:
    """Gradients that torch keeps for those of the parameters: one per op that reads any.

    Those of what only adds a parameter are those of the sum, and exist once.
    """
    total = 0
    for index in pattern.ops:
        op, strategy = graph.ops[index], sharding.strategies[index]
        reads = any(graph.values[n].kind == "parameter" for n in op.inputs())
        if not reads or op.target.split(".")[1] in ALIASES | {"add"}:
            continue
        for name, state in zip(op.outputs, strategy.outputs, strict=True):
            value = graph.values[name]
            if value.requires_grad:
                held = local_elements(value, state, sharding.tp, batch)
                total += held * DTYPE_BYTES[value.dtype]
    return total
