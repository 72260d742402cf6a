"""Seconds of changes of state."""

from __future__ import annotations

import pytest

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.moves import inner_seconds, move_seconds, tp_group
from autopar.graph import Size, Value
from autopar.strategies.states import MOVES, STAY, R, shard
from autopar.strategies.strategy import Strategy

CLUSTER = Cluster.load("h100-80g")
X = Value("x", (Size(1, 1), Size(1024), Size(512)), "bfloat16", requires_grad=True)


@pytest.mark.parametrize(
    ("tp", "group"), [(2, Group(2, 2, 4)), (8, Group(8, 8, 1)), (16, Group(16, 8, 1))]
)
def test_tp_ranks_are_neighbours(tp, group):
    assert tp_group(CLUSTER, tp) == group


@pytest.mark.parametrize("pair", MOVES, ids="->".join)
def test_moves_pay_for_their_collectives_with_the_whole_tensor(pair):
    step = MOVES[pair]
    payload = X.bytes(3) // (4 if step.function == "all_to_all" else 1)
    for kind, seconds in zip((step.forward, step.backward),
                             move_seconds(CLUSTER, step, X, 4, 3), strict=True):  # fmt: skip
        expected = collective_seconds(CLUSTER, kind, payload, tp_group(CLUSTER, 4)) if kind else 0
        assert seconds == expected
        assert (seconds > 0) == bool(kind)


def test_staying_costs_nothing():
    assert move_seconds(CLUSTER, STAY, X, 4, 3) == (0.0, 0.0)


def test_collectives_inside_an_op():
    target = Value("t", (Size(1024, 1),), "int64")
    strategy = Strategy((("t", R),), (R,), "sharded_cross_entropy", (("all_reduce", "t"),) * 3)
    one = collective_seconds(CLUSTER, "all_reduce", 2 * 1024 * 4, tp_group(CLUSTER, 8))
    assert inner_seconds(CLUSTER, strategy, {"t": target}, 8, 2) == pytest.approx(3 * one)
    assert inner_seconds(CLUSTER, Strategy((), (shard(0),)), {}, 8, 2) == 0
