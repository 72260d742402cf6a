"""Which pins go with devices of two kinds, and which samples each of them can be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopar.errors import UsageError

# The value of the pin ``shares`` that gives all dp ranks micro-batches of one size.
EQUAL = "equal"
SHARES = "samples per micro-batch on one dp rank of each kind"
# Decisions that follow from replicas alone, or from the shares.
SETTLED = ("microbatch_size", "virtual_stages", "schedule", "stages", "stage", "exchange")


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
        UsageError: shares without kinds or of no whole step, or a pipeline or one size for all.
    """
    shares = pins.get("shares")
    if shares is not None and not devices:
        raise UsageError(
            f"pin shares={shares!r}", expected="a cluster with two kinds of device", where="pin",
            hint="pin microbatch_size, which is the same on equal devices",
        )  # fmt: skip
    for name in (name for name in SETTLED if devices and name in pins):
        raise UsageError(
            f"pin {name}={pins[name]!r} on devices of two kinds", where="pin",
            expected="dp, tp, zero, recompute, sharding or shares: devices of two kinds are"
            " replicas, without a pipeline",
            hint=f"leave {name} out, or pin shares to samples per kind, e.g. [6, 2]",
        )  # fmt: skip
    if shares not in (None, EQUAL):
        _check_sizes(shares, devices, batch, degrees)


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
