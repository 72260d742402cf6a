"""The configurations to consider: every factorisation, micro-batch, schedule and layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autopar.errors import UsageError
from autopar.solve.pins import LAYERED, check_layer_pins
from autopar.solve.problem import Configuration

SCHEDULES = ("gpipe", "1f1b")
RECOMPUTE = ("none", "selective", "full")
ZERO = (0, 2, 3)
PINS = {
    "pp": "a divisor of the world size, at most the number of blocks",
    "dp": "a divisor of the world size and of the global batch",
    "tp": "a divisor of the world size and of the number of heads",
    "microbatch_size": "a divisor of global_batch_size / dp",
    "schedule": " or ".join(SCHEDULES),
    "virtual_stages": "1",
    "zero": "0, 2 or 3",
    "recompute": " or ".join(RECOMPUTE),
    "sequence_parallel": "True or False",
}


@dataclass(frozen=True)
class Task:
    """What is to be planned, as far as the search space is concerned.

    ``heads`` are the head counts of every attention in the model: tp must divide them all.
    ``blocks`` is the number of layers that can be spread over stages. ``names`` are those of all
    layers, ``parts`` of those that are no block.
    """

    world_size: int
    global_batch_size: int
    blocks: int
    heads: tuple[int, ...]
    pins: dict[str, Any]
    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    return [d for d in range(1, number + 1) if number % d == 0]


def check_pins(task: Task) -> None:
    """Refuses pins that no plan could honour, and says which values could be.

    Raises:
        UsageError: an unknown pin, a value of the wrong kind, or a degree that does not divide.
    """
    for name, value in task.pins.items():
        if name not in PINS:
            raise UsageError(f"unknown pin {name!r}", expected=", ".join(PINS), where="pin")
        allowed = _allowed(name, task)
        if name in LAYERED and isinstance(value, dict):
            continue
        if value not in allowed or isinstance(value, bool) != (name == "sequence_parallel"):
            raise UsageError(
                f"pin {name}={value!r}",
                expected=f"{PINS[name]}: {', '.join(str(a) for a in allowed)}",
                where="pin",
                hint=f"choose one of these, or leave {name} to the solver",
            )
    check_layer_pins(
        task.pins, task.names, task.parts, {kind: _allowed(kind, task) for kind in LAYERED}
    )
    _check_product(task)


def _allowed(name: str, task: Task) -> Sequence[Any]:
    world = divisors(task.world_size)
    fixed: dict[str, Sequence[Any]] = {
        "pp": [d for d in world if d <= max(1, task.blocks)],
        "dp": [d for d in world if task.global_batch_size % d == 0],
        "tp": [d for d in world if all(h % d == 0 for h in task.heads)],
        "microbatch_size": divisors(task.global_batch_size // _dp_of(task)),
        "schedule": SCHEDULES,
        "virtual_stages": (1,),
        "zero": ZERO,
        "recompute": RECOMPUTE,
        "sequence_parallel": (False, True),
    }
    return fixed[name]


def _dp_of(task: Task) -> int:
    dp = task.pins.get("dp", 1)
    return dp if isinstance(dp, int) and dp > 0 and task.global_batch_size % dp == 0 else 1


def _check_product(task: Task) -> None:
    """Three pinned degrees must multiply to the world size, two must leave an integer."""
    degrees = [task.pins[axis] for axis in ("pp", "dp", "tp") if axis in task.pins]
    product = 1
    for degree in degrees:
        product *= degree
    if task.world_size % product or (len(degrees) == 3 and product != task.world_size):
        raise UsageError(
            f"pinned degrees multiply to {product}",
            expected=f"pp * dp * tp = {task.world_size}" if len(degrees) == 3
            else f"a divisor of {task.world_size}",
            where="pin", hint=f"divisors of the world size: {divisors(task.world_size)}",
        )  # fmt: skip


def degrees(task: Task) -> Iterator[tuple[int, int, int]]:
    """Every legal (pp, dp, tp) that agrees with the pins."""
    for pp in _pinned(task, "pp", _allowed("pp", task)):
        for tp in _pinned(task, "tp", _allowed("tp", task)):
            if task.world_size % (pp * tp):
                continue
            dp = task.world_size // (pp * tp)
            if task.global_batch_size % dp == 0 and dp in _pinned(task, "dp", [dp]):
                yield pp, dp, tp


def configurations(task: Task, layouts: Sequence[str]) -> Iterator[Configuration]:
    """Every configuration. ``layouts`` are those of tp > 1; tp = 1 has one."""
    for pp, dp, tp in degrees(task):
        per_rank = task.global_batch_size // dp
        for size in _pinned(task, "microbatch_size", divisors(per_rank)):
            if per_rank % size:
                continue
            count = per_rank // size
            for schedule in _schedules(task, pp, count):
                for layout in _layouts(task, tp, layouts):
                    yield Configuration(pp, dp, tp, size, count, schedule, layout)


def _schedules(task: Task, pp: int, count: int) -> Sequence[str]:
    """1f1b needs as many micro-batches as stages; gpipe never needs less time or memory."""
    best = "1f1b" if count >= pp else "gpipe"
    pinned = task.pins.get("schedule", best)
    return [pinned] if pp == 1 or pinned == "gpipe" or count >= pp else []


def _layouts(task: Task, tp: int, layouts: Sequence[str]) -> Sequence[str]:
    if tp == 1:
        return ["replicate"]
    pinned = task.pins.get("sequence_parallel")
    if pinned is None:
        return layouts
    return [x for x in layouts if x == ("sequence" if pinned else "replicate")]


def _pinned(task: Task, name: str, values: Sequence[int]) -> Sequence[int]:
    return [v for v in values if v == task.pins[name]] if name in task.pins else values
