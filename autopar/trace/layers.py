"""Cuts the flat list of operations into layers: embedding, one per block, head."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from autopar.errors import TraceError
from autopar.graph import Call, Layer, Op, Value
from autopar.trace.model import Recorder, as_call
from autopar.trace.simplify import substitute

Values = dict[str, Value]


def assign_units(ops: list[Op], recorder: Recorder) -> list[Op]:
    """Gives each op the path of the module call that it was recorded in.

    Only modules that are called once have a path: a module applied twice is no single place.
    """
    spans: dict[str, list[int]] = {}
    for index, op in enumerate(ops):
        if op.target == "autopar.mark.default":
            path = op.args[1].split("#")[0]
            spans.setdefault(path, []).append(index)
    single = {p: (s[0], s[-1]) for p, s in spans.items() if recorder.counts.get(p) == 1}
    owner = {i: p for p, (first, last) in single.items() for i in range(first, last + 1)}
    return [dataclasses.replace(op, unit=owner.get(i, "")) for i, op in enumerate(ops)]


def collect_calls(ops: list[Op], recorder: Recorder, same: dict[str, str]) -> dict[str, Call]:
    """The calls of single-use modules, in terms of the values that remain after simplification."""
    tags = {}
    for op in ops:
        if op.target == "autopar.mark.default":
            name = op.outputs[0]
            while name in same:
                name = same[name]
            tags[op.args[1]] = name
    calls = {}
    for path, recorded in recorder.calls.items():
        call = as_call(path, recorded, tags) if recorder.counts[path] == 1 else None
        if call is not None:
            calls[path] = call
    return calls


def build_layers(ops: list[Op], values: Values, blocks: tuple[str, ...], calls: dict[str, Call]
                 ) -> tuple[tuple[Layer, ...], tuple[int, ...]]:  # fmt: skip
    """Returns the layers in execution order and the indices of the context ops."""
    seen = {op.unit for op in ops}
    blocks = tuple(b for b in blocks if b in seen)
    learned = _depends_on_parameters(ops, values)
    context = tuple(i for i, op in enumerate(ops) if i not in learned and op.unit not in blocks)
    groups: dict[str, list[int]] = {"embedding": [], **{b: [] for b in blocks}, "head": []}
    first = next((i for i, op in enumerate(ops) if op.unit in blocks), -1)
    for index, op in enumerate(ops):
        if op.unit in blocks:
            groups[op.unit].append(index)
        elif index in learned:
            groups["embedding" if index < first else "head"].append(index)
    activations = {out for i in learned for out in ops[i].outputs}
    layers = [
        _layer(name, tuple(group), ops, values, activations, calls.get(name))
        for name, group in groups.items()
        if group
    ]
    _check_chain(layers, values, ops, learned)
    return tuple(layers), context


def _depends_on_parameters(ops: list[Op], values: Values) -> set[int]:
    tainted = {name for name, value in values.items() if value.kind == "parameter"}
    found = set()
    for index, op in enumerate(ops):
        if tainted.intersection(op.inputs()):
            tainted.update(op.outputs)
            found.add(index)
    return found


def _layer(name: str, group: tuple[int, ...], ops: list[Op], values: Values,
           activations: set[str], call: Call | None) -> Layer:  # fmt: skip
    inside = {out for i in group for out in ops[i].outputs}
    used = dict.fromkeys(n for i in group for n in ops[i].inputs())
    parameters = tuple(values[n].source for n in used if values[n].kind == "parameter")
    inputs = tuple(n for n in used if n not in inside and values[n].kind != "parameter")
    needed_later = {n for i, op in enumerate(ops) if i not in group for n in op.inputs()}
    outputs = tuple(n for n in sorted(inside) if n in needed_later or values[n].shape == ())
    kind: Any = name if name in ("embedding", "head") else "block"
    local = {n: "hidden" if n in activations else n for n in inputs}
    signature = _signature(name, group, ops, values, local, call)
    return Layer(name, kind, group, signature, parameters, inputs, outputs)


def _signature(path: str, group: tuple[int, ...], ops: list[Op], values: Values,
               local: dict[str, str], call: Call | None) -> str:  # fmt: skip
    """Hash of the layer's ops with names made local: equal layers have equal signatures.

    Context such as masks keeps its name: layers that read different masks differ.
    """
    arguments = substitute((call.args, call.kwargs), local) if call else None
    rows: list[Any] = [[[n, _describe(values[n])] for n in local], repr(arguments)]
    rows[0] = [[local[n], described] for n, described in rows[0]]
    for index in group:
        op = ops[index]
        for name in op.inputs():
            value = values[name]
            if value.kind in ("parameter", "buffer") and name not in local:
                local[name] = value.source.removeprefix(f"{path}.") + str(_describe(value))
        local.update({out: f"v{len(local)}" for out in op.outputs})
        rows.append([op.target, repr(substitute((op.args, op.kwargs), local)), op.no_grad])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _describe(value: Value) -> list[Any]:
    return [value.dtype, [[s.coefficient, s.power] for s in value.shape], value.requires_grad]


def _check_chain(layers: list[Layer], values: Values, ops: list[Op], learned: set[int]) -> None:
    """Each layer may read learned activations from the layer before it only."""
    maker = {out: k for k, layer in enumerate(layers) for i in layer.ops for out in ops[i].outputs}
    activations = {out for i in learned for out in ops[i].outputs}
    for k, layer in enumerate(layers):
        for name in layer.inputs:
            source = maker.get(name, k)
            if name in activations and source != k - 1:
                raise TraceError(
                    f"layer {layer.name!r} reads {name!r} of layer {layers[source].name!r}",
                    expected="layers that form a chain",
                    where=next(op.where for op in ops if name in op.outputs),
                    hint="models with connections that skip layers are not supported yet",
                )
