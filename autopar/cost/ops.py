"""Seconds of one operation on local shards, forward and backward, from its own arithmetic.

Backward is what autograd runs: a sum passes its gradient on, that of a broadcast input is summed
up, those of parts are written into a whole, and those of a tensor that is read several times are
added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from autopar.cluster import Cluster
from autopar.cost.compute import attention_seconds, elementwise_seconds, gemm_seconds
from autopar.graph import DTYPE_BYTES, Graph, Op, Value, refs
from autopar.trace.aliases import ALIASES, EXPANDED, PARTS
from autopar.trace.opaque import OpaqueCall

Values = dict[str, Value]
Shapes = dict[str, tuple[int, ...]]


# Ops whose arithmetic shows beside their memory traffic.
_KINDS = {
    **dict.fromkeys(("gelu", "silu", "tanh", "sigmoid", "exp", "pow", "softplus"), "activation"),
    **dict.fromkeys(
        ("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"), "normalization"
    ),
    **dict.fromkeys(("softmax", "log_softmax"), "softmax"),
}


@dataclass(frozen=True)
class OpCost:
    """Price of an op on one rank; ``flops`` counts forward multiply-adds twice.

    ``weight_seconds`` is the time of the gradients of parameters and ``input_seconds`` that of the
    others where the two are made apart, as zero bubble schedules do. Together they can take longer
    than ``backward_seconds``, because both read the gradient of the result.
    """

    forward_seconds: float
    input_seconds: float = 0.0
    weight_seconds: float = 0.0
    flops: int = 0
    joint_seconds: float | None = None

    @property
    def backward_seconds(self) -> float:
        """All gradients at once."""
        apart = self.input_seconds + self.weight_seconds
        return apart if self.joint_seconds is None else self.joint_seconds


FREE = OpCost(0.0)
# Their gradient is that of the result, or a view of it.
_PASSED_ON = frozenset({"add", "cat"})


class Use(NamedTuple):
    """How an op stands among the others of its graph.

    ``summed`` are its inputs whose gradient is added to that of an earlier reader; ``joined`` says
    that it adds a bias which the linear map before it adds along.
    """

    summed: frozenset[str] = frozenset()
    joined: bool = False


ALONE = Use()


def use_of(graph: Graph, index: int, joined: bool) -> Use:
    """How op ``index`` stands; ``joined`` where nothing moves a product away from its bias."""
    return Use(graph.summed.get(index, ALONE.summed), joined and index in graph.biased)


def op_cost(cluster: Cluster, op: Op, values: Values, shapes: Shapes, use: Use = ALONE) -> OpCost:
    """Prices ``op``; ``shapes`` gives the local shape of each of its inputs and outputs."""
    name = op.target.split(".")[1]
    price = _view if name in ALIASES else _PRICES.get(name, _elementwise)
    cost = price(cluster, op, values, shapes)
    if use.joined:
        cost = replace(cost, forward_seconds=0.0)
    return _with_sums(cluster, cost, values, shapes, use.summed) if use.summed else cost


def _with_sums(
    cluster: Cluster, cost: OpCost, values: Values, shapes: Shapes, names: Iterable[str]
) -> OpCost:
    """With the gradients of ``names`` added to others: two are read and one is written."""
    seconds = {False: 0.0, True: 0.0}  # by whether it is a parameter
    for name in names:
        added = elementwise_seconds(cluster, 3 * _bytes(name, values, shapes))
        seconds[values[name].kind == "parameter"] += added
    return replace(
        cost,
        input_seconds=cost.input_seconds + seconds[False],
        weight_seconds=cost.weight_seconds + seconds[True],
        joint_seconds=cost.backward_seconds + seconds[False] + seconds[True],
    )


def _view(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Free forward; in backward parts become a whole again, what was expanded is summed."""
    source = next(iter(op.inputs()), None)
    learned = [n for n in op.outputs if values[n].requires_grad]
    if source is None or not learned:
        return FREE
    name = op.target.split(".")[1]
    whole = _bytes(source, values, shapes)
    parts = sum(_bytes(n, values, shapes) for n in learned)
    moved = 0
    if name in PARTS and whole > max(_bytes(n, values, shapes) for n in learned):
        moved = whole + parts if len(op.outputs) > 1 else whole + 2 * parts
    elif name in EXPANDED and parts > whole:
        moved = parts + whole
    seconds = elementwise_seconds(cluster, moved)
    of_parameter = values[source].kind == "parameter"
    return OpCost(0.0, 0.0 if of_parameter else seconds, seconds if of_parameter else 0.0)


def _gemm(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """A product of (m, k) and (k, n); its backward is one product per input with a gradient."""
    left, right = (shapes[a.name] for a in op.args[:2])
    out = shapes[op.outputs[0]]
    k, n = left[-1], out[-1]
    batch = math.prod(right[:-2]) if len(right) > 2 else 1
    m = math.prod(out[:-1]) // batch
    factors = tuple(values[a.name] for a in op.args[:2])
    return _product(cluster, factors, (m, n, k), batch)


def _grouped(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Rows times the matrix of their expert. Every expert counts as having equally many rows.

    A rank that holds some of the experts multiplies their rows alone.
    """
    (rows, k), (held, _, n) = (shapes[a.name] for a in op.args[:2])
    experts = values[op.args[1].name].shape[0].coefficient
    factors = tuple(values[a.name] for a in op.args[:2])
    return _product(cluster, factors, (max(1, rows // experts), n, k), held)


def _opaque(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """A module of the user's, by its own count of flops: one product of as many."""
    call = OpaqueCall.of(op)
    read = [values[name] for name in call.tensors()]
    rows_of = [v for v in read if v.dtype.startswith(("float", "bfloat")) and len(v.shape) > 1]
    if not (rows_of and call.held and call.flops):
        return _elementwise(cluster, op, values, shapes)
    x = max(rows_of, key=lambda value: value.elements(1))
    sizes = zip(shapes[x.name], x.shape, strict=True)
    batch = max(size // own.coefficient for size, own in sizes)
    k = shapes[x.name][-1]
    rows = math.prod(shapes[x.name]) // k
    n = max(1, batch * call.flops // (2 * rows * k))
    factors = (x, values[call.held[0].name])
    return _product(cluster, factors, (rows, n, k), 1)


def _product(
    cluster: Cluster, factors: tuple[Value, ...], sizes: tuple[int, int, int], batch: int
) -> OpCost:
    """Products of (m, k) and (k, n), and one of equal work per factor that has a gradient."""
    m, n, k = sizes
    dtype = factors[0].dtype
    forward = gemm_seconds(cluster, m, n, k, dtype, batch)
    products = (
        gemm_seconds(cluster, m, k, n, dtype, batch, gradient=True),
        gemm_seconds(cluster, k, n, m, dtype, batch, gradient=True),
    )
    seconds = {False: 0.0, True: 0.0}  # by whether the factor is a parameter
    for factor, product in zip(factors, products, strict=True):
        seconds[factor.kind == "parameter"] += factor.requires_grad * product
    return OpCost(forward, seconds[False], seconds[True], 2 * batch * m * n * k)


def _convolution(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """An implicit product (cuDNN's, Chetlur et al., 2014), one per group.

    Rows are the pixels of the result of all samples, columns the output channels, and the
    contracted dim is the kernel's window over the input channels. A transposed convolution
    exchanges in- and output. Backward is one product per input with a gradient.
    """
    x, kernel, out = shapes[op.args[0].name], shapes[op.args[1].name], shapes[op.outputs[0]]
    source, target = x, out
    if op.target.split(".")[1].startswith("conv_transpose"):
        source, target = out, x
    groups = source[1] // kernel[1]
    pixels, window = target[0] * math.prod(target[2:]), math.prod(kernel[1:])
    factors = tuple(values[a.name] for a in op.args[:2])
    return _product(cluster, factors, (pixels, target[1] // groups, window), groups)


def _einsum(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Of two tensors: a batched product; letters that only one of them has count as rows."""
    if len(op.inputs()) != 2:
        return _elementwise(cluster, op, values, shapes)
    left, _, right = op.args[0].replace(" ", "").partition("->")
    first, second = left.split(",")
    sizes: dict[str, int] = {}
    for term, name in zip((first, second), op.inputs(), strict=True):
        sizes |= dict(zip(term, shapes[name], strict=True))

    def size(letters: set[str]) -> int:
        return math.prod(sizes[letter] for letter in letters)

    both = set(first) & set(second)
    m, n, k = size(set(first) - both), size(set(second) - both), size(both - set(right))
    factors = tuple(values[name] for name in op.inputs())
    return _product(cluster, factors, (m, n, k), size(both & set(right)))


def _recurrent(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Input products of all steps at once, hidden products step by step (cuDNN's order)."""
    x = shapes[op.args[0].name]
    batch, steps = (x[0], x[1]) if op.args[-1] else (x[1], x[0])
    hidden = shapes[op.outputs[0]][-1]
    dtype, seconds, flops = values[op.args[0].name].dtype, 0.0, 0
    for name in refs(op.args[2]):
        if len(shapes[name]) == 2:
            gates, width = shapes[name]
            step = width == hidden and "hh" in values[name].source
            rows, calls = (batch, steps) if step else (batch * steps, 1)
            seconds += calls * gemm_seconds(cluster, rows, gates, width, dtype)
            flops += 2 * batch * steps * gates * width
    return OpCost(seconds, seconds, seconds, flops)


def _attention(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    query, key = shapes[op.args[0].name], shapes[op.args[1].name]
    causal = bool(op.kwargs.get("is_causal") or (len(op.args) > 5 and op.args[5]))
    seconds = {
        backward: attention_seconds(
            cluster, batch=math.prod(query[:-3]), heads=query[-3], query_length=query[-2],
            key_length=key[-2], head_dim=query[-1], dtype=values[op.args[0].name].dtype,
            causal=causal, backward=backward,
        )
        for backward in (False, True)
    }  # fmt: skip
    flops = 4 * math.prod(query) * key[-2] // (2 if causal else 1)
    backward = seconds[True] if values[op.outputs[0]].requires_grad else 0.0
    return OpCost(seconds[False], backward, flops=flops)


def _elementwise(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Forward reads inputs and writes outputs; backward reads both and writes gradients."""
    read = sum(_bytes(n, values, shapes) for n in op.inputs())
    written = sum(_bytes(o, values, shapes) for o in op.outputs)
    name = op.target.split(".")[1]
    kind = _KINDS.get(name, "elementwise")
    forward = elementwise_seconds(cluster, read + written, kind)
    if not any(values[o].requires_grad for o in op.outputs):
        return OpCost(forward)
    wanted = [n for n in op.inputs() if values[n].requires_grad]
    back = kind if kind == "elementwise" else f"{kind}_backward"
    again = read * (len(wanted) > 1 or kind != "elementwise")

    def seconds(names: list[str]) -> float:
        if name in _PASSED_ON:
            sizes = (_bytes(n, values, shapes) for n in names)
            summed = (written + size for size in sizes if name == "add" and size < written)
            return sum(elementwise_seconds(cluster, moved) for moved in summed)
        if not names:
            return 0.0
        moved = written + again + sum(_bytes(n, values, shapes) for n in names)
        return elementwise_seconds(cluster, moved, back)

    weights = [n for n in wanted if values[n].kind == "parameter"]
    inputs = [n for n in wanted if values[n].kind != "parameter"]
    return OpCost(forward, seconds(inputs), seconds(weights), joint_seconds=seconds(wanted))


def _embedding(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Reads and writes the rows; backward fills a gradient of the whole table with zeros first."""
    rows = _bytes(op.outputs[0], values, shapes)
    table = _bytes(op.args[0].name, values, shapes)
    forward = elementwise_seconds(cluster, 2 * rows)
    return OpCost(forward, weight_seconds=elementwise_seconds(cluster, table + 3 * rows))


def _cross_entropy(cluster: Cluster, op: Op, values: Values, shapes: Shapes) -> OpCost:
    """Log-softmax reads and writes the logits; backward reads its result and writes a gradient."""
    logits = _bytes(op.args[0].name, values, shapes)
    forward = elementwise_seconds(cluster, 2 * logits, "softmax")
    return OpCost(forward, elementwise_seconds(cluster, 3 * logits, "softmax_backward"))


def _bytes(name: str, values: Values, shapes: Shapes) -> int:
    return math.prod(shapes[name]) * DTYPE_BYTES[values[name].dtype]


_PRICES: dict[str, Callable[[Cluster, Op, Values, Shapes], OpCost]] = {
    "linear": _gemm,
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution for n in (1, 2)},
    "einsum": _einsum,
    "lstm": _recurrent,
    "gru": _recurrent,
    "matmul": _gemm,
    "mm": _gemm,
    "bmm": _gemm,
    "opaque": _opaque,
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), _grouped),
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    "cross_entropy_loss": _cross_entropy,
}
