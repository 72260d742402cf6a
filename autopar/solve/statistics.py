"""What statistics over samples mean for a plan: which are synchronised, and what they forbid.

The single device normalises a whole micro-batch, once. Batch normalisation does so under data
parallelism too: its statistics are those of all dp ranks' samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from autopar.errors import UsageError
from autopar.graph import Graph
from autopar.strategies.spec import name_of
from autopar.strategies.statistics import is_synchronised, mixes_samples, updates_statistics

REPLACE = "replace it by GroupNorm or LayerNorm, which treat each sample alone"


@dataclass(frozen=True)
class Statistics:
    """Names of the layers that have operations with statistics over the samples.

    ``synchronised`` are those whose statistics programs take over all dp ranks, ``mixing``
    those that would differ under data parallelism. Of the latter some keep buffers that
    mixed precision cannot use: ``single``.
    """

    synchronised: tuple[str, ...] = ()
    mixing: tuple[str, ...] = ()
    single: tuple[str, ...] = ()


NO_STATISTICS = Statistics()


def find_statistics(graph: Graph) -> Statistics:
    """The layers of ``graph`` that compute or keep statistics over the samples."""

    def having(test: Any) -> tuple[str, ...]:
        found = (x for x in graph.layers if any(test(graph.ops[i]) for i in x.ops))
        return tuple(layer.name for layer in found)

    return Statistics(
        having(is_synchronised),
        having(lambda op: mixes_samples(op) and not is_synchronised(op)),
        having(lambda op: updates_statistics(op) and name_of(op) != "batch_norm"),
    )


def listed(names: tuple[str, ...]) -> str:
    """The first three of the names, and how many more there are."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def check_statistics(found: Statistics, pins: dict[str, Any], world_size: int) -> None:
    """Refuses pins that layers with statistics over samples forbid.

    Args:
        found: these layers.
        pins: all pins.
        world_size: number of devices.

    Raises:
        UsageError: data parallelism is pinned, or together with a schedule in which
            synchronised statistics do not work.
    """
    dp = _pinned_dp(pins, world_size)
    pinned = f"pin dp={dp}" if "dp" in pins else f"dp={dp}, as pp and tp are pinned"
    if found.mixing and dp > 1:
        raise UsageError(
            pinned,
            expected="dp=1: every rank would take the statistics of its own samples instead of"
            " those of the whole micro-batch",
            where=f"layers {listed(found.mixing)}", hint=f"use pp and tp, or {REPLACE}",
        )  # fmt: skip
    if found.synchronised and dp > 1 and pins.get("schedule") == "zero_bubble":
        raise UsageError(
            f"{pinned} with schedule=zero_bubble",
            expected="1f1b, gpipe or interleaved_1f1b: backward in two parts would add up the"
            " gradients of synchronised statistics twice",
            where=f"layers {listed(found.synchronised)}", hint="pin schedule=1f1b",
        )  # fmt: skip


def _pinned_dp(pins: dict[str, Any], world_size: int) -> int:
    if "dp" in pins:
        return int(pins["dp"])
    others = [pins[axis] for axis in ("pp", "tp") if axis in pins]
    return world_size // prod(others) if len(others) == 2 else 1


def allows(found: Statistics, dp: int, schedule: str) -> bool:
    """Whether programs run these layers with a data-parallel degree under a schedule."""
    return dp == 1 or not (found.mixing or (found.synchronised and schedule == "zero_bubble"))


def check_precision(found: Statistics, precision: str) -> None:
    """Refuses mixed precision where instance normalisation keeps statistics.

    Raises:
        UsageError: mixed precision has parameters in bfloat16 and buffers in float32, which
            torch's instance normalisation does not take together.
    """
    if precision == "bf16" and found.single:
        raise UsageError(
            "precision='bf16' with running statistics",
            expected="precision='fp32': torch normalises no bfloat16 parameters with float32"
            " statistics",
            where=f"layers {listed(found.single)}", hint=f"pass precision='fp32', or {REPLACE}",
        )  # fmt: skip


def statistics_notes(found: Statistics, microbatch_size: int, dp: int) -> tuple[str, ...]:
    """What a plan says about these layers."""
    notes = []
    if found.synchronised:
        samples = f"{microbatch_size} here" if dp == 1 else f"{dp} x {microbatch_size} here"
        shared = ", synchronised over the dp ranks: two small collectives per normalisation"
        notes.append(
            f"layers {listed(found.synchronised)} have statistics over the samples of a"
            f" micro-batch ({samples}){shared if dp > 1 else ''}"
        )
    if found.mixing:
        notes.append(
            f"layers {listed(found.mixing)} keep statistics over the samples of a micro-batch"
            f" ({microbatch_size} here): no data parallelism"
        )
    return tuple(notes)
