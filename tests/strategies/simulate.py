"""Runs one op under a strategy, rank by rank in this process, by the algebra of states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.graph import Op, Size, Value
from autopar.strategies.sharding import local_shape
from autopar.strategies.spec import name_of
from autopar.strategies.states import State, shard
from autopar.strategies.strategy import Strategy
from autopar.strategies.views import RESHAPES, SPLITS
from autopar.trace.interpret import run

BATCH = 2
GROUPS = {"conv1d": 6, "conv2d": 6, "conv3d": 6, "group_norm": 1}  # where the groups stand
Values = dict[str, Value]
Tensors = dict[str, Tensor]


def blocks(tensor: Tensor, state: State, tp: int) -> Tensor:
    """``tensor`` with its sharded dim as (outer, tp, inner)."""
    outer = Size(*state.outer).at(BATCH)
    return tensor.unflatten(state.dim, (outer, tp, -1))


def cut(tensor: Tensor, state: State, tp: int) -> list[Tensor]:
    """What each rank holds of ``tensor``; partial sums are random numbers that add up to it."""
    if state.kind == "S":
        parts = blocks(tensor, state, tp).unbind(state.dim + 1)
        return [part.flatten(state.dim, state.dim + 1) for part in parts]
    if state.kind == "D":
        return [tensor.where(own, 0) for own in owned(tensor, tp)]
    return split_sum(tensor, tp) if state.kind == "P" else [tensor] * tp


def owned(tensor: Tensor, tp: int) -> list[Tensor]:
    """Which elements belong to each rank: equally many rows."""
    rows = torch.arange(len(tensor)).reshape(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor)
    return [rows * tp // len(tensor) == rank for rank in range(tp)]


def cut_gradient(gradient: Tensor, state: State, tp: int) -> list[Tensor]:
    """The gradient that reaches each rank: partial sums for V, whole for R and P."""
    if state.kind == "S":
        return cut(gradient, state, tp)
    return split_sum(gradient, tp) if state.kind == "V" else [gradient] * tp


def split_sum(tensor: Tensor, tp: int) -> list[Tensor]:
    parts = [torch.randn_like(tensor) for _ in range(tp - 1)]
    return [*parts, tensor - sum(parts)]


def check_whole(parts: Sequence[Tensor], state: State, whole: Tensor, summed: str) -> None:
    """Rebuilds a tensor from its parts; those in the state ``summed`` add up."""
    tp = len(parts)
    if state.kind == summed or (state.kind, summed) == ("D", "P"):
        close(sum(parts), whole)
    elif state.kind == "D":  # a gradient, which is right in the rank's own rows
        for part, own in zip(parts, owned(whole, tp), strict=True):
            close(part.where(own, 0), whole.where(own, 0))
    else:
        expected = cut(whole, state, tp) if state.kind == "S" else [whole] * tp
        for part, shard in zip(parts, expected, strict=True):
            close(part, shard)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def example(op: Op, values: Values, tp: int) -> Tensors:
    """Random positive tensors of the traced shapes; indices lie in the range of what they index."""
    ceiling = {"embedding": 0, "cross_entropy_loss": 1}
    tensors = {}
    for name in op.inputs():
        value = values[name]
        shape = [size.at(BATCH) for size in value.shape]
        limit = tp
        if name_of(op) in ceiling and value.dtype == "int64":
            table = values[op.args[0].name]
            limit = table.shape[ceiling[name_of(op)]].at(BATCH)
        tensors[name] = draw(shape, value.dtype, limit)
        if name == "ends":  # half of the rows are those of the first half of the experts
            tensors[name] = torch.tensor([1, 3, 4, 6], dtype=torch.int32)
        if name in ("offsets", "small", "small_too"):  # ascending from 0, and probabilities
            tensors[name] = torch.arange(shape[0]) if name == "offsets" else torch.rand(shape)
    return tensors


def draw(shape: list[int], dtype: str, limit: int) -> Tensor:
    if dtype == "bool":
        return torch.rand(shape) > 0.5
    if dtype.startswith("int"):
        return torch.randint(limit, shape)
    if dtype.startswith("complex"):
        return torch.randn(shape, dtype=torch.complex128)
    return torch.rand(shape, dtype=torch.float64) + 0.5


def localised(op: Op, strategy: Strategy, values: Values, tp: int) -> Op:
    """The op as the emitted program writes it: sizes among its arguments are the local ones."""
    shape = local_shape(values[op.outputs[0]], strategy.outputs[0], tp, BATCH)
    if name_of(op) in RESHAPES:
        return dataclasses.replace(op, target="aten.reshape.default", args=(op.args[0], shape))
    if name_of(op) == "expand":
        return dataclasses.replace(op, args=(op.args[0], shape))
    if name_of(op) in GROUPS and strategy.outputs[0] == shard(1):
        at = GROUPS[name_of(op)]
        groups = op.args[at] if len(op.args) > at else 1
        if groups == 1:
            return op
        return dataclasses.replace(op, args=(*op.args[:at], groups // tp, *op.args[at + 1 :]))
    if name_of(op) in SPLITS:
        dim = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)
        sizes = [
            local_shape(values[o], s, tp, BATCH)[dim]
            for o, s in zip(op.outputs, strategy.outputs, strict=True)
        ]
        return dataclasses.replace(
            op, target="aten.split_with_sizes.default", args=(op.args[0], tuple(sizes), dim),
            kwargs={},
        )  # fmt: skip
    return op


def check_strategy(op: Op, strategy: Strategy, values: Values, tp: int) -> None:
    """Asserts that the ranks' results, and their gradients, rebuild those of the whole op."""
    tensors = {n: _leaf(t, values[n]) for n, t in example(op, values, tp).items()}
    expected = run(op, tensors, BATCH, "cpu")
    ranks = _cut_all(tensors, strategy, values, tp)
    results = run_ranks(op, strategy, values, ranks)
    for k, (output, state) in enumerate(zip(op.outputs, strategy.outputs, strict=True)):
        check_whole([result[k].detach() for result in results], state, expected[k].detach(), "P")
        if values[output].requires_grad:  # what a lookup makes besides differs on meta
            assert tuple(results[0][k].shape) == local_shape(values[output], state, tp, BATCH)
    _check_gradients(tensors, expected, ranks, results, strategy)


def _leaf(tensor: Tensor, value: Value) -> Tensor:
    learned = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_(value.requires_grad and learned)


def _cut_all(tensors: Tensors, strategy: Strategy, values: Values, tp: int) -> list[Tensors]:
    ranks: list[Tensors] = [{} for _ in range(tp)]
    for name, tensor in tensors.items():
        state = strategy.state_of(name)
        for rank, part in enumerate(cut(tensor.detach(), state, tp)):
            ranks[rank][name] = _leaf(part.clone(), values[name])
    return ranks


def run_ranks(
    op: Op, strategy: Strategy, values: Values, ranks: list[Tensors]
) -> list[tuple[Tensor, ...]]:
    if strategy.special and strategy.special != "average":
        return [(result,) for result in SPECIAL[strategy.special](op, ranks, strategy)]
    local = localised(op, strategy, values, len(ranks))
    share = len(ranks) if strategy.special else 1
    return [tuple(y / share if share > 1 else y for y in run(local, rank, BATCH, "cpu"))
            for rank in ranks]  # fmt: skip


def _check_gradients(
    tensors: Tensors, expected: tuple[Tensor, ...], ranks: list[Tensors],
    results: list[tuple[Tensor, ...]], strategy: Strategy,
) -> None:  # fmt: skip
    learned = [k for k, out in enumerate(expected) if out.requires_grad]
    if not learned:
        return
    gradients = {k: torch.randn_like(expected[k]) for k in learned}
    parts = {k: cut_gradient(g, strategy.outputs[k], len(ranks)) for k, g in gradients.items()}
    torch.autograd.backward([expected[k] for k in learned], list(gradients.values()))
    for rank, result in enumerate(results):
        torch.autograd.backward([result[k] for k in learned], [parts[k][rank] for k in learned])
    for name, tensor in tensors.items():
        if tensor.grad is not None:
            found = [rank[name].grad for rank in ranks]
            check_whole(found, strategy.state_of(name), tensor.grad, "V")


def all_reduced(parts: Sequence[Tensor]) -> list[Tensor]:
    """P -> R: the sum on every rank; its gradient goes to the rank's own part unchanged."""
    total = sum(part.detach() for part in parts)
    return [part + (total - part.detach()) for part in parts]


def sharded_embedding(op: Op, ranks: list[Tensors], strategy: Strategy) -> list[Tensor]:
    """A rank looks up the rows that it holds; the others are zeros."""
    results = []
    for rank, tensors in enumerate(ranks):
        table, index = (tensors[a.name] for a in op.args[:2])
        index = index - rank * len(table)
        elsewhere = (index < 0) | (index >= len(table))
        rows = F.embedding(index.masked_fill(elsewhere, 0), table)
        results.append(rows.masked_fill(elsewhere.unsqueeze(-1), 0))
    return results


def sharded_cross_entropy(op: Op, ranks: list[Tensors], strategy: Strategy) -> list[Tensor]:
    """Largest logit, sum of exponentials and the target's logit, each over all ranks."""
    logits = [tensors[op.args[0].name] for tensors in ranks]
    target, width = ranks[0][op.args[1].name], logits[0].shape[1]
    ignored = op.args[4] if len(op.args) > 4 else -100
    top = torch.stack([part.detach().amax(-1) for part in logits]).amax(0)
    total = all_reduced([(part - top.unsqueeze(-1)).exp().sum(-1) for part in logits])
    picked = all_reduced([_picked(part, target - k * width) for k, part in enumerate(logits)])
    kept = target != ignored
    losses = [t.log() + top - p for t, p in zip(total, picked, strict=True)]
    return [(loss * kept).sum() / kept.sum() for loss in losses]


def rows_cross_entropy(op: Op, ranks: list[Tensors], strategy: Strategy) -> list[Tensor]:
    """Every rank sums the losses of its rows and divides by the number of all that count."""
    given = dict(
        zip(("weight", "reduction", "ignore_index", "smoothing"), op.args[2:], strict=False)
    )
    target, ignored = ranks[0][op.args[1].name], given.get("ignore_index", -100)
    count = (target != ignored).sum() if given.get("reduction", 1) == 1 else 1
    owned = cut(target, strategy.state_of(op.args[0].name), len(ranks))
    return [
        F.cross_entropy(tensors[op.args[0].name], own, reduction="sum", ignore_index=ignored,
                        label_smoothing=given.get("smoothing", 0.0)) / count
        for tensors, own in zip(ranks, owned, strict=True)
    ]  # fmt: skip


def sharded_batch_norm(op: Op, ranks: list[Tensors], strategy: Strategy) -> list[Tensor]:
    """Each rank's channels on their own."""
    x, weight, bias = (a.name if a else None for a in op.args[:3])
    return [
        F.batch_norm(tensors[x], None, None, tensors.get(weight), tensors.get(bias), True)
        for tensors in ranks
    ]


def sharded_experts(op: Op, ranks: list[Tensors], strategy: Strategy) -> list[Tensor]:
    """A rank multiplies the rows of its experts; the others are zeros."""
    x, weight, ends = op.inputs()
    results = []
    for rank, tensors in enumerate(ranks):
        group = torch.bucketize(torch.arange(len(tensors[x])), tensors[ends], right=True)
        local = group - rank * len(tensors[weight])
        mine = (local >= 0) & (local < len(tensors[weight]))
        matrices = tensors[weight][local.where(mine, 0)]
        product = torch.einsum("tk,tkn->tn", tensors[x], matrices)
        results.append(product.where(mine.unsqueeze(1), 0))
    return results


def _picked(logits: Tensor, target: Tensor) -> Tensor:
    elsewhere = (target < 0) | (target >= logits.shape[1])
    own = logits.gather(1, target.masked_fill(elsewhere, 0).unsqueeze(1)).squeeze(1)
    return own.masked_fill(elsewhere, 0)


SPECIAL = {
    "sharded_embedding": sharded_embedding,
    "sharded_cross_entropy": sharded_cross_entropy,
    "rows_cross_entropy": rows_cross_entropy,
    "sharded_batch_norm": sharded_batch_norm,
    "sharded_experts": sharded_experts,
}


def made(op: Op, values: Values) -> None:
    """Adds the values that ``op`` makes, as it makes them on ``meta``."""
    inputs = [values[name] for name in op.inputs()]
    tensors = {
        v.name: torch.empty([s.at(BATCH) for s in v.shape], dtype=getattr(torch, v.dtype),
                            device="meta")
        for v in inputs
    }  # fmt: skip
    learned = any(v.requires_grad for v in inputs)
    for name, result in zip(op.outputs, run(op, tensors, BATCH, "meta"), strict=True):
        shape = tuple(Size(size) for size in result.shape)
        dtype = str(result.dtype).removeprefix("torch.")
        gradient = learned and dtype.startswith(("float", "complex"))
        values[name] = Value(name, shape, dtype, requires_grad=gradient)


def value(
    name: str, shape: Sequence[int], dtype: str = "float32", *, learned: bool = True
) -> Value:
    """An activation of a fixed shape; integers never have a gradient."""
    gradient = learned and dtype.startswith(("float", "complex"))
    return Value(name, tuple(map(Size, shape)), dtype, requires_grad=gradient)


def op_of(target: str, *args: object, outputs: int = 1, **kwargs: object) -> Op:
    """An op with outputs "y0", "y1" ..."""
    names = tuple(f"y{k}" for k in range(outputs))
    return Op(target, tuple(args), kwargs, names)
