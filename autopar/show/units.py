"""Figures as people write them: the only place where bytes become GiB and seconds become ms."""

from __future__ import annotations

import re

from autopar.errors import UsageError

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_FACTORS: dict[str, int] = {
    "": 1,
    **{unit.lower(): 1024**power for power, unit in enumerate(_BINARY)},
    **{unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))},
}
_TIMES = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us"))


def size(count_bytes: float) -> str:
    """Bytes with a binary unit: ``size(18897856102)`` is "17.6 GiB"."""
    power = 0
    while abs(count_bytes) >= 1024 and power < len(_BINARY) - 1:
        count_bytes, power = count_bytes / 1024, power + 1
    return f"{count_bytes:.{1 if power else 0}f} {_BINARY[power]}"


def duration(seconds: float) -> str:
    """Seconds in s, ms or us with three digits: ``duration(0.0123)`` is "12.3 ms"."""
    if seconds == 0:
        return "0 ms"
    factor, unit = next((f, u) for least, f, u in _TIMES if abs(seconds) >= least)
    value = seconds * factor
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f} {unit}"


def percent(fraction: float) -> str:
    """A fraction as "13 %", with more digits where the figure is small."""
    value = 100 * fraction
    digits = 0 if abs(value) >= 9.95 or value == 0 else 1 if abs(value) >= 0.995 else 2
    return f"{value:.{digits}f} %"


def share(part: float, whole: float) -> str:
    """``part`` as a percentage of ``whole``; "-" where there is no whole."""
    return percent(part / whole) if whole else "-"


def parse_memory(text: str) -> int | float:
    """Reads "40GiB", "40 GB", "42949672960" (all bytes, int) or "0.8" (a fraction, float).

    Raises:
        UsageError: the text is none of these, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match and match[2] in _FACTORS and float(match[1]) > 0:
        number = float(match[1])
        # "1.0" and "0.8" are fractions, "1" is a byte.
        if not match[2] and "." in match[1] and number <= 1:
            return number
        return round(number * _FACTORS[match[2]])
    raise UsageError(
        f"memory limit {text!r}",
        expected="bytes (42949672960), a size (40GiB, 40GB) or a fraction (0.8)",
        where="--memory-limit",
        hint="--memory-limit 40GiB",
    )
