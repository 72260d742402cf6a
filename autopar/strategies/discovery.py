"""Named dims of operations that the table does not know, found by running them on shards.

The idea is EasyDist's (Alibaba, 2023): split the inputs in some way, run the op on each part, and
see whether the results, joined or added up, are those of the whole. Here the gradients must agree
too, in the sense of ``states.py``: those of shards are shards, those of whole inputs add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from autopar.graph import Op, Ref, Size, Value
from autopar.strategies.spec import Names, Spec, Values
from autopar.trace.interpret import run

# A trial with more elements than this would take longer than a solve.
MOST_ELEMENTS = 1 << 24
MOST_TRIALS = 128
INTEGERS = 2  # random integers are 0 or 1, which index any dim that can be split
Cut = dict[str, int]


def discovered(op: Op, values: Values, tp: int) -> Spec | None:
    """Dims of ``op`` that may be sharded over ``tp`` ranks, or None if none was found.

    The answer for equal operations on equal shapes is remembered.
    """
    if not op.inputs():
        return None
    order = {name: f"#{k}" for k, name in enumerate((*op.inputs(), *op.outputs))}
    described = tuple(
        (order[n], values[n].shape, values[n].dtype, values[n].requires_grad) for n in order
    )
    renamed = Op(op.target, _rename(op.args, order), _rename(op.kwargs, order),
                 tuple(order[o] for o in op.outputs))  # fmt: skip
    found = _discover(_Key(repr(renamed), renamed), described, tp)
    if found is None:
        return None
    back = {new: old for old, new in order.items()}
    inputs = {back[n]: names for n, names in found.inputs.items()}
    return Spec(inputs, found.outputs, found.whole, found.units)


class _Key:
    """An op among the arguments of a cached function, compared by its text."""

    def __init__(self, text: str, op: Op) -> None:
        self.text, self.op = text, op

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _rename(tree: Any, names: dict[str, str]) -> Any:
    if isinstance(tree, Ref):
        return Ref(names[tree.name])
    if isinstance(tree, tuple):
        return tuple(_rename(item, names) for item in tree)
    if isinstance(tree, dict):
        return {key: _rename(item, names) for key, item in tree.items()}
    return tree


Described = tuple[tuple[str, tuple[Size, ...], str, bool], ...]


@lru_cache(maxsize=4096)
def _discover(key: _Key, described: Described, tp: int) -> Spec | None:
    values = {n: Value(n, shape, dtype, requires_grad=g) for n, shape, dtype, g in described}
    batch = 2 * tp
    if sum(v.elements(batch) for v in values.values()) > MOST_ELEMENTS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trial = _Trial.of(key.op, values, batch, tp)
        groups = list(trial.groups()) if trial else []
    return _spec(key.op, values, groups, tp) if groups else None


def _spec(op: Op, values: Values, groups: list[tuple[Cut, list[int | None]]], tp: int) -> Spec:
    """One name per group of dims that are cut together."""
    inputs = {n: [""] * len(values[n].shape) for n in op.inputs()}
    outputs = [[""] * len(values[o].shape) for o in op.outputs]
    units = {}
    for number, (cut, joined) in enumerate(groups):
        name = f"d{number}"
        units[name] = tp  # other degrees were not tried, and blocks neither
        for tensor, dim in cut.items():
            inputs[tensor][dim] = name
        for place, at in enumerate(joined):
            if at is not None:
                outputs[place][at] = name
    made: tuple[Names, ...] = tuple(tuple(names) for names in outputs)
    return Spec({n: tuple(names) for n, names in inputs.items()}, made, frozenset(), units)


class _Trial:
    """One op with random tensors, its results and gradients when run as a whole."""

    def __init__(
        self, op: Op, tensors: dict[str, Tensor], batch: int, tp: int, results: list[Tensor]
    ) -> None:
        self.op, self.tensors, self.batch, self.tp = op, tensors, batch, tp
        self.results = results
        self.pulls = [torch.randn_like(r) if r.requires_grad else None for r in results]
        self.gradients = _gradients(tensors, results, self.pulls)

    @classmethod
    def of(cls, op: Op, values: Values, batch: int, tp: int) -> _Trial | None:
        """None if the op cannot be run on random tensors, or gives another result each time."""
        tensors = {n: _draw(values[n], batch) for n in op.inputs()}
        try:
            results, again = (_run(op, tensors, batch) for _ in range(2))
        except Exception:  # an op of any library, which may raise anything
            return None
        if not all(_close(a, b) for a, b in zip(results, again, strict=True)):
            return None
        return cls(op, tensors, batch, tp, results)

    def groups(self) -> Iterator[tuple[Cut, list[int | None]]]:
        """Dims of the inputs that may be cut together, and the dim of each result (None: a sum)."""
        taken: set[tuple[str, int]] = set()
        for cut in itertools.islice(self._cuts(), MOST_TRIALS):
            if taken.intersection(cut.items()):
                continue
            joined = self._try(cut)
            if joined is not None:
                taken.update(cut.items())
                yield cut, joined

    def _cuts(self) -> Iterator[Cut]:
        """Each dim alone, then with dims of equal length of ever more other inputs."""
        names = list(self.tensors)
        dims = {n: [None, *range(t.dim())] for n, t in self.tensors.items()}
        choices = sorted(
            itertools.product(*(dims[n] for n in names)),
            key=lambda choice: sum(d is not None for d in choice),
        )
        for choice in choices:
            cut = {n: d for n, d in zip(names, choice, strict=True) if d is not None}
            sizes = {self.tensors[n].shape[d] for n, d in cut.items()}
            if len(sizes) == 1 and not sizes.pop() % self.tp:
                yield cut

    def _try(self, cut: Cut) -> list[int | None] | None:
        try:
            return self._rebuild(cut)
        except Exception:  # the parts do not fit together, which is an answer
            return None

    def _rebuild(self, cut: Cut) -> list[int | None] | None:
        parts = [self._part(cut, rank) for rank in range(self.tp)]
        found = [_run(self.op, part, self.batch) for part in parts]
        joined: list[int | None] = []
        for place, whole in enumerate(self.results):
            dims = _joined([results[place] for results in found], whole)
            if dims is None:
                return None
            joined.append(dims[0])
        return joined if self._gradients_agree(cut, parts, found, joined) else None

    def _part(self, cut: Cut, rank: int) -> dict[str, Tensor]:
        return {
            n: (t.detach().chunk(self.tp, cut[n])[rank] if n in cut else t.detach())
            .clone()
            .requires_grad_(t.requires_grad)
            for n, t in self.tensors.items()
        }

    def _gradients_agree(
        self, cut: Cut, parts: list[dict[str, Tensor]], found: list[list[Tensor]],
        joined: list[int | None],
    ) -> bool:  # fmt: skip
        each = []
        for rank, (part, results) in enumerate(zip(parts, found, strict=True)):
            pulls = [
                pull if pull is None or dim is None else pull.chunk(self.tp, dim)[rank]
                for pull, dim in zip(self.pulls, joined, strict=True)
            ]
            each.append(_gradients(part, results, pulls))
        for name, whole in self.gradients.items():
            shares = [gradients[name] for gradients in each]
            total = torch.cat(shares, cut[name]) if name in cut else sum(shares)
            if not _close(torch.as_tensor(total), whole):
                return False
        return True


def _draw(value: Value, batch: int) -> Tensor:
    shape = [size.at(batch) for size in value.shape]
    if value.dtype == "bool":
        return torch.rand(shape) > 0.5
    if value.dtype.startswith("complex"):
        return torch.randn(shape, dtype=torch.complex128).requires_grad_(value.requires_grad)
    if not value.dtype.startswith(("float", "bfloat")):
        return torch.randint(INTEGERS, shape, dtype=getattr(torch, value.dtype))
    return (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_(value.requires_grad)


def _run(op: Op, tensors: dict[str, Tensor], batch: int) -> list[Tensor]:
    """Runs the op, on ``meta`` first: a kernel may trust sizes that do not fit together."""
    run(op, {name: tensor.detach().to("meta") for name, tensor in tensors.items()}, batch, "meta")
    return [torch.as_tensor(result) for result in run(op, tensors, batch, "cpu")]


def _gradients(
    tensors: dict[str, Tensor], results: list[Tensor], pulls: list[Tensor | None]
) -> dict[str, Tensor]:
    learned = {n: t for n, t in tensors.items() if t.requires_grad}
    pairs = [(r, p) for r, p in zip(results, pulls, strict=True) if p is not None]
    if not learned or not pairs:
        return {}
    outputs, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, list(learned.values()), grads, materialize_grads=True)
    return dict(zip(learned, found, strict=True))


def _joined(parts: list[Tensor], whole: Tensor) -> tuple[int | None] | None:
    """(dim,) if the parts are shards of that dim, (None,) if they add up, else None."""
    for dim in range(whole.dim()):
        if parts[0].shape[dim] * len(parts) == whole.shape[dim]:
            joined = torch.cat(parts, dim)
            if joined.shape == whole.shape and _close(joined, whole):
                return (dim,)
    if parts[0].shape == whole.shape and whole.requires_grad:
        return (None,) if _close(torch.stack(parts).sum(0), whole) else None
    return None


def _close(found: Tensor, wanted: Tensor) -> bool:
    if not (wanted.dtype.is_floating_point or wanted.dtype.is_complex):
        return torch.equal(found, wanted)
    return torch.allclose(found, wanted, rtol=1e-6, atol=1e-8, equal_nan=True)
