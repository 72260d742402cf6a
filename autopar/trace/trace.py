"""``trace``: capture, simplify, cut into layers, observe what autograd keeps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autopar.errors import TraceError
from autopar.graph import Call, Graph, Layer, Op, Value, refs
from autopar.trace.capture import Raw, capture
from autopar.trace.factories import count_integers, plain_factories
from autopar.trace.implied import without_causal_masks
from autopar.trace.inplace import buffer_changes, make_functional
from autopar.trace.layers import assign_units, build_layers, collect_calls
from autopar.trace.masks import simplify_masks
from autopar.trace.model import module_of
from autopar.trace.repeats import find_repeats
from autopar.trace.saved import observe_saved, views_of
from autopar.trace.simplify import (
    lift_rows,
    propagate_grad,
    remove_dead,
    remove_identities,
    split_bias,
)


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    precision: str = "fp32",
) -> Graph:
    """Captures one training step of ``model`` without running or copying its weights.

    Args:
        model: any module; its parameters may be on ``meta``.
        args: positional inputs; dim 0 of every tensor is the batch.
        kwargs: keyword inputs, likewise.
        target: second argument of ``loss_fn``.
        loss_fn: ``(output, target) -> scalar``; None if the model's output has a ``loss``.
        precision: "fp32", or "bf16" for the dtypes of mixed precision.

    Raises:
        TraceError: the model cannot be captured, with module and line.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    raw = capture(model, args, kwargs, target, loss_fn, dtype)
    tied = _tied(model)
    _name_tied(raw.values, tied)
    marked = assign_units(raw.ops, raw.recorder)
    ops, same, causal = _simplify(marked, raw)
    calls = collect_calls(marked, raw.recorder, same)
    if causal:
        repeats = find_repeats(model, raw.blocks)
        calls = without_causal_masks(model, calls, repeats, causal, ops, raw, dtype)
    ops = _needed(ops, raw, calls)
    layers, context = build_layers(ops, raw.values, raw.blocks, calls, tied)
    values = _used_values(ops, raw)
    layers, outside = _with_buffers(layers, model)
    outside += _unread_bytes(layers, values, model)
    graph = Graph(
        values=values,
        ops=tuple(ops),
        calls={path: calls[path] for path in calls},
        layers=layers,
        context=context,
        inputs=raw.inputs,
        loss=raw.loss,
        tied=tied,
        saved=_saved(layers, ops, raw.values),
        buffer_bytes=outside,
    )
    verify(graph)
    return graph


def _needed(ops: list[Op], raw: Raw, calls: dict[str, Call]) -> list[Op]:
    """What the loss, buffers and the calls of blocks depend on."""
    runs = [call for run, call in calls.items() if module_of(run) in raw.blocks]
    passed = {n for call in runs for n in refs((call.args, call.kwargs))}
    return remove_dead(ops, passed | {raw.loss} | buffer_changes(ops, raw.values))


def _simplify(ops: list[Op], raw: Raw) -> tuple[list[Op], dict[str, str], set[str]]:
    ops, changed = make_functional(ops, raw.values)
    raw.loss = changed.get(raw.loss, raw.loss)
    ops = count_integers(plain_factories(ops, raw.values), raw.values)
    ops, same = remove_identities(ops, raw.values)
    raw.loss = same.get(raw.loss, raw.loss)
    ops = lift_rows(split_bias(ops, raw.values), raw.values)
    ops, more = remove_identities(ops, raw.values)
    raw.loss = more.get(raw.loss, raw.loss)
    ops, causal = simplify_masks(ops, raw.values)
    wanted = {more.get(n, n) for n in same.values()} & _made(ops)
    wanted &= _call_inputs(raw, same, more)
    ops = remove_dead(ops, wanted | {raw.loss} | buffer_changes(ops, raw.values))
    propagate_grad(ops, raw.values)
    return ops, {**{k: more.get(v, v) for k, v in same.items()}, **more}, causal


def _made(ops: list[Op]) -> set[str]:
    return {out for op in ops for out in op.outputs}


def _call_inputs(raw: Raw, same: dict[str, str], more: dict[str, str]) -> set[str]:
    """Values that a block's recorded call passes, needed even if the block's own ops are not."""
    names = set()
    for op in raw.ops:
        if op.target != "autopar.mark.default" or ":in:" not in op.args[1]:
            continue
        if op.args[1].split("#")[0] in raw.blocks:
            name = op.outputs[0]
            while name in same or name in more:
                name = same.get(name, more.get(name, name))
            names.add(name)
    return names


def _used_values(ops: list[Op], raw: Raw) -> dict[str, Value]:
    """What the ops read and make, and all inputs: a user may pass some that nothing reads."""
    used = dict.fromkeys(n for op in ops for n in (*op.inputs(), *op.outputs))
    return {name: raw.values[name] for name in (used | dict.fromkeys(raw.inputs.values()))}


def _tied(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Groups of names under which one parameter is registered."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _name_tied(values: dict[str, Value], tied: tuple[tuple[str, ...], ...]) -> None:
    """A tied parameter goes by the first of its names."""
    first = {name: group[0] for group in tied for name in group}
    for name, value in values.items():
        if value.source in first:
            values[name] = dataclasses.replace(value, source=first[value.source])


def _with_buffers(layers: tuple[Layer, ...], model: nn.Module) -> tuple[tuple[Layer, ...], int]:
    """The layers with the bytes of their own buffers, read or not, and the bytes of all others."""
    blocks = {layer.name for layer in layers if layer.kind == "block"}
    holders: dict[int, set[str]] = {}
    sizes: dict[int, int] = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        parts = name.split(".")
        paths = {".".join(parts[:k]) for k in range(1, len(parts))}
        holders.setdefault(id(buffer), set()).update(paths & blocks or {""})
        sizes[id(buffer)] = buffer.nbytes
    held: Counter[str] = Counter()
    for key, names in holders.items():
        held[next(iter(names)) if len(names) == 1 else ""] += sizes[key]
    own = tuple(dataclasses.replace(layer, buffer_bytes=held[layer.name]) for layer in layers)
    return own, held[""]


def _unread_bytes(layers: tuple[Layer, ...], values: dict[str, Value], model: nn.Module) -> int:
    """Those of parameters outside the blocks that no operation reads: every rank holds them."""
    read = {value.source for value in values.values() if value.kind == "parameter"}
    inside = tuple(f"{layer.name}." for layer in layers if layer.kind == "block")
    return sum(
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if name not in read and not name.startswith(inside)
    )


def _saved(layers: Any, ops: list[Op], values: dict[str, Value]) -> dict[int, Any]:
    """Observed once per class of blocks, and for all that is no block."""
    saved: dict[int, Any] = {}
    seen: set[str] = set()
    for layer in layers:
        if layer.kind != "block" or layer.signature not in seen:
            seen.add(layer.signature)
            views = views_of(ops[i] for i in layer.ops)
            saved.update({i: observe_saved(ops[i], values, views) for i in layer.ops})
    return saved


def verify(graph: Graph) -> None:
    """Checks that every op reads only what exists, and that the loss is made by the last layer.

    Raises:
        TraceError: the graph is not self-contained; this is a defect of the trace.
    """
    known = {n for n, v in graph.values.items() if v.kind != "activation"}
    for op in graph.ops:
        missing = [n for n in op.inputs() if n not in known]
        if missing:
            raise TraceError(f"{op.target} reads {missing[0]!r} before it is made", where=op.where)
        known.update(op.outputs)
    if not graph.layers or graph.loss not in graph.layers[-1].outputs:
        raise TraceError("the loss does not depend on the model's parameters", where="loss_fn",
                         expected="a loss computed from the output")  # fmt: skip
