"""Named dims of one operation, as the sharding table gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from autopar.graph import Op, Ref, Size, Value

Values = dict[str, Value]
Names = tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """Dim names of every tensor of one operation; "" is a dim without a name.

    Attributes:
        inputs: names of each input; one that is left out carries none.
        outputs: names of each output, None for one that is the same on every rank.
        whole: names that may not be sharded.
        units: for dims that can only be cut between groups (of channels), how many there are.
        averaged: names over which the op takes a mean: over equal shards it is the mean of
            the ranks' means.
    """

    inputs: dict[str, Names]
    outputs: tuple[Names | None, ...]
    whole: frozenset[str]
    units: dict[str, int] = field(default_factory=dict)
    averaged: frozenset[str] = frozenset()


def name_of(op: Op) -> str:
    """``linear`` for ``aten.linear.default``."""
    return op.target.split(".")[1]


def numbered(value: Value) -> Names:
    """``("~3", "~2", "~1")``: dims counted from the right, as broadcasting matches them."""
    rank = len(value.shape)
    return tuple(f"~{rank - i}" for i in range(rank))


def present(names: Names, value: Value) -> Names:
    """A dim of size one is broadcast: it does not carry the name."""
    pairs = zip(names, value.shape, strict=True)
    return tuple("" if size == Size(1) else name for name, size in pairs)


def argument(op: Op, position: int, key: str, default: object = None) -> object:
    """An argument that may be given by position or by name."""
    return op.args[position] if len(op.args) > position else op.kwargs.get(key, default)


def combine(pairs: Iterable[tuple[str, Names]]) -> tuple[dict[str, Names], set[str]]:
    """Names per tensor, and the names that must stay whole.

    Those are where one tensor is read under two lists of names: it can have only one state.
    """
    inputs: dict[str, Names] = {}
    whole: set[str] = set()
    for tensor, names in pairs:
        known = inputs.setdefault(tensor, names)
        whole |= {n for pair in zip(known, names, strict=True) for n in pair if pair[0] != pair[1]}
    return inputs, whole


def from_rule(rule: str, op: Op, values: Values, *, whole: Iterable[str] = ()) -> Spec:
    """The names that a rule such as ``"... k, n k -> ... n"`` gives to the tensors of ``op``.

    The patterns on the left are the op's first arguments; those that are no tensors are skipped.
    """
    left, right = ([p.split() for p in side.split(",")] for side in rule.split("->"))
    given = [
        (a.name, present(_expand(pattern, values[a.name]), values[a.name]))
        for pattern, a in zip(left, op.args, strict=False)
        if isinstance(a, Ref)
    ]
    inputs, conflicts = combine(given)
    outputs = tuple(
        _expand(pattern, values[out]) for pattern, out in zip(right, op.outputs, strict=True)
    )
    marked = {p[1:] for pattern in (*left, *right) for p in pattern if p.startswith("!")}
    return Spec(inputs, outputs, frozenset(marked | conflicts | set(whole)))


def _expand(pattern: list[str], value: Value) -> Names:
    """Names for each dim of ``value``: ``...`` becomes ``~2 ~1`` counted from the right."""
    names = [p.lstrip("!") for p in pattern]
    if "..." in names:
        extra = len(value.shape) - len(names) + 1
        at = names.index("...")
        names[at : at + 1] = [f"~{extra - i}" for i in range(extra)]
    return tuple(names[-len(value.shape) :] if value.shape else ())
