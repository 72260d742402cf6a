from __future__ import annotations

import pytest

from autopar.errors import UsageError
from autopar.show.units import duration, parse_memory, percent, share, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (18897856102, "17.6 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_size(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0123, "12.3 ms"), (0.7, "700 ms"), (1234.5, "1,234 s"), (3e-6, "3.00 us")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_percent_and_share():
    assert [percent(f) for f in (0, 0.131, 0.0131, 0.00131)] == ["0 %", "13 %", "1.3 %", "0.13 %"]
    assert share(1, 0) == "-"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42949672960", 42949672960),
        ("40GiB", 40 * 1024**3),
        ("40 gb", 40 * 10**9),
        ("1.5TiB", 1536 * 1024**3),
        ("0.8", 0.8),
        ("1.0", 1.0),
        ("1", 1),
    ],
)
def test_parse_memory(text, value):
    assert parse_memory(text) == value
    assert type(parse_memory(text)) is type(value)


@pytest.mark.parametrize("text", ["", "40 giga", "-1", "0", "nan", "1e9", "0.8GiBs"])
def test_parse_memory_refuses(text):
    with pytest.raises(UsageError, match="memory limit"):
        parse_memory(text)
