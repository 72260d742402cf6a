"""Whether a loss is a mean over the samples or a sum: programs average it over micro-batches.

Every value without a batch dim gets the powers of the number of samples that its terms grow with: 0
for a mean, 1 for a sum. A sum that is divided by the number of samples, or of those that count, is
a mean again.
"""

from __future__ import annotations

from autopar.graph import Graph, Op, Size
from autopar.strategies.spec import argument, name_of
from autopar.trace.opaque import OPAQUE, OpaqueCall

# Where each loss has its reduction, an integer: 0 none, 1 mean, 2 sum.
_REDUCTION = {
    "mse_loss": 2, "l1_loss": 2, "smooth_l1_loss": 2, "huber_loss": 2, "kl_div": 2,
    "soft_margin_loss": 2, "multilabel_margin_loss": 2, "cross_entropy_loss": 3, "nll_loss": 3,
    "nll_loss_nd": 3, "nll_loss2d": 3, "binary_cross_entropy": 3, "hinge_embedding_loss": 3,
    "binary_cross_entropy_with_logits": 4, "cosine_embedding_loss": 4, "margin_ranking_loss": 4,
    "poisson_nll_loss": 5, "ctc_loss": 5, "multi_margin_loss": 5, "triplet_margin_loss": 7,
}  # fmt: skip
_SUMS = {"sum", "nansum", "dot", "mv", "mm", "matmul", "bmm", "linear", "einsum"}
_PASSED = {
    "neg", "to", "_to_copy", "clone", "detach", "alias", "view", "reshape", "squeeze", "unsqueeze",
    "expand", "sum", "mean", "abs", "select", "permute", "transpose", "flatten", "type_as",
}  # fmt: skip
_ADDED = {"add", "sub", "rsub", "stack", "cat"}
Powers = frozenset[int]
UNKNOWN: Powers = frozenset()
MEAN, SUM = frozenset({0}), frozenset({1})


def loss_powers(graph: Graph) -> Powers:
    """Powers of the number of samples in the loss: ``MEAN``, ``SUM``, both, ... or ``UNKNOWN``.

    A term that no sample has a part in counts like a mean: it is the same in every micro-batch.
    """
    known: dict[str, Powers] = {}
    for op in graph.ops:
        found = _powers(graph, op, known)
        known.update((n, UNKNOWN if _of_samples(graph, n) else found) for n in op.outputs)
    return known.get(graph.loss, UNKNOWN)


def _of_samples(graph: Graph, name: str) -> bool:
    """Whether a value has the samples along a dim."""
    return any(size.power for size in graph.values[name].shape)


def _powers(graph: Graph, op: Op, known: dict[str, Powers]) -> Powers:
    name = name_of(op)
    inputs = [graph.values[n] for n in op.inputs()]
    if op.target == OPAQUE:
        return SUM if OpaqueCall.of(op).sums else MEAN
    if any(_of_samples(graph, value.name) for value in inputs):
        return _reduced(op, name)
    each = [known.get(v.name, MEAN if v.kind != "activation" else UNKNOWN) for v in inputs]
    if not each:
        return MEAN
    if not all(each):
        return UNKNOWN
    if name in _ADDED:
        return frozenset().union(*each)
    if name in ("mul", "div"):
        return _product(op, each, -1 if name == "div" else 1)
    return each[0] if name in _PASSED or all(p == MEAN for p in each) else UNKNOWN


def _reduced(op: Op, name: str) -> Powers:
    """Of what has the samples' dim as it goes."""
    if name in _REDUCTION:
        kind = argument(op, _REDUCTION[name], "reduction", 1)
        return {1: MEAN, 2: SUM}.get(kind if isinstance(kind, int) else 0, UNKNOWN)
    if name in ("mean", "nanmean"):
        return MEAN
    return SUM if name in _SUMS else UNKNOWN


def _product(op: Op, each: list[Powers], sign: int) -> Powers:
    """Powers add up in a product; the number of samples itself may be a factor."""
    sizes = [a.power * sign for a in op.args[1:] if isinstance(a, Size)]
    first, *rest = each
    shift = sum(sizes)
    for other in rest:
        if len(other) != 1:
            return UNKNOWN
        shift += sign * next(iter(other))
    return frozenset(power + shift for power in first)
