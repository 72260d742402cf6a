"""Shardings and patterns through JSON text and back."""

from __future__ import annotations

import json

from autopar.graph import Size
from autopar.strategies.sharding import Moved, Pattern, Sharding
from autopar.strategies.sharding_json import (
    decode_pattern,
    decode_sharding,
    encode_pattern,
    encode_sharding,
)
from autopar.strategies.states import MOVES, P, R, State, V, shard
from autopar.strategies.strategy import Strategy


def test_sharding():
    fused = shard(0, Size(3))
    inner = (("all_reduce", "i"),)
    lookup = Strategy((("w", shard(0)), ("i", R)), (P,), "sharded_embedding", inner)
    sharding = Sharding(
        tp=2,
        layout="sequence",
        strategies={3: Strategy((("x", V), ("w", fused)), (shard(2), R)), 7: lookup},
        moves=(
            Moved("x", P, shard(1), MOVES["P", "S"]),
            Moved("y", State("S", 0, (1, 1)), R, MOVES["S", "R"]),
        ),
        parameters={"w": fused, "b": V},
        boundary={"x": shard(1)},
    )  # fmt: skip
    text = json.dumps(encode_sharding(sharding))
    assert decode_sharding(json.loads(text)) == sharding


def test_pattern():
    for pattern in (
        Pattern("layers.0", (1, 2), ("x", "z"), ("y",), frozenset("xy")),
        Pattern("ends", ()),
    ):
        assert decode_pattern(json.loads(json.dumps(encode_pattern(pattern)))) == pattern
