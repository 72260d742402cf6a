from __future__ import annotations

import pytest

from autopar.calibration.points import Point
from autopar.calibration.rows import Rows
from autopar.errors import CostModelError

POINT = Point("gemm", "float32/linear", (2, 3, 4))


def test_a_second_run_continues_the_first(tmp_path):
    path = tmp_path / "a.csv"
    first = Rows(path, "chip, fast")
    for seconds in (3.0, 1.0, 2.0):
        first.add(POINT, seconds)
    first.add(Point("optimizer", "sgd", (1,), True), 5.0)
    second = Rows(path, "chip, fast")
    assert second.count(POINT) == 3
    assert second.seconds(POINT) == 1.0
    assert second.points() == first.points()
    second.add(POINT, 0.5)
    assert Rows(path, "chip, fast").count(POINT) == 4


def test_low_percentile_not_minimum(tmp_path):
    rows = Rows(tmp_path / "a.csv", "chip")
    for seconds in range(20, 0, -1):
        rows.add(POINT, seconds)
    assert rows.seconds(POINT) == 4
    assert rows.count(Point("gemm", "x", (1,))) == 0


def test_the_median_of_collectives(tmp_path):
    rows = Rows(tmp_path / "a.csv", "chip")
    point = Point("collectives", "all_reduce", (1024, 2, 1))
    for seconds in range(21, 0, -1):
        rows.add(point, seconds)
    assert rows.seconds(point) == 11


def test_half_a_row_is_forgotten(tmp_path):
    path = tmp_path / "a.csv"
    Rows(path, "chip").add(POINT, 1.0)
    path.write_text(path.read_text() + "chip,gemm,flo")
    assert Rows(path, "chip").count(POINT) == 1


def test_samples_of_another_device_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    Rows(path, "old chip").add(POINT, 1.0)
    with pytest.raises(CostModelError, match="old chip"):
        Rows(path, "new chip")


def test_another_csv_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,age\n")
    with pytest.raises(CostModelError, match="columns name, age"):
        Rows(path, "chip")


def test_unwritable(tmp_path):
    with pytest.raises(CostModelError, match="cannot be used"):
        Rows(tmp_path / "missing" / "a.csv", "chip")


@pytest.mark.parametrize("cut", ["host", "host,gemm,float32/linear,8x8x8,0,0.0", "host,ge"])
def test_what_a_stopped_run_left_is_cut_off_before_the_next_row(tmp_path, cut):
    path, point = tmp_path / "raw.csv", Point("gemm", "float32/linear", (8, 8, 8))
    Rows(path, "host").add(point, 0.07)
    with path.open("a") as stream:
        stream.write(cut)
    again = Rows(path, "host")
    assert again.count(point) == 1
    again.add(point, 0.08)
    last = Rows(path, "host")
    assert (last.count(point), last.points()) == (2, [point])


@pytest.mark.parametrize("text", ["", "device,cur"])
def test_a_run_that_was_stopped_at_once_begins_again(tmp_path, text):
    path, point = tmp_path / "raw.csv", Point("gemm", "float32/linear", (8, 8, 8))
    path.write_text(text)
    Rows(path, "host").add(point, 0.07)
    assert Rows(path, "host").count(point) == 1
