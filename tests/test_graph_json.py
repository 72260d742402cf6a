"""Graphs through JSON text and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar import graph_json
from autopar.graph import Ref, Size
from tests.zoo import NAMES, reduced

LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=4)
    | st.floats(allow_nan=False) | st.builds(Ref, st.text(max_size=4))
    | st.builds(Size, st.integers(0, 9), st.integers(0, 2))
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["ref", "size", "dict", "float", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TREES)
def test_arguments(tree):
    text = json.dumps(graph_json.encode_tree(tree), allow_nan=False)
    assert graph_json.decode_tree(json.loads(text)) == tree


@pytest.mark.parametrize("name", NAMES)
def test_graph(name):
    graph, _ = reduced(name)
    data = json.loads(json.dumps(graph_json.encode(graph), allow_nan=False))
    found = graph_json.decode(data)
    plain = tuple(dataclasses.replace(op, where="") for op in graph.ops)
    assert found.ops == plain
    for field in ("values", "calls", "context", "inputs", "loss", "tied"):
        assert getattr(found, field) == getattr(graph, field), field
    assert found.layers == ()
    assert found.saved == {}
