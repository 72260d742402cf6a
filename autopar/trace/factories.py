"""Rewrites of operations that make tensors from sizes or count: they read no more than they need.

Each takes and returns the list of ops; ``values`` is shared and may gain entries.
"""

from __future__ import annotations

import dataclasses

from autopar.graph import Op, Ref, Value

Values = dict[str, Value]

# ``x.new_zeros(size)`` reads x for its dtype alone. What is left uninitialised is written before
# it is read, by any program that has a meaning; zeros make two runs comparable.
_FACTORIES = {
    "new_empty": "aten.zeros.default",
    "new_zeros": "aten.zeros.default",
    "new_ones": "aten.ones.default",
    "new_full": "aten.full.default",
    "empty": "aten.zeros.default",
}


def plain_factories(ops: list[Op], values: Values) -> list[Op]:
    """Tensors "like" another are made from sizes and a dtype, without the other."""
    return [_plain(op, values) for op in ops]


def _plain(op: Op, values: Values) -> Op:
    name = op.target.split(".")[1]
    if name == "empty_like":
        return dataclasses.replace(op, target="aten.zeros_like.default", kwargs={})
    if name not in _FACTORIES:
        return op
    sizes = op.args[1:] if isinstance(op.args[0], Ref) else op.args
    dtype = f"torch.{values[op.outputs[0]].dtype}"
    return dataclasses.replace(op, target=_FACTORIES[name], args=sizes, kwargs={"dtype": dtype})


def count_integers(ops: list[Op], values: Values) -> list[Op]:
    """A histogram of integers, one bin for each, as comparisons and a sum.

    Where there is one bin less, the last holds the two largest, as torch has it.

    ``histc`` of integers has no kernel on CPU, that of floats no deterministic one on CUDA.
    """
    return [new for op in ops for new in _counted(op, values)]


def _counted(op: Op, values: Values) -> list[Op]:
    if op.target != "aten.histc.default" or len(op.args) != 4:
        return [op]
    x, out = values[op.args[0].name], values[op.outputs[0]]
    bins, low, high = (int(a) for a in op.args[1:])
    if not x.dtype.startswith("int") or len(x.shape) != 1 or high - low not in (bins, bins - 1):
        return [op]
    bin_shape = (out.shape[0],)
    rows = (*x.shape, dataclasses.replace(out.shape[0], coefficient=1))
    shapes = {"bins": (bin_shape, "int64"), "column": (rows, x.dtype),
              "hits": ((*x.shape, *bin_shape), "bool")}  # fmt: skip
    joined = _joined(op, values, high) if high - low == bins else []
    x = values[joined[-1].outputs[0]] if joined else x
    high = low + bins - 1
    made = {}
    for key, (shape, dtype) in shapes.items():
        made[key] = f"{out.name}_{key}"
        values[made[key]] = Value(made[key], shape, dtype)
    place = (op.unit, op.where, op.no_grad)
    dtype = f"torch.{out.dtype}"
    return [
        *joined,
        Op("aten.arange.start", (low, high + 1), {}, (made["bins"],), *place),
        Op("aten.unsqueeze.default", (Ref(x.name), -1), {}, (made["column"],), *place),
        Op("aten.eq.Tensor", (Ref(made["column"]), Ref(made["bins"])), {}, (made["hits"],), *place),
        Op("aten.sum.dim_IntList", (Ref(made["hits"]), (0,), False), {"dtype": dtype},
           op.outputs, *place),
    ]  # fmt: skip


def _joined(op: Op, values: Values, high: int) -> list[Op]:
    """The integers of a histogram, those of the upper end as the next smaller."""
    x, out = values[op.args[0].name], values[op.outputs[0]]
    names = (f"{out.name}_end", f"{out.name}_joined")
    for name, dtype in zip(names, ("bool", x.dtype), strict=True):
        values[name] = Value(name, x.shape, dtype)
    place = (op.unit, op.where, op.no_grad)
    return [
        Op("aten.eq.Scalar", (Ref(x.name), high), {}, names[:1], *place),
        Op("aten.masked_fill.Scalar", (Ref(x.name), Ref(names[0]), high - 1), {}, names[1:],
           *place),
    ]  # fmt: skip
