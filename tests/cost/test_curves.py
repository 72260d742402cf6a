from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cost.curves import Axis, Table


def test_a_power_law_is_met_exactly():
    table = Table.of([[1, 10, 100], [2, 8]], [[x**2 * y for y in (2, 8)] for x in (1, 10, 100)])
    assert table.at(30, 5) == pytest.approx(30**2 * 5)
    assert table.at(10, 2) == pytest.approx(200)


def test_constant_outside_of_the_grid():
    table = Table.of([[4, 16]], [1.0, 2.0])
    assert table.at(1) == table.at(4) == pytest.approx(1.0)
    assert table.at(1e9) == table.at(16) == pytest.approx(2.0)
    assert table.at(0) == pytest.approx(1.0)


def test_one_grid_line():
    assert Table.of([[5]], [3.0]).at(77) == pytest.approx(3.0)


def test_locate():
    axis = Axis.of([1, 4, 16])
    assert axis.locate(0.5) == (0, 0, 0.0)
    assert axis.locate(4)[:2] == (1, 2)
    assert axis.locate(8) == (1, 2, pytest.approx(0.5))
    assert axis.locate(16) == (2, 2, 0.0)


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_stays_between_the_values(x, y):
    table = Table.of([[1, 100, 5000], [3, 70]], [[1.0, 5.0], [2.0, 3.0], [0.5, 9.0]])
    assert 0.5 * (1 - 1e-9) <= table.at(x, y) <= 9.0 * (1 + 1e-9)
