"""What autograd keeps between forward and backward, observed op by op on ``meta``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from autopar.graph import Graph, Op, Saved, Value, refs
from autopar.trace.aliases import ALIASES
from autopar.trace.interpret import run
from autopar.trace.opaque import OPAQUE, OpaqueCall

# The fused kernels keep queries, keys, values, the result and one statistic per row;
# on meta torch shows the unfused kernel, which runs only where the bias needs a gradient.
_ATTENTION = "aten.scaled_dot_product_attention.default"
_BATCH = 2
# On meta these take the fused cells of GPUs; a CPU has kernels of its own, whose workspace is
# padded: few samples would not tell how it grows, nor many how much it is at least.
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_SAMPLES = (1, 2, 4, 16)
# The ops that view another tensor, by what they make.
Views = Mapping[str, Op]


def views_of(ops: Iterable[Op]) -> Views:
    """Which of the ops makes which view."""
    viewing = (op for op in ops if op.target.split(".")[1] in ALIASES)
    return {name: op for op in viewing for name in op.outputs}


def observe_saved(op: Op, values: dict[str, Value], views: Views) -> Saved:
    """Runs ``op`` on ``meta`` and records every tensor that its backward will need.

    What it reads lies in memory as the ``views`` of its layer leave it: a product of a transposed
    tensor copies it and keeps the copy.
    """
    if not any(values[o].requires_grad for o in op.outputs):
        return Saved(())
    if op.target == OPAQUE:
        call = OpaqueCall.of(op)
        return Saved(call.tensors(), call.saved_bytes)
    if op.target == _ATTENTION and not any(values[n].requires_grad for n in _bias(op)):
        query = values[op.args[0].name]
        statistic = query.elements(1) // query.shape[-1].coefficient * 4
        return Saved((*(a.name for a in op.args[:3]), *op.outputs), statistic)
    return _grown(op, values, "meta", (_BATCH, 2 * _BATCH), views)


def saved_on_cpu(graph: Graph) -> Graph:
    """The graph with what recurrent operations keep on a CPU, seen by running them there.

    They run on zeros, with weights of their own size.
    """
    seen = {
        index: _grown(graph.ops[index], graph.values, "cpu", _SAMPLES, {})
        for index, saved in graph.saved.items()
        if graph.ops[index].target.split(".")[1] in RECURRENT and saved != Saved(())
    }
    return dataclasses.replace(graph, saved={**graph.saved, **seen}) if seen else graph


def _grown(
    op: Op, values: dict[str, Value], device: str, batches: tuple[int, ...], views: Views
) -> Saved:
    """What is kept: by value, and a bound on the rest that grows as between the largest batches."""

    def kept(batch: int) -> tuple[tuple[str, ...], int]:
        inputs = {n: _stand_in(n, values, views, batch, device) for n in op.inputs()}
        return _run_and_watch(op, inputs, batch, device)

    names, first = kept(batches[0])
    if not first:
        return Saved(names)
    extra = {n: kept(n)[1] for n in batches[1:]} | {batches[0]: first}
    few, many = batches[-2:]
    per_sample = max(0, extra[many] - extra[few]) // (many - few)
    return Saved(names, per_sample, max(0, *(extra[n] - n * per_sample for n in batches)))


def _bias(op: Op) -> tuple[str, ...]:
    """What an attention adds to its scores."""
    return tuple(dict.fromkeys(refs((op.args[3:], op.kwargs))))


def _run_and_watch(
    op: Op, env: dict[str, Tensor], batch: int, device: str
) -> tuple[tuple[str, ...], int]:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run(op, env, batch, device)
    owners = {_storage(t): name for name, t in env.items()}
    owners.update({_storage(t): n for n, t in zip(op.outputs, outputs, strict=True)})
    names = dict.fromkeys(owners[_storage(t)] for t in kept if _storage(t) in owners)
    extra = {_storage(t): t.untyped_storage().nbytes() for t in kept if _storage(t) not in owners}
    return tuple(names), sum(extra.values())


def _stand_in(name: str, values: dict[str, Value], views: Views, batch: int, device: str) -> Tensor:
    """A tensor with memory of its own, whose dims lie in it as those of the value do."""
    value = values[name]
    shape = [size.at(batch) for size in value.shape]
    dtype = getattr(torch, value.dtype)
    if name in views:
        stride = _stride(name, values, views, batch)
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    else:
        tensor = torch.zeros(shape, dtype=dtype, device=device)
    return tensor.requires_grad_(value.requires_grad)


def _stride(name: str, values: dict[str, Value], views: Views, batch: int) -> tuple[int, ...]:
    """Elements between the neighbours along every dim of a view."""
    maker = views[name]
    env = {n: _stand_in(n, values, views, batch, "meta") for n in maker.inputs()}
    with torch.no_grad():
        made = run(maker, env, batch, "meta")[maker.outputs.index(name)]
    return tuple(made.stride())


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
