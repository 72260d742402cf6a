"""The algebra of states: names, shards, and the moves between them, each run on real shards."""

from __future__ import annotations

import itertools

import pytest
import torch

from autopar.graph import Size, Value
from autopar.strategies.states import (
    CONSTANT_MOVES,
    MOVES,
    STAY,
    D,
    Move,
    P,
    R,
    V,
    divides,
    divides_batch,
    move,
    parse_state,
    shard,
)
from tests.strategies.collectives import BACKWARD, FORWARD
from tests.strategies.simulate import check_whole, cut, cut_gradient

TP = 2
X = Value("x", (Size(4), Size(6)), "float32", requires_grad=True)
STATES = {"R": [R], "V": [V], "P": [P], "D": [D], "S": [shard(0), shard(1)]}


def pairs():
    for a, b in MOVES:
        for source, target in itertools.product(STATES[a], STATES[b]):
            if source != target:
                yield source, target


@pytest.mark.parametrize(("source", "target"), list(pairs()), ids=str)
def test_every_move(source, target):
    torch.manual_seed(0)
    step = move(source, target, X, TP)
    whole, gradient = torch.randn(4, 6), torch.randn(4, 6)
    moved = FORWARD[step.function](cut(whole, source, TP), source, target)
    check_whole(moved, target, whole, "P")
    back = BACKWARD[step.function](cut_gradient(gradient, target, TP), source, target)
    check_whole(back, source, gradient, "V")


def test_moves_without_a_gradient_are_a_subset():
    for pair, step in CONSTANT_MOVES.items():
        assert not step.backward
        assert pair in MOVES
    constant = Value("x", X.shape, "int64")
    assert move(R, shard(0), constant, TP) == Move("narrow", "", "")
    assert move(shard(0), shard(1), constant, TP) is None


def test_impossible_moves():
    assert move(V, R, X, TP) is None
    assert move(R, P, X, TP) is None
    assert move(shard(0), shard(0), X, TP) == STAY
    assert move(shard(1, Size(3)), R, X, TP) is None, "a fused shard is not one block"
    assert move(R, shard(1), X, 4) is None, "6 is no multiple of 4"


@pytest.mark.parametrize(
    "state",
    [R, V, P, shard(0), shard(2), shard(1, Size(3)), shard(2, Size(12, 1)), shard(0, Size(1, 1))],
)
def test_text_form(state):
    assert parse_state(str(state)) == state


def test_divides():
    assert divides(Size(12), (3, 0), 2)
    assert not divides(Size(12), (3, 0), 8)
    assert divides(Size(12, 1), (1, 1), 2)
    assert divides(Size(3, 1), (1, 0), 2), "for micro-batches of a multiple of two"


def test_shards_of_the_batch():
    rows = Value("x", (Size(12, 1), Size(6)), "float32")
    assert divides_batch(shard(0), rows)
    assert not divides_batch(shard(0, Size(1, 1)), rows), "twelve rows of each sample are divided"
    assert not divides_batch(shard(1), rows)
    assert not divides_batch(R, rows)
