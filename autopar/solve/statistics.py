"""What statistics over samples mean for a plan: which are synchronised, and what they forbid.

The single device normalises a whole micro-batch, once. Batch normalisation does so under data
parallelism too: its statistics are those of all dp ranks' samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from autopar.errors import UsageError
from autopar.graph import Graph, Op
from autopar.solve.pins import pin_of
from autopar.strategies.growth import MEAN, SUM, UNKNOWN, loss_powers
from autopar.strategies.mixing import find_mixing
from autopar.strategies.spec import name_of
from autopar.strategies.statistics import is_synchronised, updates_statistics
from autopar.trace.inplace import is_inplace


@dataclass(frozen=True)
class Statistics:
    """The layers in which samples of a micro-batch depend on each other.

    ``synchronised`` names those whose statistics programs take over all dp ranks. ``mixing`` says
    of others what they do, e.g. {"head": "mean (model.py:12) ..."}: under data parallelism they
    would compute something else. ``single`` names those with statistics that mixed precision
    cannot use, ``changing`` those whose own code changes a buffer, so that it runs once. ``sums``
    says that the loss is a sum over the samples, which programs add up instead of averaging.
    """

    synchronised: tuple[str, ...] = ()
    mixing: dict[str, str] = field(default_factory=dict)
    single: tuple[str, ...] = ()
    changing: tuple[str, ...] = ()
    sums: bool = False


NO_STATISTICS = Statistics()


def find_statistics(graph: Graph) -> Statistics:
    """The layers of ``graph`` in which samples depend on each other."""

    def having(test: Callable[[Op], bool]) -> tuple[str, ...]:
        found = (x for x in graph.layers if any(test(graph.ops[i]) for i in x.ops))
        return tuple(layer.name for layer in found)

    owner = {i: layer.name for layer in graph.layers for i in layer.ops}
    mixing: dict[str, str] = {}
    for found in find_mixing(graph):
        op = graph.ops[found.index]
        layer = owner.get(found.index, op.unit or "the inputs")
        mixing.setdefault(layer, f"{name_of(op)} at {op.where.strip()} {found.reason}")
    powers = loss_powers(graph)
    if powers not in (UNKNOWN, MEAN, SUM):
        index, op = next((i, op) for i, op in enumerate(graph.ops) if graph.loss in op.outputs)
        reason = "makes a loss that is neither a mean over the samples nor a sum"
        place = f"{name_of(op)} at {op.where.strip()}"
        mixing.setdefault(owner.get(index, op.unit), f"{place} {reason}")
    return Statistics(
        having(is_synchronised),
        mixing,
        having(lambda op: updates_statistics(op) and not is_synchronised(op)),
        having(is_inplace),
        powers == SUM,
    )


def listed(layers: Iterable[str]) -> str:
    """The first three of the names, and how many more there are."""
    names = list(layers)
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


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
        UsageError: data parallelism is pinned, or together with a schedule in which
            synchronised statistics do not work, or recomputation of a layer that runs once.
    """
    for layer in (name for name in found.changing if name not in parts):
        mode = pin_of(pins.get("recompute"), layer)
        if mode not in (None, "none"):
            raise UsageError(
                f"pin recompute={mode} for {layer}",
                expected="none: its code changes a buffer, and would change it again",
                where=f"layer {layer}", hint=f'pin recompute={{"{layer}": "none", ...}}',
            )  # fmt: skip
    dp = _pinned_dp(pins, world_size)
    pinned = f"pin dp={dp}" if "dp" in pins else f"dp={dp}, as pp and tp are pinned"
    if found.mixing and dp > 1:
        raise UsageError(
            pinned,
            expected=f"dp=1: ranks have different samples, and {next(iter(found.mixing.values()))}",
            where=f"layers {listed(found.mixing)}",
            hint="use pp and tp, or let each sample count alone: GroupNorm or LayerNorm instead of"
            " statistics, and a loss that is a mean over the samples",
        )  # fmt: skip
    if found.synchronised and dp > 1 and pins.get("schedule") == "zero_bubble":
        raise UsageError(
            f"{pinned} with schedule=zero_bubble",
            expected="1f1b, gpipe or interleaved_1f1b: backward in two parts would run the"
            " collectives of synchronised statistics twice",
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
            where=f"layers {listed(found.single)}",
            hint="pass precision='fp32', or replace it by GroupNorm or LayerNorm",
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
    notes += [
        f"no data parallelism, and micro-batches of {microbatch_size}: in layer {layer} {what}"
        for layer, what in list(found.mixing.items())[:1]
    ]
    if found.sums:
        notes.append("the loss is a sum over the samples: micro-batches and ranks are added up")
    return tuple(notes)
