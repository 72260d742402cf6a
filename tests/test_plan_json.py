from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import PlanFormatError
from autopar.plan_json import decode, encode, schema


@dataclass(frozen=True)
class Inner:
    number: float
    flag: bool = True


@dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"]
    inner: tuple[Inner, ...]
    row: tuple[str, tuple[int, ...]]
    table: dict[str, Inner]
    maybe: float | None
    free: Any


finite = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, finite, st.booleans())
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(), child, max_size=3),
    max_leaves=8,
)
outers = st.builds(
    Outer,
    st.integers(),
    st.sampled_from(["a", "b"]),
    st.lists(inners, max_size=3).map(tuple),
    st.tuples(st.text(), st.lists(st.integers(), max_size=3).map(tuple)),
    st.dictionaries(st.text(), inners, max_size=3),
    st.none() | finite,
    trees,
)


@given(outers)
def test_every_value_comes_back_and_matches_its_schema(value):
    data = encode(Outer, value)
    jsonschema.validate(data, schema(Outer))
    assert decode(Outer, data) == value


def test_numbers_of_other_types_become_plain_ones():
    data = encode(Inner, Inner(np.float32(0.5), True))  # type: ignore[arg-type]
    assert type(data["number"]) is float
    assert type(encode(int, np.int64(3))) is int
    assert repr(encode(float, 2)) == "2.0"


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, float("nan")),
        (float, float("inf")),
        (int, 1.5),
        (int, "1"),
        (Any, {1: 2}),
        (Any, (1, 2)),
        (Any, [float("nan")]),
        (tuple[str, int], ("a",)),
        (Inner, 3),
    ],
)
def test_what_does_not_survive_json_is_refused(hint, value):
    with pytest.raises(PlanFormatError, match="cannot be saved"):
        encode(hint, value)


@pytest.mark.parametrize(
    ("hint", "data"),
    [
        (int, True),
        (int, 1.5),
        (float, "1"),
        (Literal["a"], "b"),
        (tuple[str, int], ["a"]),
        (tuple[str, int], ["a", 1, 2]),
        (dict[str, int], {"a": "b"}),
        (Inner, {"number": 1.0}),
        (Inner, {"number": 1.0, "flag": True, "more": 1}),
        (float | None, "x"),
    ],
)
def test_schema_refuses_wrong_types(hint, data):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema(hint))
