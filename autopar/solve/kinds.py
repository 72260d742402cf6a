"""Which pins go with devices of two kinds, and what each of them can be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopar.errors import UsageError

# The value of the pin ``shares`` that gives all dp ranks micro-batches of one size.
EQUAL = "equal"
SHARES = "samples per micro-batch on one dp rank of each kind"
# Schedules whose stages share a rank and are near equal, while unequal devices want others.
CHUNKED = "interleaved_1f1b"


def fills_stages(devices: Sequence[int], width: int) -> bool:
    """Whether stages of ``width`` devices can each be on devices of one kind."""
    return all(number % width == 0 for number in devices)


def kinds_rule(devices: Sequence[int]) -> str:
    """What holds between degrees on these numbers of devices of two kinds."""
    numbers = " and ".join(map(str, devices))
    return (
        f"on {numbers} devices of two kinds dp * tp of a pipeline, the devices of a stage, divides"
        " both, and pp = 1 where shares differ"
    )


def kinds_notes(devices: Sequence[int], blocks: int) -> tuple[str, ...]:
    """The pipelines that are not in the space because a stage would be on two kinds."""
    world = sum(devices)
    widths = [w for w in range(2, world) if world % w == 0 and world // w <= blocks]
    left = [str(w) for w in widths if not fills_stages(devices, w)]
    numbers = " and ".join(map(str, devices))
    return (
        (
            f"no pipelines with {' or '.join(left)} devices per stage: {numbers} devices of two"
            " kinds do not fill such stages, each of one kind",
        )
        if left
        else ()
    )


def check_kinds(
    pins: dict[str, Any], devices: Sequence[int], batch: int, degrees: Sequence[int]
) -> None:
    """Refuses pins that devices of several kinds do not go with.

    Args:
        pins: all pins.
        devices: how many devices there are of each kind, none where all are of one.
        batch: samples of one optimizer step.
        degrees: of tp that are possible.

    Raises:
        UsageError: shares without kinds or of no whole step, or several stages per rank or an
            exchange of one's own.
    """
    shares = pins.get("shares")
    if shares is not None and not devices:
        raise UsageError(
            f"pin shares={shares!r}", expected="a cluster with two kinds of device", where="pin",
            hint="pin microbatch_size, which is the same on equal devices",
        )  # fmt: skip
    if devices:
        _check_whole(pins)
    if shares not in (None, EQUAL):
        _check_sizes(shares, devices, batch, degrees)


def _check_whole(pins: dict[str, Any]) -> None:
    """Refuses what equal devices can do and those of two kinds cannot."""
    chunked = pins.get("schedule") == CHUNKED or pins.get("virtual_stages", 1) != 1
    exchange = pins.get("exchange", "collective")
    if chunked:
        name = "schedule" if pins.get("schedule") == CHUNKED else "virtual_stages"
        raise UsageError(
            f"pin {name}={pins[name]!r} on devices of two kinds", where="pin",
            expected="one stage per rank: stages that share a rank are equal ones, and devices of"
            " two kinds want stages in proportion to what they can do",
            hint="pin schedule=1f1b, gpipe or zero_bubble",
        )  # fmt: skip
    if exchange != "collective":
        raise UsageError(
            f"pin exchange={exchange!r} on devices of two kinds", where="pin",
            expected="collective: the others are written for equal replicas",
            hint="leave exchange out",
        )  # fmt: skip


def _check_sizes(shares: Any, devices: Sequence[int], batch: int, degrees: Sequence[int]) -> None:
    """Refuses what are no sizes, or sizes of which no number makes up the global batch."""
    whole = isinstance(shares, (list, tuple)) and all(type(n) is int and n > 0 for n in shares)
    if not whole or len(shares) != len(devices):
        raise UsageError(
            f"pin shares={shares!r}", expected=f"{SHARES}, or {EQUAL!r}", where="pin",
            hint=f"e.g. shares=[6, 2], or {EQUAL!r}",
        )  # fmt: skip
    pairs = list(zip(devices, shares, strict=True))
    totals = {tp: sum(n // tp * size for n, size in pairs) for tp in degrees}
    if all(batch % total for total in totals.values()):
        each = " or ".join(f"{total} (tp={tp})" for tp, total in totals.items())
        raise UsageError(
            f"pin shares={list(shares)}, micro-batches of {each} samples over all dp ranks",
            expected=f"a divisor of the global batch of {batch}", where="pin",
            hint="other sizes, or another global batch",
        )  # fmt: skip
