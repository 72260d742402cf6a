"""What a user could give up where nothing fits: a pin, the size of the batch, or more devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autopar.cost.offload import OFFLOADS
from autopar.solve.infeasible import Relaxation
from autopar.solve.pins import LAYERED
from autopar.solve.problem import Candidate, Group, Solution
from autopar.solve.space import Task, divisors

Listed = Sequence[Candidate | Group]
# Up to this many times the devices are tried, one by one as long as they are few.
MOST_GROWTH = 4
FEW_DEVICES = 32
MOST_BATCH_GROWTH = 4


@dataclass(frozen=True)
class Asked:
    """What was asked for, and how to list the configurations of something else.

    ``with_pins`` and ``with_task`` raise UsageError where there are none. ``blocks`` tells of each
    layer whether it is a block; the others are never recomputed.
    """

    task: Task
    devices_per_node: int
    blocks: tuple[bool, ...]
    with_pins: Callable[[dict[str, Any]], Listed]
    with_task: Callable[[dict[str, int]], Listed]


def relaxations(asked: Asked) -> list[Relaxation]:
    """Each pin let go, host memory, other batches, and more devices unless degrees are pinned."""
    found = [_without(asked, pin) for pin in asked.task.pins]
    if "offload" not in asked.task.pins:
        found.append(_offload(asked))
    if "microbatch_size" not in asked.task.pins:
        found.append(_batches(asked))
    if not ({"pp", "dp", "tp"} <= set(asked.task.pins) or asked.task.devices):
        found.append(_devices(asked))
    return found


def _without(asked: Asked, pin: str) -> Relaxation:
    pins = {key: value for key, value in asked.task.pins.items() if key != pin}
    given = asked.task.pins[pin]
    by_name = "parameter" if pin == "placement" else "layer"
    was = f"{pin} by {by_name}" if isinstance(given, dict) else f"{pin}={given}"
    return Relaxation(
        values=[pins],
        candidates=asked.with_pins,
        describe=lambda _, solution: (
            f"fits with {chosen(pin, solution, asked.blocks)} (pinned: {was})"
        ),
    )


def chosen(pin: str, solution: Solution, blocks: Sequence[bool]) -> str:
    """What a plan has where a pin was: "recompute=full", "zero=0 in 2 layers and 3 in 4"."""
    if pin == "sequence_parallel":
        return f"{pin}={solution.problem.configuration.layout == 'sequence'}"
    if pin in ("stages", "stage"):
        ends = [*solution.boundaries[1:], len(blocks)]
        spans = zip(solution.boundaries, ends, strict=True)
        return f"stages={[sum(blocks[start:end]) for start, end in spans]}"
    if pin in ("sharding", "placement"):
        return f"another {pin}"
    if pin not in LAYERED:
        return f"{pin}={getattr(solution.problem.configuration, pin)}"
    pairs = zip(solution.options, blocks, strict=True)
    own = [getattr(o, pin) for o, block in pairs if block or pin == "zero"]
    numbers = Counter(own or [getattr(o, pin) for o in solution.options])
    if len(numbers) == 1:
        return f"{pin}={next(iter(numbers))}"
    each = (f"{value} in {n} layer{'s' * (n > 1)}" for value, n in numbers.items())
    return f"{pin}=" + " and ".join(each)


def _offload(asked: Asked) -> Relaxation:
    """Host memory for optimizer state, for activations, or for both."""
    return Relaxation(
        values=[choice for choice, kinds in OFFLOADS.items() if kinds],
        candidates=lambda choice: asked.with_pins({**asked.task.pins, "offload": choice}),
        describe=lambda choice, _: f"fits with offload={choice}",
    )


def _batches(asked: Asked) -> Relaxation:
    """Divisors and multiples of the batch, the nearest first."""
    batch = asked.task.global_batch_size
    multiples = [batch * k for k in range(2, MOST_BATCH_GROWTH + 1)]
    sizes = [*divisors(batch)[:-1], *multiples]
    return Relaxation(
        values=sorted(sizes, key=lambda size: max(size / batch, batch / size)),
        candidates=lambda size: asked.with_task({"global_batch_size": size}),
        describe=lambda size, _: f"fits with a global batch of {size}",
    )


def _devices(asked: Asked) -> Relaxation:
    """More devices, the fewest first; where there are many, whole nodes more."""
    return Relaxation(
        values=list(_worlds(asked.task.world_size, asked.devices_per_node)),
        candidates=lambda size: asked.with_task({"world_size": size}),
        describe=lambda size, _: f"fits on {size} devices",
    )


def _worlds(world: int, node: int) -> Iterator[int]:
    most = MOST_GROWTH * world
    yield from range(world + 1, min(most, FEW_DEVICES) + 1)
    start = max(world, FEW_DEVICES) // node * node + node
    yield from range(start, most + 1, node)
