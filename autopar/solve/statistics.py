"""What statistics over samples forbid: data parallelism, recomputation, mixed precision.

The single device normalises a whole micro-batch, once. A data-parallel rank would normalise its
share, and a layer that is computed again would update its running statistics again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from autopar.errors import UsageError
from autopar.graph import Graph
from autopar.solve.pins import pin_of
from autopar.strategies.statistics import mixes_samples, updates_statistics

REPLACE = "replace BatchNorm by GroupNorm or LayerNorm, which treat each sample alone"


@dataclass(frozen=True)
class Statistics:
    """Names of the layers that have operations with statistics over the samples.

    ``mixing`` are all of them, ``running`` those that keep running statistics in buffers.
    """

    mixing: tuple[str, ...] = ()
    running: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = len(self.mixing) - 3
        return ", ".join(self.mixing[:3]) + (f" and {more} more" if more > 0 else "")


NO_STATISTICS = Statistics()


def find_statistics(graph: Graph) -> Statistics:
    """The layers of ``graph`` that compute or keep statistics over the samples."""

    def having(test: Any) -> tuple[str, ...]:
        found = (x for x in graph.layers if any(test(graph.ops[i]) for i in x.ops))
        return tuple(layer.name for layer in found)

    return Statistics(having(mixes_samples), having(updates_statistics))


def check_statistics(
    found: Statistics, pins: dict[str, Any], world_size: int, parts: Sequence[str]
) -> None:
    """Refuses pins that layers with statistics over samples forbid.

    Args:
        found: these layers.
        pins: all pins.
        world_size: number of devices.
        parts: layers that are no block; they are never recomputed.

    Raises:
        UsageError: data parallelism, or recomputation of one of these layers, is pinned.
    """
    dp = _pinned_dp(pins, world_size)
    if found.mixing and dp > 1:
        raise UsageError(
            f"pin dp={dp}" if "dp" in pins else f"dp={dp}, as pp and tp are pinned",
            expected="dp=1: every rank would take the statistics of its own samples instead of"
            " those of the whole micro-batch",
            where=f"layers {found}", hint=f"use pp and tp, or {REPLACE}",
        )  # fmt: skip
    for layer in (name for name in found.running if name not in parts):
        mode = pin_of(pins.get("recompute"), layer)
        if mode not in (None, "none"):
            raise UsageError(
                f"pin recompute={mode} for {layer}",
                expected="none: computing it again would update its running statistics twice",
                where=f"layer {layer}",
                hint=f'pin recompute={{"{layer}": "none", ...}}, or {REPLACE}',
            )


def _pinned_dp(pins: dict[str, Any], world_size: int) -> int:
    if "dp" in pins:
        return int(pins["dp"])
    others = [pins[axis] for axis in ("pp", "tp") if axis in pins]
    return world_size // prod(others) if len(others) == 2 else 1


def check_precision(found: Statistics, precision: str) -> None:
    """Refuses mixed precision where statistics are kept.

    Raises:
        UsageError: mixed precision has parameters in bfloat16 and buffers in float32, which
            torch's batch normalisation does not take together.
    """
    if precision == "bf16" and found.running:
        raise UsageError(
            "precision='bf16' with running statistics",
            expected="precision='fp32': torch normalises no bfloat16 parameters with float32"
            " statistics",
            where=f"layers {found}", hint=f"pass precision='fp32', or {REPLACE}",
        )  # fmt: skip


def statistics_notes(found: Statistics, microbatch_size: int) -> tuple[str, ...]:
    """What a plan says about these layers."""
    if not found.mixing:
        return ()
    return (
        f"layers {found} have statistics over the samples of a micro-batch ({microbatch_size} here)"
        ": no data parallelism, and no recomputation where statistics are kept",
    )
