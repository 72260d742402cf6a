"""What a user would have typed instead: published recipes as pins, solved like any other plan.

Whatever a recipe leaves open is chosen by the user's pins, then by the solver, so each is shown
at its best. A recipe that cannot honour the pins is solved without them, which is then said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autopar.errors import AutoparError
from autopar.plan import Baseline
from autopar.solve.infeasible import UndiagnosedError
from autopar.solve.kinds import EQUAL
from autopar.solve.pins import entries
from autopar.solve.price import rank_memory_bytes
from autopar.solve.problem import Solution
from autopar.solve.space import divisors

Pins = dict[str, Any]
SolvePinned = Callable[[Pins, bool], Solution]


@dataclass(frozen=True)
class Machines:
    """How many devices there are, and how many of them share a node."""

    world_size: int
    devices_per_node: int

    @property
    def nodes(self) -> int:
        """Nodes that the devices take."""
        return -(-self.world_size // self.devices_per_node)

    @property
    def node(self) -> int:
        """Devices of one node that divide the world size evenly."""
        most = min(self.world_size, self.devices_per_node)
        return max(d for d in range(1, most + 1) if self.world_size % d == 0)


@dataclass(frozen=True)
class Recipe:
    """A named baseline; ``attempts`` yields pins to try until some can run.

    ``even``: the blocks are divided equally over the stages, or the first get one more.
    """

    name: str
    description: str
    attempts: Callable[[Machines], Iterator[Pins]]
    even: bool = False


def _ddp(machines: Machines) -> Iterator[Pins]:
    yield {"dp": machines.world_size, "tp": 1, "pp": 1, "zero": 0, "recompute": "none"}


def _equal_shares(machines: Machines) -> Iterator[Pins]:
    """What unequal devices do under a program that knows of none: the fast ones wait."""
    yield from ({**pins, "shares": EQUAL} for pins in _ddp(machines))


def _fsdp(machines: Machines) -> Iterator[Pins]:
    yield _sharded(machines, machines.world_size, "none")


def _fsdp_recompute(machines: Machines) -> Iterator[Pins]:
    yield _sharded(machines, machines.world_size, "full")


def _hsdp(machines: Machines) -> Iterator[Pins]:
    """Recomputes if that is what it takes."""
    yield from (_sharded(machines, machines.node, mode) for mode in ("none", "full"))


def _sharded(machines: Machines, shard: int, recompute: str) -> Pins:
    """ZeRO-3 over groups of so many devices."""
    degrees = {"dp": machines.world_size, "tp": 1, "pp": 1, "dp_shard": shard}
    return {**degrees, "zero": 3, "recompute": recompute}


def _tensor_in_node(machines: Machines) -> Iterator[Pins]:
    """The whole node, or the largest part of it that divides the heads."""
    for tp in reversed(divisors(machines.node)[1:]):
        yield {"dp": machines.world_size // tp, "tp": tp, "pp": 1, "zero": 0, "recompute": "none"}


def _megatron(machines: Machines) -> Iterator[Pins]:
    """Grows tp to the node, then pp; dp takes the rest; recomputes if that is not enough."""
    tensor = divisors(machines.node)
    degrees = [(tp, 1) for tp in tensor]
    for pp in divisors(machines.world_size)[1:]:
        degrees += [(tp, pp) for tp in reversed(tensor) if machines.world_size % (tp * pp) == 0]
    for recompute in ("none", "full"):
        for tp, pp in degrees:
            dp = machines.world_size // (tp * pp)
            schedule = {"schedule": "1f1b"} if pp > 1 else {}
            yield {"dp": dp, "tp": tp, "pp": pp, "zero": 0, "recompute": recompute, **schedule}


def _gpipe(machines: Machines) -> Iterator[Pins]:
    """As many stages as devices, or the most that can run."""
    for pp in reversed(divisors(machines.world_size)[1:]):
        dp = machines.world_size // pp
        yield {"dp": dp, "tp": 1, "pp": pp, "zero": 0, "recompute": "full", "schedule": "gpipe"}


def _even_pipeline(machines: Machines) -> Iterator[Pins]:
    """A stage per node, or the next number of stages that can run; data parallel inside."""
    for pp in sorted(divisors(machines.world_size)[1:], key=lambda pp: abs(pp - machines.nodes)):
        dp = machines.world_size // pp
        yield {"dp": dp, "tp": 1, "pp": pp, "zero": 0, "recompute": "none", "schedule": "1f1b"}


FSDP_RECOMPUTE = Recipe(
    "FSDP + recompute", "ZeRO-3 over all devices, full recomputation", _fsdp_recompute
)
RECIPES = (
    Recipe("DDP", "one replica per device", _ddp),
    Recipe("FSDP", "ZeRO-3 over all devices", _fsdp),
    FSDP_RECOMPUTE,
    Recipe("TP in the node", "tensor parallel within a node, replicas across", _tensor_in_node),
    Recipe("Megatron rule", "tp up to the node until it fits, then pp, then recomputation",
           _megatron),
    Recipe("Even pipeline", "equal layers per stage, 1f1b, replicas within", _even_pipeline, True),
    Recipe("GPipe", "stages only, gpipe schedule, full recomputation", _gpipe),
)  # fmt: skip
# Where there are several nodes, of devices of one kind.
HSDP = Recipe("HSDP", "ZeRO-3 within a node, replicas across; recomputation if needed", _hsdp)
EQUAL_SHARES = Recipe("DDP, equal shares", "a program that knows of one kind", _equal_shares)


def combined(given: Pins, recipe: Pins) -> Pins | None:
    """The pins of a user and of a recipe; None where they disagree about a decision."""
    return None if _disagreements(given, recipe) else {**given, **recipe}


def _disagreements(given: Pins, recipe: Pins) -> list[str]:
    """The user's pins that the recipe decides otherwise."""
    return [str(e) for e in entries(given) if e.value != recipe.get(e.kind, e.value)]


def run_baselines(
    solve_pinned: SolvePinned, world_size: int, devices_per_node: int, given: Pins | None = None,
    *, unequal: bool = False,
) -> tuple[Baseline, ...]:  # fmt: skip
    """Every recipe with its predicted step, or with the reason why it cannot run.

    Under the pins ``given`` by the user where it can be; else ``reason`` says so.

    Args:
        solve_pinned: solves the task under these pins, with equal stages or the best ones; raises
            AutoparError if that is impossible.
        world_size: number of devices.
        devices_per_node: how many of them share the fast links.
        given: the user's pins.
        unequal: whether the devices are of two kinds.
    """
    machines = Machines(world_size, devices_per_node)
    recipes = [*RECIPES, *[EQUAL_SHARES] * unequal]
    if 1 < machines.node < world_size and not unequal:
        recipes.insert(recipes.index(FSDP_RECOMPUTE) + 1, HSDP)
    known: dict[tuple[bool, str], Solution | AutoparError] = {}

    def once(pins: Pins, even: bool) -> Solution | AutoparError:
        key = (even, repr(sorted(pins.items())))
        if key not in known:
            known[key] = _attempt(solve_pinned, pins, even)
        return known[key]

    return tuple(_run(recipe, machines, once, given or {}) for recipe in recipes)


def _attempt(solve_pinned: SolvePinned, pins: Pins, even: bool) -> Solution | AutoparError:
    try:
        return solve_pinned(dict(pins), even)
    except AutoparError as error:
        return error


def _run(
    recipe: Recipe, machines: Machines, once: Callable[[Pins, bool], Solution | AutoparError],
    given: Pins,
) -> Baseline:  # fmt: skip
    attempts = list(recipe.attempts(machines))
    honouring = [pins for own in attempts if (pins := combined(given, own)) is not None]
    failed = AutoparError("needs more than one device")
    for pins in [*honouring, *(attempts if given else [])]:
        result = once(pins, recipe.even)
        if isinstance(result, AutoparError):
            failed = result
            continue
        memory = max(rank_memory_bytes(result.problem, result.boundaries, result.options))
        described = f"{recipe.description} ({_degrees(pins)})"
        breaks = _disagreements(given, pins) or ["pins under which it cannot run"]
        remark = "" if combined(given, pins) == pins else f"breaks {', '.join(breaks)}"
        return Baseline(recipe.name, described, result.objective_seconds, memory, remark)
    last = failed.diagnose() if isinstance(failed, UndiagnosedError) else failed
    return Baseline(recipe.name, recipe.description, None, None, str(last).splitlines()[0])


def _degrees(pins: Mapping[str, Any]) -> str:
    return " ".join(f"{axis}={pins[axis]}" for axis in ("pp", "dp", "tp"))
