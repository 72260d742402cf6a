"""Operations that run on shards in a form of their own, a function of the emitted program."""

from __future__ import annotations

from collections.abc import Callable

from autopar.graph import Op, Ref, Size, Value
from autopar.strategies.spec import Values, argument
from autopar.strategies.states import D, P, R, V, divides, shard
from autopar.strategies.strategy import Outers, Strategy


def embedding(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    """Rows of the table (vocabulary), columns (hidden), or any dim of the index may be split.

    A gradient that is scaled by the frequency of a row needs all of the index.
    """
    if any(op.args[3:]):
        return []
    table, index = (values[a.name] for a in op.args[:2])
    out = values[op.outputs[0]]
    plain = len(op.args) < 3 or op.args[2] in (None, -1)
    found = []
    if divides(table.shape[0], (1, 0), tp) and plain:
        inputs = ((table.name, shard(0)), (index.name, R))
        found.append(Strategy(inputs, (P,), special="sharded_embedding"))
    if divides(table.shape[1], (1, 0), tp):
        inputs = ((table.name, shard(1)), (index.name, R))
        found.append(Strategy(inputs, (shard(len(out.shape) - 1),)))
    for dim, size in enumerate(index.shape):
        if divides(size, (1, 0), tp):
            whole = V if table.requires_grad else R
            found.append(Strategy(((table.name, whole), (index.name, shard(dim))), (shard(dim),)))
    return found


def cross_entropy(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    """Logits of (rows, classes, ...): either dim may be split.

    Over the classes it takes three small all-reduces. Over the rows every rank sums its own
    losses and divides by what the whole target counts, which it reads whole.
    """
    logits, target = (values[a.name] for a in op.args[:2])
    weight, reduction = argument(op, 2, "weight"), argument(op, 3, "reduction", 1)
    if reduction == 0 or len(logits.shape) < 2:
        return []
    found = _over_rows(op, logits, target, tp, outers)
    usable = weight is None and reduction == 1 and not argument(op, 5, "label_smoothing", 0.0)
    usable &= len(logits.shape) == 2 and target.dtype == "int64" and not op.kwargs
    if usable and divides(logits.shape[1], (1, 0), tp):
        inputs = ((logits.name, shard(1)), (target.name, R))
        per_row = ("all_reduce", target.name)
        found.append(
            Strategy(inputs, (R,), special="sharded_cross_entropy", collectives=(per_row,) * 3)
        )
    return found


def _over_rows(op: Op, logits: Value, target: Value, tp: int, outers: Outers) -> list[Strategy]:
    """The rows behind a flattened sequence may also be split within each sample."""
    if target.dtype != "int64" or len(op.inputs()) > 2:
        return []
    blocks = outers.get((logits.name, 0), set()) | {(1, 0)}
    return [
        Strategy(
            ((logits.name, shard(0, Size(*outer))), (target.name, R)), (P,),
            special="rows_cross_entropy",
        )
        for outer in sorted(blocks)
        if divides(logits.shape[0], outer, tp)
    ]  # fmt: skip


def batch_norm(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    """Channels may be split; running statistics are gathered, for they are not parameters.

    The samples are not: their statistics are those of the whole micro-batch.
    """
    x = values[op.args[0].name]
    statistics = [a for a in op.args[3:5] if isinstance(a, Ref)]
    if not statistics or not op.args[5] or not divides(x.shape[1], (1, 0), tp):
        return []
    parameters = [(a.name, shard(0)) for a in op.args[1:3] if isinstance(a, Ref)]
    whole = [(a.name, R) for a in statistics]
    gathered = tuple(("all_gather", a.name) for a in statistics)
    inputs = ((x.name, shard(1)), *parameters, *whole)
    return [Strategy(inputs, (shard(1),), special="sharded_batch_norm", collectives=gathered)]


def experts(op: Op, values: Values, tp: int, outers: Outers) -> list[Strategy]:
    """Rows of x, sorted by expert, times the matrix of their expert: the experts may be shared out.

    A rank multiplies the rows of its own experts. Where those come from such a product themselves
    it has just them.
    """
    if [len(values[name].shape) for name in op.inputs()] != [2, 3, 1]:
        return []
    x, weight, ends = (values[name] for name in op.inputs())
    if not divides(weight.shape[0], (1, 0), tp):
        return []
    return [
        Strategy(
            ((x.name, state), (weight.name, shard(0)), (ends.name, R)), (D,),
            special="sharded_experts",
        )
        for state in ((V, D) if x.requires_grad else (R,))
    ]  # fmt: skip


SPECIAL: dict[str, Callable[[Op, Values, int, Outers], list[Strategy]]] = {
    "embedding": embedding,
    "cross_entropy_loss": cross_entropy,
    "batch_norm": batch_norm,
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), experts),
}
