"""A shard's way through reshapes and splits, against really sharding numbered tensors."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.graph import Size, Value
from autopar.strategies.states import P, R, State, V, divides, divides_batch, shard
from autopar.strategies.views import parts_of, through_reshape, through_split
from tests.strategies.simulate import BATCH, cut, op_of, value

FACTORS = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5)


def grouped(factors, cuts):
    """The factors multiplied up between the cuts, e.g. (2, 3, 4) cut at 1 as (2, 12)."""
    edges = [0, *sorted(set(cuts)), len(factors)]
    return [math.prod(factors[a:b]) for a, b in itertools.pairwise(edges) if b > a]


def with_batch(name, sizes, *, batched):
    """A value whose first dim holds the batch, if it is to."""
    shape = [Size(n) for n in sizes]
    if batched:
        shape[0] = Size(sizes[0], 1)
    return Value(name, tuple(shape), "float32", requires_grad=True)


@st.composite
def reshapes(draw):
    factors = draw(FACTORS)
    where = st.lists(st.integers(0, len(factors)), max_size=3)
    batched = draw(st.booleans())
    before, after = (
        with_batch(name, grouped(factors, draw(where)), batched=batched) for name in ("x", "y")
    )
    dim = draw(st.integers(0, len(before.shape) - 1))
    outer = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (1, 1), (2, 1)]))
    return State("S", dim, outer), before, after, draw(st.sampled_from([2, 3, 4]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(reshapes())
def test_reshape_of_a_shard_is_the_shard_of_the_reshape(case):
    state, before, after, tp = case
    batched = divides_batch(state, before) and BATCH % tp
    if batched or not divides(before.shape[state.dim], state.outer, tp):
        return
    result = through_reshape(state, before, after, tp)
    if result is None:
        return
    shape = [size.at(BATCH) for size in after.shape]
    whole = torch.arange(before.elements(BATCH)).reshape([s.at(BATCH) for s in before.shape])
    local = list(shape)
    local[result.dim] //= tp
    expected = cut(whole.reshape(shape), result, tp)
    for part, wanted in zip(cut(whole, state, tp), expected, strict=True):
        assert torch.equal(part.reshape(local), wanted)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(FACTORS, st.sampled_from([2, 4]))
def test_splitting_a_dim_and_joining_it_again_keeps_the_shard(factors, tp):
    whole = math.prod(factors)
    joined, apart = value("x", (5, whole)), value("y", (5, *factors))
    for dim, size in enumerate(factors, 1):
        if size % tp == 0:
            start = shard(dim)
            merged = through_reshape(start, apart, joined, tp)
            assert merged == shard(1, Size(math.prod(factors[: dim - 1])))
            assert through_reshape(merged, joined, apart, tp) == first_that_fits(factors, dim, tp)


def first_that_fits(factors, dim, tp):
    """In front of a factor of one stands nothing, so the shard may name either dim."""
    while dim > 1 and factors[dim - 2] == 1 and factors[dim - 2] % tp == 0:
        dim -= 1
    return shard(dim)


def test_heads():
    before = Value("x", (Size(1, 1), Size(16), Size(32)), "float32")
    after = Value("y", (Size(1, 1), Size(16), Size(4), Size(8)), "float32")
    assert through_reshape(shard(2), before, after, 2) == shard(2)
    assert through_reshape(shard(3), after, before, 2) == shard(2, Size(4))
    assert through_reshape(shard(2), before, after, 8) is None, "four heads for eight ranks"
    for state in (R, V, P):
        assert through_reshape(state, before, after, 2) == state


def test_tokens_behind_flattening_have_the_batch_in_front():
    before = Value("x", (Size(1, 1), Size(16), Size(32)), "float32")
    after = Value("y", (Size(16, 1), Size(32)), "float32")
    assert through_reshape(shard(1), before, after, 2) == State("S", 0, (1, 1))
    assert through_reshape(State("S", 0, (1, 1)), after, before, 2) == shard(1)


def test_fused_projections():
    fused, part = value("x", (4, 48)), value("y0", (4, 16))
    thirds = op_of("aten.split.Tensor", None, 16, 1, outputs=3)
    assert parts_of(thirds, fused, part) == (1, 3)
    assert through_split(shard(1, Size(3)), thirds, fused, part) == shard(1)
    assert through_split(shard(1), thirds, fused, part) is None
    assert through_split(shard(0), thirds, fused, part) == shard(0)
    unequal = op_of("aten.split_with_sizes.default", None, (16, 32), 1, outputs=2)
    assert through_split(shard(1, Size(3)), unequal, fused, part) is None
