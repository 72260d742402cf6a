"""Sizes, references and values."""

from __future__ import annotations

import pytest

from autopar.graph import Op, Ref, Size, Value, refs


@pytest.mark.parametrize(("size", "expected"), [(Size(5), 5), (Size(5, 1), 15), (Size(5, 2), 45)])
def test_sizes_grow_with_the_batch(size, expected):
    assert size.at(3) == expected


def test_values():
    value = Value("x", (Size(1, 1), Size(4), Size(8)), "bfloat16")
    assert value.elements(3) == 96
    assert value.bytes(3) == 192
    assert Value("loss", (), "float32").bytes(7) == 4


def test_references_in_order_of_use():
    tree = (Ref("b"), {"k": [Ref("a"), (Ref("b"), 3)]}, "text", None)
    assert list(refs(tree)) == ["b", "a", "b"]
    assert Op("aten.add.Tensor", tree[:1], {"other": Ref("c")}, ("y",)).inputs() == ("b", "c")
