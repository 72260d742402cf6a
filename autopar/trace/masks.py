"""Recognises causal masks by computing them, and writes attention with ``is_causal`` instead."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from autopar.graph import Op, Ref, Value
from autopar.trace.interpret import run
from autopar.trace.simplify import remove_dead, substitute

ATTENTION = "aten.scaled_dot_product_attention.default"
# Evaluating a mask takes rows x columns bytes a few times over.
LARGEST_MASK_ELEMENTS = 2**28
ROWS_AT_ONCE = 128


def simplify_masks(ops: list[Op], values: dict[str, Value]) -> tuple[list[Op], set[str]]:
    """Rewrites every mask that depends on nothing but shapes and turns out to be causal.

    The mask's own definition becomes ``ones.tril``, and attention that uses it becomes
    ``is_causal=True``, which computes the same and lets the fused kernels skip half the work.
    Returns the operations, and the names of the causal masks.
    """
    kinds: dict[str, str] = {}
    computed: dict[str, str] = {}
    for op in ops:
        name = _mask_of(op)
        if name and name not in kinds:
            kinds[name] = _classify(name, ops, values, computed)
    ops = [_rewrite_attention(op, kinds) for op in ops]
    causal = {name for name, kind in kinds.items() if kind == "causal"}
    return [new for op in ops for new in _rewrite_definition(op, causal, values)], causal


def _mask_of(op: Op) -> str | None:
    if op.target != ATTENTION:
        return None
    mask = op.args[3] if len(op.args) > 3 else op.kwargs.get("attn_mask")
    return mask.name if isinstance(mask, Ref) else None


def _classify(name: str, ops: list[Op], values: dict[str, Value], computed: dict[str, str]) -> str:
    """``causal``, ``full`` or ``other``, by computing the mask for one sample.

    Blocks that make equal masks each on its own are many: ``computed`` has those known so far.
    """
    needed = remove_dead(ops, {name})
    known = {out for op in needed for out in op.outputs}
    constant = all(i in known for op in needed for i in op.inputs())
    rows = values[name].shape[-2:]
    if not constant or name not in known or rows[0].at(1) * rows[1].at(1) > LARGEST_MASK_ELEMENTS:
        return "other"
    key = _definition(needed, name)
    if key not in computed:
        env: dict[str, Tensor] = {}
        for op in needed:
            env.update(zip(op.outputs, run(op, env, batch=1, device="cpu"), strict=True))
        computed[key] = _kind(env[name])
    return computed[key]


def _definition(needed: list[Op], name: str) -> str:
    """The operations that make a mask from nothing, with values named by their order."""
    local: dict[str, str] = {}
    rows = []
    for op in needed:
        rows.append((op.target, substitute((op.args, op.kwargs), local)))
        for out in op.outputs:
            local[out] = f"v{len(local)}"
    return repr((rows, local[name]))


def _kind(mask: Tensor) -> str:
    allowed = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((allowed | _hides(mask)).all()):
        return "other"
    if bool(allowed.all()):
        return "full"
    square = mask.shape[-1] == mask.shape[-2]
    return "causal" if square and _is_triangle(allowed) else "other"


def _is_triangle(allowed: Tensor) -> bool:
    """Whether exactly what is on and below the diagonal is allowed.

    A few rows at a time: a second mask of a long sequence would not stay in the cache.
    """
    for start in range(0, allowed.shape[-1], ROWS_AT_ONCE):
        rows = allowed[..., start : start + ROWS_AT_ONCE, :]
        end = start + rows.shape[-2]
        before, at, behind = rows[..., :start], rows[..., start:end], rows[..., end:]
        corner = torch.ones(at.shape[-2:], dtype=torch.bool).tril()
        if not (bool(before.all()) and bool((at == corner).all()) and not bool(behind.any())):
            return False
    return True


def _hides(values: Tensor) -> Tensor:
    """Where adding these to attention scores makes their weight exactly zero."""
    return values <= torch.finfo(values.dtype).min / 2


def _rewrite_attention(op: Op, kinds: dict[str, str]) -> Op:
    kind = kinds.get(_mask_of(op) or "", "other")
    if kind == "other":
        return op
    kwargs = {k: v for k, v in op.kwargs.items() if k != "attn_mask"}
    args = op.args[:3] + ((None, *op.args[4:5]) if len(op.args) > 4 else ())
    if kind == "causal":
        kwargs["is_causal"] = True
    return dataclasses.replace(op, args=args, kwargs=kwargs)


def _rewrite_definition(op: Op, causal: set[str], values: dict[str, Value]) -> list[Op]:
    """``ones(T, T).tril()``, broadcast to the mask's own shape and dtype."""
    if not causal.intersection(op.outputs) or values[op.outputs[0]].dtype != "bool":
        return [op]
    out = values[op.outputs[0]]
    square = (out.shape[-2], out.shape[-1])
    names = [f"{out.name}_ones", f"{out.name}_triangle"]
    for name in names:
        values[name] = Value(name, square, "bool")
    place = (op.unit, op.where, op.no_grad)
    return [
        Op("aten.ones.default", (square,), {"dtype": "torch.bool"}, (names[0],), *place),
        Op("aten.tril.default", (Ref(names[0]),), {}, (names[1],), *place),
        Op("aten.expand.default", (Ref(names[1]), out.shape), {}, (out.name,), *place),
    ]
