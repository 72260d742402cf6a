"""Graphs as plain JSON data, for the plan file."""

from __future__ import annotations

from typing import Any

from autopar.graph import Call, Graph, Op, Ref, Size, Value


def encode_tree(tree: Any) -> Any:
    """Arguments of ops and calls: references and sizes become one-key objects."""
    if isinstance(tree, Ref):
        return {"ref": tree.name}
    if isinstance(tree, Size):
        return {"size": [tree.coefficient, tree.power]}
    if isinstance(tree, (tuple, list)):
        return [encode_tree(item) for item in tree]
    if isinstance(tree, dict):
        return {"dict": {key: encode_tree(item) for key, item in tree.items()}}
    if isinstance(tree, float) and tree in (float("inf"), float("-inf")):
        return {"float": str(tree)}
    return tree


def decode_tree(data: Any) -> Any:
    """The inverse of ``encode_tree``."""
    if isinstance(data, list):
        return tuple(decode_tree(item) for item in data)
    if not isinstance(data, dict):
        return data
    if "ref" in data:
        return Ref(data["ref"])
    if "size" in data:
        return Size(*data["size"])
    if "float" in data:
        return float(data["float"])
    return {key: decode_tree(item) for key, item in data["dict"].items()}


def encode(graph: Graph) -> dict[str, Any]:
    """Everything that the emitter needs: values, ops, calls, inputs, loss and ties."""
    return {
        "values": {
            v.name: [[[s.coefficient, s.power] for s in v.shape], v.dtype, v.kind, v.source,
                     v.requires_grad]
            for v in graph.values.values()
        },
        "ops": [
            [op.target, encode_tree(op.args), encode_tree(op.kwargs), list(op.outputs), op.unit,
             op.no_grad, list(op.labels)]
            for op in graph.ops
        ],
        "calls": {
            c.path: [c.class_name, *(encode_tree(t) for t in (c.args, c.kwargs, c.outputs)),
                     list(c.parameters), c.defaults]
            for c in graph.calls.values()
        },
        "context": list(graph.context),
        "inputs": graph.inputs,
        "loss": graph.loss,
        "tied": [list(group) for group in graph.tied],
    }  # fmt: skip


def decode(data: dict[str, Any]) -> Graph:
    """The inverse of ``encode``, without layers and observations."""
    values = {
        name: Value(name, tuple(Size(*s) for s in shape), dtype, kind, source, grad)
        for name, (shape, dtype, kind, source, grad) in data["values"].items()
    }
    ops = tuple(
        Op(target, decode_tree(args), decode_tree(kwargs), tuple(outputs), unit, "", no_grad,
           labels=tuple(labels[0]) if labels else ())
        for target, args, kwargs, outputs, unit, no_grad, *labels in data["ops"]
    )  # fmt: skip
    calls = {
        path: Call(
            path, name, decode_tree(args), decode_tree(kwargs), decode_tree(outputs),
            tuple(names), *defaults,
        )
        for path, (name, args, kwargs, outputs, names, *defaults) in data["calls"].items()
    }  # fmt: skip
    tied = tuple(tuple(group) for group in data["tied"])
    return Graph(values, ops, calls, (), tuple(data["context"]), data["inputs"], data["loss"], tied)
