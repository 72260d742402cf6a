"""Rewrites of the traced graph that keep its meaning and make it smaller and plainer.

Each pass takes and returns the list of ops; ``values`` is shared and may gain entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from autopar.graph import Op, Ref, Value
from autopar.trace.opaque import OPAQUE, OpaqueCall

Values = dict[str, Value]
FULL_SLICE = 2**63 - 1

DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"})
# Ops that return their first argument unchanged in every training step.
_IDENTITIES = {
    "autopar.mark.default", "aten.contiguous.default", "aten.alias.default",
    "aten.lift_fresh_copy.default", "aten.lift_fresh.default", "aten.clone.default",
}  # fmt: skip
_CASTS = {"to", "type_as", "float", "_to_copy"}
_RESHAPES = {"view", "reshape", "expand", "_unsafe_view"}
# What losses do to their two arguments.
_BROADCASTS = ("aten.broadcast_tensors.default",)
_ASSERTIONS = ("_assert", "sym_constrain", "_guard")


def substitute(tree: Any, names: dict[str, str]) -> Any:
    """Renames the references of a nest of arguments."""
    if isinstance(tree, Ref):
        return Ref(names[tree.name]) if tree.name in names else tree
    if isinstance(tree, tuple):
        return tuple(substitute(item, names) for item in tree)
    if isinstance(tree, dict):
        return {key: substitute(item, names) for key, item in tree.items()}
    return tree


def renamed(op: Op, names: dict[str, str]) -> Op:
    """The operation with its references renamed; the very same one where none has a new name."""
    if names.keys().isdisjoint(op.inputs()):
        return op
    args, kwargs = substitute(op.args, names), substitute(op.kwargs, names)
    return dataclasses.replace(op, args=args, kwargs=kwargs)


def remove_identities(ops: list[Op], values: Values) -> tuple[list[Op], dict[str, str]]:
    """Drops ops that change nothing; returns the rest and what each dropped value equals."""
    same: dict[str, str] = {}
    kept: list[Op] = []
    made: dict[str, int] = {}
    changing = _changing(ops)
    for op in ops:
        op = renamed(op, same)
        if op.target.split(".")[1].startswith(_ASSERTIONS):
            continue
        if op.target in _BROADCASTS and _fits(op, values):
            same |= {out: ref.name for out, ref in zip(op.outputs, op.args[0], strict=True)}
            continue
        copied = op.target == "aten.clone.default" and changing.intersection(op.inputs())
        if _is_identity(op, values) and not copied:
            source = op.args[0].name
            same[op.outputs[0]] = source
            if op.labels and source in made and not kept[made[source]].labels:
                kept[made[source]] = _labelled(kept[made[source]], source, op.labels[0])
        else:
            made |= dict.fromkeys(op.outputs, len(kept))
            kept.append(op)
    return kept, same


def _changing(ops: list[Op]) -> set[str]:
    """Values that are buffers which change: the next micro-batch's forward will overwrite them.

    Backward still reads what was there before, for the sake of which a model copies them.
    """
    names = [(op, op.target.split(".")[1]) for op in ops]
    inplace = [op for op, name in names if name.endswith("_") and not name.endswith("__")]
    return {name for op in inplace for name in (*op.outputs, op.args[0].name)}


def _labelled(op: Op, output: str, label: str) -> Op:
    """The operation, one of whose outputs has the name of what an identity makes of it."""
    labels = tuple(label if name == output else "" for name in op.outputs)
    return dataclasses.replace(op, labels=labels)


def _fits(op: Op, values: Values) -> bool:
    """Whether every tensor already has the shape of the broadcast."""
    pairs = zip(op.outputs, op.args[0], strict=True)
    return all(values[out].shape == values[ref.name].shape for out, ref in pairs)


def _is_identity(op: Op, values: Values) -> bool:
    if not op.args or not isinstance(op.args[0], Ref) or len(op.outputs) != 1:
        return False
    name = op.target.split(".")[1]
    before, after = values[op.args[0].name], values[op.outputs[0]]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return False
    if op.target in _IDENTITIES or name in _CASTS or name in _RESHAPES:
        return True
    if name == "slice":
        return op.args[4:] in ((), (1,))
    if name in DROPOUTS:
        return op.args[1] == 0.0 or op.args[2] is False
    scalar = op.args[1] if len(op.args) == 2 and not op.kwargs else None
    if isinstance(scalar, bool) or not isinstance(scalar, (int, float)):
        return False
    return (name in ("add", "sub") and scalar == 0) or (name in ("mul", "div") and scalar == 1)


def split_bias(ops: list[Op], values: Values) -> list[Op]:
    """Writes ``x W + b`` as a product and an addition.

    A partial product can then be reduced before the bias is added once.
    """
    result = []
    for op in ops:
        if op.target == "aten.addmm.default" and not op.kwargs:
            bias, *factors = op.args
            result += _product_then_bias(op, "aten.mm.default", tuple(factors), bias, values)
        elif op.target == "aten.linear.default" and len(op.args) == 3 and op.args[2] is not None:
            result += _product_then_bias(op, op.target, op.args[:2], op.args[2], values)
        else:
            result.append(op)
    return result


def _product_then_bias(op: Op, target: str, factors: Any, bias: Ref, values: Values) -> list[Op]:
    out = values[op.outputs[0]]
    product = f"{out.name}_product"
    values[product] = dataclasses.replace(out, name=product)
    return [
        dataclasses.replace(op, target=target, args=tuple(factors), outputs=(product,), labels=()),
        dataclasses.replace(op, target="aten.add.Tensor", args=(Ref(product), bias)),
    ]


def lift_rows(ops: list[Op], values: Values) -> list[Op]:
    """Writes ``view(mm(view(x, rows, k), w), ..., n)`` as ``matmul(x, w)`` on the whole of x.

    Flattening the leading dims would hide the batch and the sequence from the sharding rules.
    """
    made = {name: op for op in ops for name in op.outputs}
    lifted: dict[str, str] = {}
    result = []
    for op in ops:
        if op.target == "aten.mm.default":
            whole = _before_flattening(op.args[0].name, made, values)
            if whole is not None:
                op = _lift(op, whole, values, lifted)
        elif op.target == "aten.add.Tensor" and _is_lifted_bias(op, lifted, values):
            op = _lift_add(op, values, lifted)
        elif op.target.split(".")[1] in ("view", "reshape") and op.args[0].name in lifted:
            source = lifted[op.args[0].name]
            if values[op.outputs[0]].shape == values[source].shape:
                op = dataclasses.replace(op, target="aten.alias.default", args=(Ref(source),))
        result.append(op)
    return result


def _before_flattening(name: str, made: dict[str, Op], values: Values) -> str | None:
    op = made.get(name)
    if op is None or op.target.split(".")[1] not in ("view", "reshape"):
        return None
    source = values[op.args[0].name]
    flat = values[name]
    return source.name if source.shape[-1] == flat.shape[-1] and len(flat.shape) == 2 else None


def _lift(op: Op, whole: str, values: Values, lifted: dict[str, str]) -> Op:
    flat = values[op.outputs[0]]
    shape = (*values[whole].shape[:-1], flat.shape[-1])
    name = f"{flat.name}_rows"
    values[name] = dataclasses.replace(flat, name=name, shape=shape)
    lifted[flat.name] = name
    return dataclasses.replace(
        op, target="aten.matmul.default", args=(Ref(whole), op.args[1]), outputs=(name,)
    )


def _is_lifted_bias(op: Op, lifted: dict[str, str], values: Values) -> bool:
    first, second = op.args[0], op.args[1]
    return (
        isinstance(first, Ref)
        and isinstance(second, Ref)
        and first.name in lifted
        and len(values[second.name].shape) == 1
    )


def _lift_add(op: Op, values: Values, lifted: dict[str, str]) -> Op:
    flat = values[op.outputs[0]]
    source = lifted[op.args[0].name]
    name = f"{flat.name}_rows"
    values[name] = dataclasses.replace(flat, name=name, shape=values[source].shape)
    lifted[flat.name] = name
    return dataclasses.replace(op, args=(Ref(source), op.args[1]), outputs=(name,))


def remove_dead(ops: list[Op], wanted: set[str]) -> list[Op]:
    """Keeps the ops that ``wanted`` depends on."""
    needed, kept = set(wanted), []
    for op in reversed(ops):
        if needed.intersection(op.outputs):
            kept.append(op)
            needed.update(op.inputs())
    return kept[::-1]


def propagate_grad(ops: list[Op], values: Values) -> None:
    """Sets ``requires_grad`` on every value that a gradient flows through."""
    for op in ops:
        grad = not op.no_grad and any(values[n].requires_grad for n in op.inputs())
        grad = grad and op.target != "aten.detach.default"
        learned = OpaqueCall.of(op).learned if op.target == OPAQUE else (True,) * len(op.outputs)
        for name, own in zip(op.outputs, learned, strict=True):
            floating = values[name].dtype.startswith(("float", "bfloat", "complex"))
            flows = grad and own and floating
            values[name] = dataclasses.replace(values[name], requires_grad=flows)
