"""What autograd keeps between forward and backward, observed op by op on ``meta``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autopar.graph import Op, Saved, Value, refs
from autopar.trace.interpret import run
from autopar.trace.opaque import OPAQUE, OpaqueCall

# The fused kernels keep queries, keys, values, the result and one statistic per row;
# on meta torch shows the unfused kernel, which runs only where the bias needs a gradient.
_ATTENTION = "aten.scaled_dot_product_attention.default"
_BATCH = 2


def observe_saved(op: Op, values: dict[str, Value]) -> Saved:
    """Runs ``op`` on ``meta`` and records every tensor that its backward will need."""
    if not any(values[o].requires_grad for o in op.outputs):
        return Saved(())
    if op.target == OPAQUE:
        call = OpaqueCall.of(op)
        return Saved(call.tensors(), call.saved_bytes)
    if op.target == _ATTENTION and not any(values[n].requires_grad for n in _bias(op)):
        query = values[op.args[0].name]
        statistic = query.elements(1) // query.shape[-1].coefficient * 4
        return Saved((*(a.name for a in op.args[:3]), *op.outputs), statistic)
    names, extra = _run_and_watch(op, values, _BATCH)
    more = _run_and_watch(op, values, 2 * _BATCH)[1] if extra else 0
    per_sample = max(0, more - extra) // _BATCH
    return Saved(names, per_sample, max(0, extra - _BATCH * per_sample))


def _bias(op: Op) -> tuple[str, ...]:
    """What an attention adds to its scores."""
    return tuple(dict.fromkeys(refs((op.args[3:], op.kwargs))))


def _run_and_watch(op: Op, values: dict[str, Value], batch: int) -> tuple[tuple[str, ...], int]:
    env = {name: _stand_in(values[name], batch) for name in op.inputs()}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run(op, env, batch, "meta")
    owners = {_storage(t): name for name, t in env.items()}
    owners.update({_storage(t): n for n, t in zip(op.outputs, outputs, strict=True)})
    names = dict.fromkeys(owners[_storage(t)] for t in kept if _storage(t) in owners)
    extra = {_storage(t): t.numel() * t.element_size() for t in kept if _storage(t) not in owners}
    return tuple(names), sum(extra.values())


def _stand_in(value: Value, batch: int) -> Tensor:
    shape = [size.at(batch) for size in value.shape]
    dtype = getattr(torch, value.dtype)
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    return tensor.requires_grad_(value.requires_grad)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
