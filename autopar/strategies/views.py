"""How a shard travels through reshapes and splits."""

from __future__ import annotations

from autopar.graph import Op, Size, Value
from autopar.strategies.states import State, divides

Values = dict[str, Value]
RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
SPLITS = frozenset({"split", "chunk", "split_with_sizes"})


def through_reshape(state: State, before: Value, after: Value, tp: int) -> State | None:
    """The state behind a reshape of a tensor sharded in front of it.

    In row-major order a shard is "blocks, then rank, then the rest". The blocks in front
    of the sharded factor are counted before the reshape and found again behind it. Example:
    (batch, 8 heads x 64) sharded on dim 1 becomes (batch, 8, 64) sharded on dim 1.
    """
    if state.kind != "S":
        return state
    blocks = _product(before.shape[: state.dim], Size(*state.outer))
    seen = Size(1)
    for dim, size in enumerate(after.shape):
        outer = _quotient(blocks, seen)
        if outer is not None and divides(size, (outer.coefficient, outer.power), tp):
            result = State("S", dim, (outer.coefficient, outer.power))
            return result if _consistent(state, before, result, after) else None
        seen = _product((size,), seen)
    return None


def _consistent(old: State, before: Value, new: State, after: Value) -> bool:
    """Whether the sharded factor is followed by equally many elements on both sides."""
    return _behind(old, before) == _behind(new, after)


def _behind(state: State, value: Value) -> Size | None:
    rest = _product(value.shape[state.dim + 1 :], Size(1))
    inner = _quotient(value.shape[state.dim], Size(*state.outer))
    return None if inner is None else _product((inner,), rest)


def through_split(state: State, op: Op, before: Value, after: Value) -> State | None:
    """The state of each piece of a tensor that is split into equal parts along a dim.

    A split along the sharded dim keeps the shards only if every part is sharded: the parts
    are then the outer factor of the shard.
    """
    dim = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)
    dim %= len(before.shape)
    if state.kind != "S" or state.dim != dim:
        return state
    parts = _quotient(before.shape[dim], after.shape[dim])
    if parts is None or not _equal_parts(op):
        return None
    outer = _quotient(Size(*state.outer), parts)
    return None if outer is None else State("S", dim, (outer.coefficient, outer.power))


def parts_of(op: Op, before: Value, after: Value) -> tuple[int, int]:
    """(dim, number of parts) of an equal split."""
    dim = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)
    dim %= len(before.shape)
    return dim, before.shape[dim].coefficient // after.shape[dim].coefficient


def _equal_parts(op: Op) -> bool:
    sizes = op.args[1]
    return not isinstance(sizes, tuple) or len(set(sizes)) == 1


def _product(sizes: tuple[Size, ...], start: Size) -> Size:
    coefficient, power = start.coefficient, start.power
    for size in sizes:
        coefficient, power = coefficient * size.coefficient, power + size.power
    return Size(coefficient, power)


def _quotient(number: Size, divisor: Size) -> Size | None:
    if number.coefficient % divisor.coefficient or number.power < divisor.power:
        return None
    return Size(number.coefficient // divisor.coefficient, number.power - divisor.power)
