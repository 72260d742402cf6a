"""What one rank holds of a value."""

from __future__ import annotations

from autopar.graph import Op, Ref, Size, Value
from autopar.strategies.sharding import Sharding, local_elements, local_shape
from autopar.strategies.states import P, R, V, shard
from autopar.strategies.strategy import Strategy

X = Value("x", (Size(1, 1), Size(16), Size(48)), "float32")


def test_shards_are_smaller_and_all_other_states_whole():
    assert local_shape(X, shard(2, Size(3)), 4, batch=5) == (5, 16, 12)
    assert local_elements(X, shard(2, Size(3)), 4, batch=5) == 5 * 16 * 12
    for state in (R, V, P):
        assert local_shape(X, state, 4, batch=5) == (5, 16, 48)
        assert local_elements(X, state, 4, batch=5) == 5 * 16 * 48


def test_states_in_which_activations_are_made():
    ops = (Op("aten.exp.default", (Ref("x"),), {}, ("y",)),)
    sharding = Sharding(2, "replicate", {0: Strategy((("x", R),), (shard(1),))}, (), {})
    assert sharding.made(ops) == {"y": shard(1)}
