"""Finds operations whose result depends on which samples share a micro-batch.

A data-parallel rank has only some of the samples. What it may compute from them: values of single
samples, and sums or means over them that go into the loss linearly, for the loss is averaged over
the ranks. Anything else would train another model than the single device does, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from autopar.graph import Graph, Op, Ref, Size, Value
from autopar.strategies.spec import Values, argument, name_of
from autopar.strategies.statistics import is_synchronised, mixes_samples
from autopar.trace.inplace import is_inplace
from autopar.trace.opaque import OPAQUE, OpaqueCall

# What a value is made of. Of integers and masks alone: how often something counts. Of samples,
# each element of one. A sum over samples.
NOTHING, COUNT, SAMPLES, SUM = range(4)
# Reductions that are sums or means, or losses, which are such.
ADDITIVE = frozenset({
    "sum", "mean", "matmul", "mm", "bmm", "mv", "dot", "linear", "einsum", "nansum", "nanmean",
    "cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "kl_div", "binary_cross_entropy", "soft_margin_loss",
    "binary_cross_entropy_with_logits", "gaussian_nll_loss", "poisson_nll_loss", "ctc_loss",
    "cosine_embedding_loss", "hinge_embedding_loss", "margin_ranking_loss", "triplet_margin_loss",
    "multi_margin_loss", "multilabel_margin_loss",
})  # fmt: skip
# Linear in each of their arguments, if only one of them is a sum over samples.
LINEAR = ADDITIVE | {
    "add", "sub", "rsub", "neg", "mul", "div", "to", "_to_copy", "type_as", "clone", "detach",
    "alias", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "expand", "select", "slice", "index", "split", "chunk", "unbind", "stack",
    "cat", "cumsum", "contiguous", "repeat", "where", "masked_fill", "outer",
}  # fmt: skip
# These read no more than the shape of their first argument.
SHAPE_ONLY = (
    "new_",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
)
# Position and default of the dims along which an op mixes elements and keeps them apart.
ALONG: dict[str, tuple[int, str, object]] = {
    "softmax": (1, "dim", None),
    "_softmax": (1, "dim", None),
    "log_softmax": (1, "dim", None),
    "cumsum": (1, "dim", None),
    "cumprod": (1, "dim", None),
    "logcumsumexp": (1, "dim", None),
    "sort": (1, "dim", -1),
    "flip": (1, "dims", ()),
    "roll": (2, "dims", ()),
}


@dataclass(frozen=True)
class Mixing:
    """An operation that mixes samples: its index, and what it does."""

    index: int
    reason: str


@dataclass
class _Walk:
    """The kind of each value, and what was found, while the ops are read in order."""

    values: Values
    kinds: dict[str, int] = field(default_factory=dict)
    found: list[Mixing] = field(default_factory=list)
    makers: dict[str, Op] = field(default_factory=dict)


def find_mixing(graph: Graph) -> list[Mixing]:
    """The ops of a traced model that mix samples in other ways than programs synchronise."""
    walk = _Walk(graph.values)
    for name, value in graph.values.items():
        if value.kind == "input":
            walk.kinds[name] = SAMPLES if _is_float(value) else COUNT
    for index, op in enumerate(graph.ops):
        walk.makers.update(dict.fromkeys(op.outputs, op))
        if op.target == OPAQUE:
            reason = _of_module(op, walk)
        else:
            kind, reason = _kind(op, walk)
            walk.kinds.update(dict.fromkeys(op.outputs, kind))
        if reason:
            walk.found.append(Mixing(index, reason))
    return walk.found


def _kind(op: Op, walk: _Walk) -> tuple[int, str]:
    """What the results of an op are made of, and how it mixes samples, if it does."""
    values = walk.values
    kinds = {name: walk.kinds.get(name, NOTHING) for name in op.inputs()}
    most = max(kinds.values(), default=NOTHING)
    out = values[op.outputs[0]]
    if most == NOTHING or name_of(op).startswith(SHAPE_ONLY):
        return NOTHING, ""
    if is_inplace(op):
        return most, "changes a buffer by what the samples are"
    if not _is_float(out):
        return COUNT, ""
    if most == COUNT:
        learned = out.requires_grad and _batch_dims(out)
        return (SAMPLES if learned else COUNT), ""
    return _of_sums(op, kinds, out) if most == SUM else _of_samples(op, kinds, out, walk)


def _of_module(op: Op, walk: _Walk) -> str:
    """What is said about a module that is run whole; sets the kinds of all that it makes."""
    most = max((walk.kinds.get(name, NOTHING) for name in op.inputs()), default=NOTHING)
    for name in op.outputs:
        value = walk.values[name]
        kind = (SAMPLES if _batch_dims(value) else SUM) if _is_float(value) else COUNT
        walk.kinds[name] = min(kind, most) if most <= COUNT and not value.requires_grad else kind
    if most == NOTHING:
        walk.kinds.update(dict.fromkeys(op.outputs, NOTHING))
        return ""
    if most == SUM:
        return "reads a sum or mean over the samples"
    return "mixes samples, as running it showed," if OpaqueCall.of(op).mixes else ""


def _of_samples(op: Op, kinds: dict[str, int], out: Value, walk: _Walk) -> tuple[int, str]:
    dims = _batch_dims(out)
    if len(dims) > 1:
        return SAMPLES, "compares every sample with every other"
    if not dims:
        additive = name_of(op) in ADDITIVE
        return SUM, "" if additive else "reduces over the samples by other than a sum or mean"
    if mixes_samples(op):
        return SAMPLES, "" if is_synchronised(op) else "keeps running means over the samples"
    read = [walk.values[name] for name, kind in kinds.items() if kind == SAMPLES]
    along = any(_runs_along(op, value) for value in read) and not _grouped(op, walk)
    return SAMPLES, "runs along the samples" if along else ""


def _grouped(op: Op, walk: _Walk) -> bool:
    """Whether an op is a convolution each of whose groups lies in one sample.

    Its channels are those of one sample after the other, and so are its weights and biases.
    """
    groups = argument(op, 6, "groups", 1)
    if _SPECIAL.get(name_of(op)) is not _convolved or not isinstance(groups, Size):
        return False
    read = [(tensor, int(place == 0)) for place, tensor in enumerate(op.args[:3]) if tensor]
    return groups.power == 1 and all(
        walk.values[tensor.name].shape[dim].coefficient % groups.coefficient == 0
        and _joins_samples(walk.values[tensor.name], dim, walk)
        for tensor, dim in read
    )


def _joins_samples(value: Value, dim: int, walk: _Walk) -> bool:
    """Whether a dim is one of samples, which came first, joined with those behind it."""
    maker = walk.makers.get(value.name)
    if maker is None or name_of(maker) not in ("reshape", "view", "_unsafe_view", "flatten"):
        return False
    source = walk.values[maker.inputs()[0]]
    first = source.shape[:1] == (Size(1, 1),) and _batch_dims(source) == [0]
    return first and _batch_dims(value) == [dim] and set(value.shape[:dim]) <= {Size(1)}


def _of_sums(op: Op, kinds: dict[str, int], out: Value) -> tuple[int, str]:
    name = name_of(op)
    if _batch_dims(out):
        return SAMPLES, "hands a sum or mean over the samples back to single samples"
    sums = [n for n, kind in kinds.items() if kind == SUM]
    factors = [n for n, kind in kinds.items() if kind in (SUM, COUNT)]
    if name not in LINEAR:
        return SUM, "is not linear in a sum or mean over the samples"
    if name in ("mul", *(ADDITIVE - {"sum", "mean"})) and (len(factors) > 1 or _squares(op)):
        return SUM, "multiplies sums or means over the samples"
    if name == "div" and _second(op) in sums:
        return SUM, "divides by a sum or mean over the samples"
    return SUM, ""


def _squares(op: Op) -> bool:
    return len(op.args) > 1 and op.args[0] == op.args[1]


def _second(op: Op) -> str:
    second = op.args[1] if len(op.args) > 1 else None
    return second.name if isinstance(second, Ref) else ""


def _is_float(value: Value) -> bool:
    return value.dtype.startswith(("float", "bfloat", "complex"))


def _batch_dims(value: Value) -> list[int]:
    return [dim for dim, size in enumerate(value.shape) if size.power]


def _runs_along(op: Op, value: Value) -> bool:
    """Whether an op that keeps the samples apart in its result mixes them nevertheless."""
    name, rank, batch = name_of(op), len(value.shape), _batch_dims(value)
    special = _SPECIAL.get(name)
    if special:
        return special(op, value)
    if name not in ALONG:
        return False
    position, key, default = ALONG[name]
    dims = argument(op, position, key, default)
    dims = dims if isinstance(dims, tuple) else (dims,)
    return any(isinstance(dim, int) and dim % rank in batch for dim in dims)


def _normalized(op: Op, value: Value) -> bool:
    """The last dims are normalised."""
    shape = argument(op, 1, "normalized_shape")
    last = len(shape) if isinstance(shape, tuple) else 1
    return any(dim >= len(value.shape) - last for dim in _batch_dims(value))


def _attended(op: Op, value: Value) -> bool:
    """The last two dims are the sequence and the features."""
    return any(dim >= len(value.shape) - 2 for dim in _batch_dims(value))


def _recurrent(op: Op, value: Value) -> bool:
    """The first dim is the time unless the batch comes first; states have the batch second."""
    first = op.args[0]
    if not isinstance(first, Ref) or first.name != value.name or len(value.shape) < 3:
        return False
    return _batch_dims(value) != [0 if op.args[-1] is True else 1]


def _convolved(op: Op, value: Value) -> bool:
    """Behind the batch come channels and places."""
    return any(_batch_dims(value))


_SPECIAL: dict[str, Callable[[Op, Value], bool]] = {
    "layer_norm": _normalized,
    "rms_norm": _normalized,
    "scaled_dot_product_attention": _attended,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
    "rnn_relu": _recurrent,
    **{f"conv{n}d": _convolved for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolved for n in (1, 2, 3)},
}
