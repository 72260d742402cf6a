"""Tables of published runs: what is read and what is refused."""

from __future__ import annotations

import csv

import pytest

from autopar.errors import UsageError
from autopar.validate.table import REQUIRED, read_table


def write(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def test_reads_every_row_with_its_line(tmp_path):
    path = write(tmp_path / "t.csv", REQUIRED, ["1"] * len(REQUIRED), ["2"] * len(REQUIRED))
    first, second = read_table(path)
    assert (first.table, first.line, second.line) == ("t.csv", 2, 3)
    assert second.number("iter_time_s") == 2.0
    assert second.count("dp") == 2
    assert second.text("no such column") == ""
    assert second.number("mem_gib") is None


@pytest.mark.parametrize("column", ["seq", "iter_time_s", "framework"])
def test_a_missing_column_is_named(tmp_path, column):
    header = [name for name in REQUIRED if name != column]
    with pytest.raises(UsageError) as caught:
        read_table(write(tmp_path / "t.csv", header, ["1"] * len(header)))
    assert column in caught.value.found


def test_milliseconds_are_not_taken_for_seconds(tmp_path):
    header = [name.replace("iter_time_s", "iter_time_ms") for name in REQUIRED]
    with pytest.raises(UsageError) as caught:
        read_table(write(tmp_path / "t.csv", header, ["1"] * len(header)))
    assert "iter_time_ms" in caught.value.found
    assert "iter_time_s" in caught.value.found


def test_a_ragged_row_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "t.csv", REQUIRED, ["1"] * len(REQUIRED), ["1", "2"])
    with pytest.raises(UsageError) as caught:
        read_table(path)
    assert "line 3" in caught.value.where


@pytest.mark.parametrize("cell", ["fast", "-1", "inf", "nan"])
def test_what_is_no_number_is_refused(tmp_path, cell):
    row = dict.fromkeys(REQUIRED, "1") | {"iter_time_s": cell}
    path = write(tmp_path / "t.csv", REQUIRED, [row[name] for name in REQUIRED])
    with pytest.raises(UsageError) as caught:
        read_table(path)[0].number("iter_time_s")
    assert cell in caught.value.found


def test_a_count_is_whole(tmp_path):
    path = write(tmp_path / "t.csv", REQUIRED, ["1.5"] * len(REQUIRED))
    with pytest.raises(UsageError):
        read_table(path)[0].count("dp")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b""])
def test_what_is_no_table(tmp_path, content):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError):
        read_table(path)
