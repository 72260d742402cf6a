"""The sharding table: which dims of an operation may be split over the tp axis.

A rule names dims as einops does. A name that appears in an output may be sharded there;
one that appears in inputs only is contracted, and the output is a partial sum. ``!`` marks
a dim that the operation must see whole. ``...`` is any number of further dims, matched from
the right. Operations outside the tables run replicated and are listed in the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopar.graph import Op, Ref, Size, Value, refs

Values = dict[str, Value]

RULES = {
    "aten.linear.default": "... k, n k -> ... n",
    "aten.mm.default": "m k, k n -> m n",
    "aten.bmm.default": "b m k, b k n -> b m n",
    "aten.scaled_dot_product_attention.default": "b h !t !d, b h !s !d, b h !s !e, b h !t !s "
    "-> b h !t !e",
}

POINTWISE = frozenset({
    "add", "sub", "mul", "div", "neg", "pow", "exp", "log", "log1p", "tanh", "sigmoid", "relu",
    "gelu", "silu", "rsqrt", "sqrt", "reciprocal", "sin", "cos", "erf", "abs", "sign", "square",
    "to", "_to_copy", "type_as", "where", "eq", "ne", "lt", "le", "gt", "ge", "maximum",
    "minimum", "clamp", "clamp_min", "dropout", "masked_fill", "logical_and", "logical_or",
    "logical_not", "__and__", "__or__", "bitwise_not", "leaky_relu", "elu", "softplus",
    "hardswish", "hardtanh", "mish", "relu6",
})  # fmt: skip
# Sum and product rules under which partial sums may pass through unreduced.
LINEAR = frozenset({"neg", "view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze"})
REDUCTIONS = {"sum": "contract", "mean": "whole", "amax": "whole", "var": "whole"}
RANDOM = frozenset({"dropout", "scaled_dot_product_attention"})


@dataclass(frozen=True)
class Spec:
    """Dim names of every tensor of one operation; ``whole`` names may not be sharded."""

    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[tuple[str, ...], ...]
    whole: frozenset[str]


def name_of(op: Op) -> str:
    """``linear`` for ``aten.linear.default``."""
    return op.target.split(".")[1]


def spec(op: Op, values: Values) -> Spec | None:
    """The named dims of ``op``, or None if it has no rule."""
    if op.target in RULES:
        return _from_rule(RULES[op.target], op, values)
    name = name_of(op)
    if name in POINTWISE:
        return _pointwise(op, values)
    builder = _BUILDERS.get(name)
    return builder(op, values) if builder else None


def _from_rule(rule: str, op: Op, values: Values) -> Spec:
    left, right = rule.split("->")
    patterns = [p.split() for p in left.split(",")]
    tensors = [a.name if isinstance(a, Ref) else None for a in op.args[: len(patterns)]]
    inputs = {}
    for pattern, name in zip(patterns, tensors, strict=False):
        if name is not None:
            inputs[name] = _present(_expand(pattern, values[name]), values[name])
    out = values[op.outputs[0]]
    whole = frozenset(p[1:] for pattern in patterns for p in pattern if p.startswith("!"))
    return Spec(inputs, (_expand(right.split(), out),), whole)


def _expand(pattern: list[str], value: Value) -> tuple[str, ...]:
    """Names for each dim of ``value``: ``...`` becomes ``~2 ~1`` counted from the right."""
    names = [p.lstrip("!") for p in pattern]
    if "..." in names:
        extra = len(value.shape) - len(names) + 1
        at = names.index("...")
        names[at : at + 1] = [f"~{extra - i}" for i in range(extra)]
    return tuple(names[-len(value.shape) :] if value.shape else ())


def _present(names: tuple[str, ...], value: Value) -> tuple[str, ...]:
    """A dim of size one is broadcast: it does not carry the name."""
    pairs = zip(names, value.shape, strict=True)
    return tuple("" if size == Size(1) else name for name, size in pairs)


def _numbered(value: Value) -> tuple[str, ...]:
    rank = len(value.shape)
    return tuple(f"~{rank - i}" for i in range(rank))


def _pointwise(op: Op, values: Values) -> Spec:
    out = values[op.outputs[0]]
    inputs = {n: _present(_numbered(values[n]), values[n]) for n in op.inputs()}
    return Spec(inputs, (_present(_numbered(out), out),), frozenset())


def _permuted(order: Callable[[Op, int], list[int]]) -> Callable[[Op, Values], Spec]:
    def build(op: Op, values: Values) -> Spec:
        name = op.args[0].name
        names = _numbered(values[name])
        out = tuple(names[i] for i in order(op, len(names)))
        return Spec({name: names}, (out,), frozenset())

    return build


def _transpose_order(op: Op, rank: int) -> list[int]:
    order = list(range(rank))
    first, second = (op.args[1] % rank, op.args[2] % rank) if len(op.args) > 2 else (0, 1)
    order[first], order[second] = order[second], order[first]
    return order


def _unsqueeze(op: Op, values: Values) -> Spec:
    name = op.args[0].name
    names = list(_numbered(values[name]))
    names.insert(op.args[1] % (len(names) + 1), "new")
    return Spec({name: _numbered(values[name])}, (tuple(names),), frozenset({"new"}))


def _squeeze(op: Op, values: Values) -> Spec:
    """Drops those of the given dims, or of all, that have size one."""
    value = values[op.args[0].name]
    names = _numbered(value)
    dims = op.args[1] if len(op.args) > 1 else tuple(range(len(names)))
    given = {d % len(names) for d in (dims if isinstance(dims, tuple) else (dims,))}
    dropped = {names[d] for d in given if value.shape[d] == Size(1)}
    left = tuple(n for n in names if n not in dropped)
    return Spec({value.name: names}, (left,), frozenset(dropped))


def _along(op: Op, values: Values, dim: int) -> Spec:
    """Ops that work along one dim and leave the others alone: slice, cat, softmax, cumsum."""
    out = values[op.outputs[0]]
    rank = len(out.shape)
    names = _numbered(out)
    inputs = dict.fromkeys(refs(op.args), names)
    return Spec(inputs, (names,) * len(op.outputs), frozenset({names[dim % rank]}))


def _normalization(op: Op, values: Values) -> Spec:
    """Normalises over as many trailing dims as its second argument names."""
    names = _numbered(values[op.outputs[0]])
    whole = frozenset(names[-len(op.args[1]) :])
    return Spec({op.args[0].name: names}, (names,), whole)


def _slice(op: Op, values: Values) -> Spec:
    return _along(op, values, op.args[1] if len(op.args) > 1 else 0)


def _argument_dim(position: int, default: int = 0) -> Callable[[Op, Values], Spec]:
    def build(op: Op, values: Values) -> Spec:
        dim = op.args[position] if len(op.args) > position else default
        return _along(op, values, op.kwargs.get("dim", dim))

    return build


def _select(op: Op, values: Values) -> Spec:
    name = op.args[0].name
    names = list(_numbered(values[name]))
    whole = names.pop(op.args[1] % len(names))
    return Spec({name: _numbered(values[name])}, (tuple(names),), frozenset({whole}))


def _broadcast(op: Op, values: Values) -> Spec:
    name, out = op.args[0].name, values[op.outputs[0]]
    names = _numbered(out)
    own = _present(names[len(names) - len(values[name].shape) :], values[name])
    return Spec({name: own}, (names,), frozenset(set(names) - set(own)))


def _reduce(op: Op, values: Values) -> Spec:
    name, out = op.args[0].name, values[op.outputs[0]]
    names = _numbered(values[name])
    dims = op.args[1] if len(op.args) > 1 and op.args[1] else tuple(range(len(names)))
    dims = tuple(d % len(names) for d in (dims if isinstance(dims, tuple) else (dims,)))
    keep = len(out.shape) == len(names)
    left = tuple("" if i in dims else n for i, n in enumerate(names) if keep or i not in dims)
    reduced = {names[d] for d in dims}
    whole = reduced if REDUCTIONS[name_of(op)] == "whole" else set()
    return Spec({name: names}, (left,), frozenset(whole))


def _matmul(op: Op, values: Values) -> Spec | None:
    left, right = (values[a.name] for a in op.args)
    if len(left.shape) < 2 or len(right.shape) < 2:
        return None
    rule = "... k, k n -> ... n" if len(right.shape) == 2 else "... m k, ... k n -> ... m n"
    return _from_rule(rule, op, values)


_BUILDERS: dict[str, Callable[[Op, Values], Spec | None]] = {
    "matmul": _matmul,
    "layer_norm": _normalization,
    "rms_norm": _normalization,
    "transpose": _permuted(_transpose_order),
    "t": _permuted(_transpose_order),
    "permute": _permuted(lambda op, rank: [d % rank for d in op.args[1]]),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "select": _select,
    "slice": _slice,
    "cat": _argument_dim(1),
    "softmax": _argument_dim(1),
    "log_softmax": _argument_dim(1),
    "cumsum": _argument_dim(1),
    "pad": lambda op, values: _along(op, values, -1) if len(op.args[1]) == 2 else None,
    "expand": _broadcast,
    **dict.fromkeys(REDUCTIONS, _reduce),
}
