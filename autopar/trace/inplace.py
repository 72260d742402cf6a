"""Writes operations that change their first argument as ones that make a new tensor."""

from __future__ import annotations

import dataclasses

from autopar.errors import TraceError
from autopar.graph import Op, Ref, Value
from autopar.trace.interpret import exists
from autopar.trace.simplify import substitute

Values = dict[str, Value]

# Ops whose result may share the memory of their first argument.
_SHARING = frozenset({
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "unsqueeze",
    "squeeze", "expand", "slice", "select", "split", "chunk", "split_with_sizes", "unbind",
    "alias", "detach", "contiguous", "to", "view_as", "expand_as",
})  # fmt: skip


def is_inplace(op: Op) -> bool:
    """Whether the op changes its first argument: ``relu_`` does, ``__and__`` does not."""
    name = op.target.split(".")[1]
    return name.endswith("_") and not name.endswith("__")


def make_functional(ops: list[Op], values: Values) -> tuple[list[Op], dict[str, str]]:
    """``y = relu_(x)`` becomes ``y = relu(x)``, and ops behind it read y where they read x.

    Returns the ops, and by which value each changed one is known at the end.

    Buffers may change: a module's own bookkeeping, such as counting batches, is left as it is.

    Raises:
        TraceError: x shares its memory with another tensor, which would have to change too.
    """
    names: dict[str, str] = {}
    shared: set[str] = set()
    result = []
    for op in ops:
        args, kwargs = substitute(op.args, names), substitute(op.kwargs, names)
        op = dataclasses.replace(op, args=args, kwargs=kwargs)
        first = op.args[0].name if op.args and isinstance(op.args[0], Ref) else ""
        if is_inplace(op) and values[first].kind != "buffer":
            op = _functional(op, shared, values)
            for old in [name for name, now in names.items() if now == first]:
                names[old] = op.outputs[0]
            names[first] = op.outputs[0]
        elif op.target.split(".")[1] in _SHARING:
            shared |= {first, *op.outputs}
        result.append(op)
    return result, names


def _functional(op: Op, shared: set[str], values: Values) -> Op:
    namespace, name, overload = op.target.split(".")
    target = f"{namespace}.{name[:-1]}.{overload}"
    changed = op.args[0].name
    if changed in shared or values[changed].kind != "activation" or not exists(target):
        raise TraceError(
            f"the model changes a tensor in place that others share ({op.target})",
            expected="operations that make a new tensor",
            where=op.where,
            hint="write x = x + y for x += y, torch.where for x[mask] = y, and torch.cat or"
            " torch.stack for x[:, i] = y",
        )
    return dataclasses.replace(op, target=target)
