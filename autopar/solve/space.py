"""The configurations to consider: every factorisation, micro-batch, schedule and layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count as numbers
from itertools import islice, product, takewhile
from math import isqrt
from typing import Any

from autopar.cost.exchange import EXCHANGES
from autopar.cost.offload import OFFLOADS, offloads
from autopar.errors import UsageError
from autopar.solve.cuts import check_stages, pinned_cuts
from autopar.solve.kinds import EQUAL, SHARES, check_kinds, fills_stages, kinds_rule
from autopar.solve.pins import (
    LAYERED,
    NAMED,
    Entry,
    check_layer_pins,
    conflict,
    contradiction,
    pin_of,
)
from autopar.solve.problem import Configuration
from autopar.solve.shardings import AIMS
from autopar.solve.statistics import NO_STATISTICS, Statistics, allows, check_statistics

SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "zero_bubble")
RECOMPUTE = ("none", "selective", "full")
ZERO = (0, 1, 2, 3)
# Those that need no pin: half as many options for the search. 1 is of use where micro-batches
# accumulate without a pipeline; in one, 3 holds what 2 does, and gathers for every micro-batch.
FREE_ZERO = {"alone": (0, 2, 3), "pipeline": (0, 2)}
# Stages per rank that are considered. More of them shorten the bubble by ever less, and every one
# sends all activations once more.
VIRTUAL_STAGES = (2, 3, 4, 6, 8)
# How many more blocks than the mean the largest virtual stage may have, as a share.
UNEVEN = 0.1
SPLIT = ("interleaved_1f1b", "zero_bubble")
# From one shard degree to the next that is considered. Step times in between are flat: Llama-3-8B
# takes 2.40, 2.37, 2.36, 2.37 and 2.46 s on 1,024 H100 with 32, 64, 128, 256 and 1,024 shards.
WIDER = 4
# Stands for the layouts that are found when a tp degree is opened.
ANY_LAYOUT = ("replicate", "sequence")
PINS = {
    "pp": "a divisor of the world size, at most the number of blocks",
    "dp": "a divisor of the world size and of the global batch",
    "tp": "a divisor of the world size and of the number of heads",
    "microbatch_size": "a divisor of the global batch",
    "num_microbatches": "a divisor of the global batch",
    "schedule": " or ".join(SCHEDULES),
    "virtual_stages": "at most the number of blocks per pipeline stage",
    "zero": "0, 1, 2 or 3",
    "recompute": " or ".join(RECOMPUTE),
    "sequence_parallel": "True or False",
    "sharding": "what the division of layers over tp aims at",
    "stages": "the number of blocks of each stage",
    "stage": "stages by layer, as in stage@LAYER=1",
    "placement": "placements on the tp axis by parameter, as in placement@PARAMETER=Shard(0)",
    "offload": "what is kept in host memory",
    "exchange": "how replicas add up their gradients",
    "dp_shard": "a divisor of dp: the ranks among which layers divide their state",
    "shares": SHARES,
}
# What holds between pins.
RULES = (
    (("pp", "dp", "tp"), "pp * dp * tp = {world}"),
    (
        ("dp", "microbatch_size", "num_microbatches"),
        "dp * microbatch_size * num_microbatches = {batch}",
    ),
    (
        ("pp", "virtual_stages", "stages", "stage"),
        "pp * virtual_stages stages in the order of the layers, each with a layer of its own",
    ),
    (
        ("schedule", "virtual_stages"),
        "more than one stage per rank in interleaved_1f1b, or in zero_bubble, which has no"
        " zero=3 and no recomputation; both have pp > 1, which divides num_microbatches, and the"
        " others one stage per rank, 1f1b no fewer micro-batches than pp",
    ),
    (("exchange",), "pp = tp = 1 and dp > 1 for ring and server"),
    (
        ("dp", "dp_shard", "zero", "exchange"),
        "dp_shard, which divides dp, below dp with zero 1, 2 or 3 for all layers (1 with zero 0),"
        " with exchange=collective and devices of one kind",
    ),
    (("placement",), "Replicate() for every parameter where tp = 1"),
    (
        ("recompute",),
        "selective for layers with products or attention to keep, none for layers whose code"
        " changes a buffer",
    ),
)
# Pins that devices of two kinds restrict.
KINDRED = ("pp", "dp", "tp", "shares", "microbatch_size", "stages", "stage", "schedule")


@dataclass(frozen=True)
class Task:
    """What is to be planned, as far as the search space is concerned.

    ``heads`` are the head counts of every attention in the model: tp must divide them all.
    ``blocks`` is the number of layers that can be spread over stages. ``names`` are those of all
    layers, ``parts`` of those that are no block, ``runs`` of those that stages may begin with
    besides blocks. ``interleaves`` tells whether a rank may hold several stages: none of its
    parameters is then on two of them. ``splits`` tells whether backward can run in two parts.
    ``statistics`` are those that data parallelism would change. ``devices`` are the numbers of
    devices of each kind, empty where all are of one. ``devices_per_node`` share the fast links, 0
    where nobody knows.
    """

    world_size: int
    global_batch_size: int
    blocks: int
    heads: tuple[int, ...]
    pins: dict[str, Any]
    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    runs: frozenset[str] = frozenset()
    interleaves: bool = True
    splits: bool = True
    statistics: Statistics = NO_STATISTICS
    devices: tuple[int, ...] = ()
    devices_per_node: int = 0


def divisors(number: int) -> list[int]:
    """All divisors in ascending order.

    Up to the root alone are tried: 16,384 devices have batches of millions of samples.
    """
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def check_pins(task: Task) -> None:
    """Refuses pins that no plan could honour, and says which values could be.

    Raises:
        UsageError: an unknown pin, a value of the wrong kind, or a degree that does not divide.
    """
    check_kinds(task.pins, task.devices, task.global_batch_size, _allowed("tp", task))
    for name, value in task.pins.items():
        if name not in PINS:
            raise UsageError(f"unknown pin {name!r}", expected=", ".join(PINS), where="pin")
        if name == "shares":
            continue
        if name == "stages":
            check_stages(value, task.blocks, len(task.names) or task.blocks)
            continue
        if name in (*LAYERED, *NAMED) and isinstance(value, dict):
            continue
        if name in NAMED:
            raise UsageError(f"pin {name}={value!r}", expected=PINS[name], where="pin",
                             hint=f'by name: {{"{name}": {{"NAME": ...}}}}')  # fmt: skip
        allowed = _allowed(name, task)
        if value not in allowed or isinstance(value, bool) != (name == "sequence_parallel"):
            raise UsageError(
                f"pin {name}={value!r}",
                expected=f"{PINS[name]}: {', '.join(str(a) for a in allowed)}",
                where="pin",
                hint=f"choose one of these, or leave {name} to the solver",
            )
    values = {kind: _allowed(kind, task) for kind in (*LAYERED, "stage")}
    check_layer_pins(task.pins, task.names, task.parts, values)
    _check_offload(task.pins)
    _check_exchange(task.pins)
    check_statistics(task.statistics, task.pins, task.world_size, task.parts)
    if _possible(task, {}) and not _possible(task, task.pins):
        found = conflict(task.pins, partial(_possible, task))
        raise contradiction(found, rules_of(found, task))


def _possible(task: Task, pins: dict[str, Any]) -> bool:
    """Whether some configuration agrees with the pins."""
    return any(configurations(replace(task, pins=pins), ANY_LAYOUT))


def rules_of(found: Sequence[Entry], task: Task) -> str:
    """The rules between pins that some of these are subject to."""
    kinds = {entry.kind for entry in found}
    rules = [rule for names, rule in RULES if kinds.intersection(names)]
    if task.devices and kinds.intersection(KINDRED):
        rules.append(kinds_rule(task.devices))
    return "; ".join(rules).format(world=task.world_size, batch=task.global_batch_size)


def _check_offload(pins: dict[str, Any]) -> None:
    """Refuses pins that nothing could be combined with where activations are on the host."""
    if not offloads(pins.get("offload", "none"), "activations"):
        return
    recompute = pins.get("recompute", "none")
    modes = set(recompute.values()) if isinstance(recompute, dict) else {recompute}
    others = [f"recompute={mode}" for mode in sorted(modes - {"none"})]
    others += ["schedule=zero_bubble"] * (pins.get("schedule") == "zero_bubble")
    if others:
        raise UsageError(
            f"pins offload={pins['offload']} and {others[0]}", where="pin",
            expected="activations that are kept from forward to backward, which runs in one part",
            hint=f"let go of one of them, or pin offload=optimizer with {others[0]}",
        )  # fmt: skip


def _check_exchange(pins: dict[str, Any]) -> None:
    """Refuses zero modes that shard anything where gradients are exchanged between replicas."""
    exchange, zero = pins.get("exchange", "collective"), pins.get("zero", 0)
    modes = set(zero.values()) if isinstance(zero, dict) else {zero}
    if exchange != "collective" and modes != {0}:
        raise UsageError(
            f"pins exchange={exchange} and zero={max(modes)}", where="pin",
            expected="zero=0: every rank has all parameters",
            hint="zero=1 is a server per shard of the parameters; pin one of the two",
        )  # fmt: skip


def _allowed(name: str, task: Task) -> Sequence[Any]:
    world = divisors(task.world_size)
    fixed: dict[str, Sequence[Any]] = {
        "pp": [d for d in world if d <= max(1, task.blocks)],
        "dp": [d for d in world if _shared_out(task, d)],
        "tp": [d for d in world if all(n % d == 0 for n in (*task.heads, *task.devices))],
        "microbatch_size": divisors(task.global_batch_size),
        "num_microbatches": divisors(task.global_batch_size),
        "schedule": SCHEDULES,
        "virtual_stages": (1, *(range(2, task.blocks // 2 + 1) if task.interleaves else ())),
        "zero": ZERO,
        "recompute": RECOMPUTE,
        "sequence_parallel": (False, True),
        "sharding": tuple(AIMS),
        "stage": range(len(task.names)),
        "offload": tuple(OFFLOADS),
        "exchange": EXCHANGES,
        "dp_shard": world,
    }
    return fixed[name]


def _shared_out(task: Task, dp: int) -> bool:
    """Whether dp ranks can share the global batch: equally, unless devices differ."""
    batch = task.global_batch_size
    return dp <= batch if task.devices else batch % dp == 0


def degrees(task: Task) -> Iterator[tuple[int, int, int]]:
    """Every legal (pp, dp, tp) that agrees with the pins."""
    for pp in _pinned(task, "pp", _allowed("pp", task)):
        for tp in _pinned(task, "tp", _allowed("tp", task)):
            if task.world_size % (pp * tp) or (tp == 1 and _shards(task)):
                continue
            dp = task.world_size // (pp * tp)
            if _exchanges(task) and (pp * tp > 1 or dp == 1):
                continue
            if not allows(task.statistics, dp, schedule=""):
                continue
            if pp > 1 and not _one_kind_per_stage(task, dp, tp):
                continue
            if _shared_out(task, dp) and dp in _pinned(task, "dp", [dp]):
                yield pp, dp, tp


def _one_kind_per_stage(task: Task, dp: int, tp: int) -> bool:
    """Whether a pipeline can have these stages; those of equal devices always."""
    if not task.devices:
        return True
    equal = task.pins.get("shares", EQUAL) == EQUAL and task.global_batch_size % dp == 0
    return equal and fills_stages(task.devices, dp * tp)


def _exchanges(task: Task) -> bool:
    """Whether replicas exchange gradients in a way of their own."""
    return bool(task.pins.get("exchange", "collective") != "collective")


def _shards(task: Task) -> bool:
    """Whether a pin divides a parameter over tp."""
    return any(str(value) != "Replicate()" for value in task.pins.get("placement", {}).values())


def configurations(task: Task, layouts: Sequence[str]) -> Iterator[Configuration]:
    """Every configuration. ``layouts`` are those of tp > 1; tp = 1 has one.

    Nothing is in host memory unless a pin asks for it: where the rest fits, the way there only
    costs time, and where it does not, ``relaxations.py`` says what would. Nor are gradients
    exchanged in another way than by the library's collectives, which are never slower. Where
    replicas differ their micro-batches are still of the mean size, see ``heterogeneous.py``.
    """
    if task.devices:
        yield from _unequal_replicas(task, layouts)
    yield from _of_equal_batches(task, layouts)


def _of_equal_batches(task: Task, layouts: Sequence[str]) -> Iterator[Configuration]:
    """Every configuration whose dp ranks have micro-batches of one size."""
    blocks = [name not in task.parts or name in task.runs for name in task.names]
    can_cut = cache(lambda n: pinned_cuts(task.pins, task.names, blocks, n) is not None)
    asked = task.pins.get("offload", "none"), task.pins.get("exchange", "collective")
    for pp, dp, tp in degrees(task):
        if task.devices and pp == 1:
            continue
        per_rank = task.global_batch_size // dp
        for size in _pinned(task, "microbatch_size", divisors(per_rank)):
            if per_rank % size:
                continue
            count = per_rank // size
            if count not in _pinned(task, "num_microbatches", [count]):
                continue
            for schedule, v in _schedules(task, pp, count):
                if not (can_cut(pp * v) and allows(task.statistics, dp, schedule)):
                    continue
                for layout, groups in product(
                    _layouts(task, tp, layouts), replicas(task, pp, dp, tp)
                ):
                    yield Configuration(
                        pp, dp, tp, size, count, schedule, layout, v, *asked, replicas=groups
                    )


def replicas(task: Task, pp: int, dp: int, tp: int) -> list[int]:
    """Into how many groups dp ranks are divided, each of which holds all state between its ranks.

    One, and where it would span nodes also groups that fill a node, or what tp leaves of it. Where
    pp is 1, and zero 3 gathers for every micro-batch, also ``WIDER`` times as many ranks and so on,
    for states that one node has no room for: a ring of fewer ranks has less latency.
    """
    node = task.devices_per_node
    free = [dp]
    if dp * tp > node > 0:
        inside = [s for s in divisors(dp) if node % (s * tp) == 0] or [1]
        wider = takewhile(lambda s: s < dp, (inside[-1] * WIDER**k for k in numbers()))
        free += [s for s in islice(wider, 1 if pp > 1 else None) if s > 1 and dp % s == 0]
    shards = [task.pins["dp_shard"]] if "dp_shard" in task.pins else free
    return [dp // s for s in shards if dp % s == 0 and _may_shard(task, dp, s)]


def _may_shard(task: Task, dp: int, shard: int) -> bool:
    """Whether a plan may divide state among so many of dp ranks."""
    if shard == dp:
        return True
    others = {1, 2, 3} if shard == 1 else {0}
    kept = _exchanges(task) or bool(task.devices) or _pinned_layers(task, "zero", others)
    return not kept


def _unequal_replicas(task: Task, layouts: Sequence[str]) -> Iterator[Configuration]:
    """Replicas, each of them on devices of one kind; a pinned size is that of all."""
    offload, size = task.pins.get("offload", "none"), task.pins.get("microbatch_size")
    blocks = [name not in task.parts or name in task.runs for name in task.names]
    if pinned_cuts(task.pins, task.names, blocks, 1) is None:
        return
    for pp, dp, tp in degrees(task):
        for count in _pinned(task, "num_microbatches", divisors(task.global_batch_size)):
            mean, rest = divmod(task.global_batch_size, count * dp)
            if pp > 1 or not mean or (size is not None and (mean, rest) != (size, 0)):
                continue
            for schedule, _ in _schedules(task, pp, count) if replicas(task, pp, dp, tp) else ():
                for layout in _layouts(task, tp, layouts):
                    yield Configuration(pp, dp, tp, mean, count, schedule, layout, offload=offload)


def _schedules(task: Task, pp: int, count: int) -> list[tuple[str, int]]:
    """(schedule, stages per rank) that can run ``count`` micro-batches and agree with the pins.

    gpipe never needs less time or memory than 1f1b, which needs as many micro-batches as stages.
    """
    pinned, v = task.pins.get("schedule"), _pinned_chunks(task, pp)
    found = [("1f1b", 1)] * (count >= pp) + [("gpipe", 1)] * (count < pp or pinned == "gpipe")
    if pp > 1 and count % pp == 0:
        found += _split_schedules(task, pp)
    return [x for x in found if pinned in (None, x[0]) and v in (None, x[1])]


def _split_schedules(task: Task, pp: int) -> list[tuple[str, int]]:
    """Those that need a number of micro-batches that pp divides.

    torch's zero_bubble takes the parameters of a stage before it gathers them: with zero 3, which
    frees them, their gradients would be lost. And it would recompute a layer, or fetch what it has
    saved from the host, once for each group of its parameters, and keep every result.
    """
    chunks = [] if task.devices else _chunks(task, pp)
    whole = not _pinned_layers(task, "zero", {3})
    whole &= not _pinned_layers(task, "recompute", {"selective", "full"})
    whole &= not offloads(task.pins.get("offload", "none"), "activations")
    zero_bubble = [1, *chunks] if whole and task.splits else []
    return [("interleaved_1f1b", v) for v in chunks] + [("zero_bubble", v) for v in zero_bubble]


def _chunks(task: Task, pp: int) -> list[int]:
    """Numbers of stages per rank, above 1, that divide the blocks about evenly, or a pinned one."""
    pinned = _pinned_chunks(task, pp) or 1
    most = task.blocks // pp if task.interleaves else 0
    if pinned > 1:
        return [pinned] * (pinned <= most)
    return [v for v in VIRTUAL_STAGES if v <= most and _largest(task.blocks, pp * v)
            <= (1 + UNEVEN) * task.blocks / (pp * v)]  # fmt: skip


def _pinned_chunks(task: Task, pp: int) -> int | None:
    """The number of stages per rank that is pinned, or follows from pinned stages and ranks."""
    counts = task.pins.get("stages", ())
    known = "pp" in task.pins or task.pins.get("schedule") in SPLIT
    if "virtual_stages" not in task.pins and counts and known and len(counts) % pp == 0:
        return len(counts) // pp
    return task.pins.get("virtual_stages")


def _pinned_layers(task: Task, kind: str, values: set[Any]) -> bool:
    """Whether any layer is pinned to one of these values; of recomputation, any block."""
    if kind not in task.pins:
        return False
    own = task.names or ("",)
    return any(
        pin_of(task.pins[kind], name) in values
        for name in own
        if kind != "recompute" or name not in task.parts
    )


def _largest(blocks: int, stages: int) -> int:
    """Blocks of the largest of stages that are as equal as can be."""
    return -(-blocks // stages)


def _layouts(task: Task, tp: int, layouts: Sequence[str]) -> Sequence[str]:
    if tp == 1:
        return ["replicate"]
    pinned = task.pins.get("sequence_parallel")
    if pinned is None:
        return layouts
    return [x for x in layouts if x == ("sequence" if pinned else "replicate")]


def _pinned(task: Task, name: str, values: Sequence[int]) -> Sequence[int]:
    return [v for v in values if v == task.pins[name]] if name in task.pins else values
