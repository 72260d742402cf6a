"""Why nothing fits: the stage that comes closest, by how much it misses, and what would help."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from autopar.errors import AutoparError, InfeasiblePlanError
from autopar.plan import Memory, Mesh
from autopar.solve.bounds import bottleneck_path, dense
from autopar.solve.chain import Chain, Depths, Floats, Ints, chains
from autopar.solve.problem import Candidate, Configuration, Group, Problem, Solution

Verify = Callable[[Sequence[Candidate | Group], float], Solution]

MIB, GIB = 1024**2, 1024**3
# What the search for something that helps may take in all; what is not verified is not said.
SECONDS = 10.0


class NothingLegalError(InfeasiblePlanError):
    """No configuration has an option for every layer, whatever the memory."""


class UndiagnosedError(InfeasiblePlanError):
    """No plan fits; by how much, ``diagnose`` says: to find out takes as long as the search."""

    def __init__(self, diagnose: Callable[[], InfeasiblePlanError]) -> None:
        super().__init__("no plan fits")
        self.diagnose = diagnose


@dataclass(frozen=True)
class Relaxation:
    """One thing that the user could give up.

    ``values`` go from the least change to the largest; ``candidates`` lists what could be planned
    with one of them, and raises an AutoparError where nothing could; ``describe`` says of the
    first value that has a plan, and of that plan, what it takes.
    """

    values: Iterable[Any]
    candidates: Callable[[Any], Sequence[Candidate | Group]]
    describe: Callable[[Any, Solution], str]


@dataclass(frozen=True)
class Shortfall:
    """The rank that misses most of the leanest plan of a configuration, in bytes.

    ``problem`` is as its devices have it, ``whole`` that of all ranks; ``layers`` are (first,
    behind the last) of each of its stages.
    """

    whole: Problem
    problem: Problem
    rank: int
    layers: tuple[tuple[int, int], ...]
    memory: Memory

    @property
    def configuration(self) -> Configuration:
        """Of the problem."""
        return self.problem.configuration

    @property
    def limit_bytes(self) -> int:
        """What a rank may use."""
        return self.problem.memory_limit_bytes

    @property
    def needed_bytes(self) -> int:
        """Peak of the rank."""
        return self.memory.total

    @property
    def missing_bytes(self) -> int:
        """How far the peak is over the limit."""
        return self.needed_bytes - self.limit_bytes


def diagnose(
    problems: Sequence[Problem], *, relaxations: Sequence[Relaxation] = (),
    verify: Verify | None = None,
) -> InfeasiblePlanError:  # fmt: skip
    """The error to raise when no problem has a plan; names the one that comes closest.

    Args:
        problems: what was tried.
        relaxations: what the user could give up.
        verify: solves candidates within some seconds, or raises InfeasiblePlanError. Only what it
            has solved is suggested, the cheapest plan first.
    """
    found = list(_shortfalls(problems))
    if not found:
        return NothingLegalError(
            "no configuration is legal",
            expected="degrees that divide the world size, the batch and the layers, and layers that"
            " have parameters on every rank",
            where=f"{len(problems)} configurations",
            hint="fewer pins, or another world size",
        )
    helpful = _helpful([*_more_memory(found), *relaxations], verify) if verify else []
    closest = min(found, key=lambda s: s.missing_bytes)
    return InfeasiblePlanError(
        _headline(closest),
        expected=f"at most {_gib(closest.limit_bytes)} on every {_device(closest)}",
        where=_place(closest),
        hint="; or ".join(helpful) or f"memory_limit={closest.needed_bytes} or more",
    )


def _shortfalls(problems: Sequence[Problem]) -> Iterator[Shortfall]:
    for problem in problems:
        for chain in chains(problem):
            shortfall = least_memory(chain)
            if shortfall:
                yield shortfall


def least_memory(chain: Chain) -> Shortfall | None:
    """The rank that misses most when boundaries and options are chosen for memory alone.

    None if some layer has no option at all, or there are fewer layers than stages.
    """
    views = [chain.on(place.kind) for place in chain.places]
    most = max(view.room_bytes for view in views)
    peaks = np.stack([  # as if all had as much room as the largest
        _least_bytes(view, place.depths) + most - view.room_bytes
        for view, place in zip(views, chain.places, strict=True)
    ])  # fmt: skip
    starts = bottleneck_path(dense(chain, peaks))
    if starts is None:
        return None
    intervals = zip(starts, [*starts[1:], len(chain.layers)], strict=True)
    ranks = [_rank(chain, p, interval) for p, interval in enumerate(intervals)]
    return max(ranks, key=lambda rank: rank.missing_bytes)


def _least_bytes(chain: Chain, depths: Depths) -> Floats:
    """Least peak of every content: each layer its leanest option, for every cap on transients."""
    best = np.full(len(chain.counts), np.inf)
    for cap, leanest in _leanest(chain, depths):
        missing = (chain.counts[:, leanest < 0] > 0).any(axis=1)
        held = chain.counts @ chain.held_bytes(depths)[leanest] + cap
        best = np.minimum(best, np.where(missing, np.inf, held))
    return best


def _leanest(chain: Chain, depths: Depths) -> Iterator[tuple[float, Ints]]:
    """The option of each class that holds least, -1 for none, for every cap on transients.

    With the cap; larger ones under which the options are the same are left out.
    """
    held, owner = chain.held_bytes(depths).tolist(), chain.owner.tolist()
    transient = chain.transient_bytes.tolist()
    found: dict[int, int] = {}
    by_transient = sorted(range(len(held)), key=transient.__getitem__)
    for cap, options in groupby(by_transient, key=transient.__getitem__):
        before = dict(found)
        for o in options:
            found[owner[o]] = min(o, found.get(owner[o], o), key=lambda k: (held[k], k))
        if found != before:
            yield cap, np.array([found.get(c, -1) for c in range(len(chain.menus))], dtype=np.int64)


def _rank(chain: Chain, rank: int, interval: tuple[int, int]) -> Shortfall:
    """The bytes of one rank at its leanest, by kind."""
    whole, depths = chain.problem, chain.places[rank].depths
    chain = chain.on(chain.places[rank].kind)
    problem = chain.problem
    options, number = _leanest_options(chain, depths, interval)
    gradients = float(number @ [chain.options[o].gradient_bytes for o in options])
    optimizer = float(number @ [chain.options[o].optimizer_bytes for o in options])
    state = float(number @ chain.state_bytes[options])
    beside = float(number @ chain.beside_bytes(depths)[options])
    activations = float(number @ chain.held_bytes(depths)[options]) - state - beside
    transient = chain.transient_bytes[options].max()
    memory = Memory(
        int(state - gradients - optimizer), int(gradients), int(optimizer), int(activations),
        int(transient), problem.baseline_bytes - problem.reserve_bytes,
        problem.reserve_bytes + int(beside),
    )  # fmt: skip
    begins = (problem.fold.begins[at].tolist() for at in interval)
    return Shortfall(whole, problem, rank, tuple(zip(*begins, strict=True)), memory)


def _leanest_options(chain: Chain, depths: Depths, interval: tuple[int, int]) -> tuple[Ints, Ints]:
    """Options, one per class in the interval, that need least; and the layers of each."""
    counts = chain.counts[chain.content[interval]]
    present = counts > 0
    choices = [options for _, options in _leanest(chain, depths)]
    held, number = chain.held_bytes(depths), counts[present]
    options = min(
        (o[present] for o in choices if (o[present] >= 0).all()),
        key=lambda o: number @ held[o] + chain.transient_bytes[o].max(),
    )
    return options, number


def _device(short: Shortfall) -> str:
    """What is short of memory, by its kind where there are several."""
    return f"{short.problem.device} device".strip()


def _headline(short: Shortfall) -> str:
    kinds = dataclasses.asdict(short.memory)
    split = " + ".join(f"{name} {_gib(size)}" for name, size in kinds.items() if size)
    return (
        f"no plan fits: the closest is short by {_gib(short.missing_bytes)} "
        f"(needs {_gib(short.needed_bytes)} = {split})"
    )


def _place(short: Shortfall) -> str:
    """Stages, ranks and layers; pp is the outermost mesh axis."""
    c = short.configuration
    width = c.dp * c.tp
    first, last = short.rank * width, (short.rank + 1) * width - 1
    ranks = f"rank {first}" if first == last else f"ranks {first}-{last}"
    numbers = range(short.rank, c.stages, c.pp)
    stages = f"stage{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    if short.problem.device:
        where = f"{ranks} on {short.problem.device}"
        ranks = where if short.whole.kinds else f"those of {where}"
    layers = ", ".join(f"{start}-{end - 1}" for start, end in short.layers)
    return (
        f"{stages} ({ranks}, layers {layers}) of "
        f"{Mesh(c.pp, c.dp, c.tp, c.dp_shard)} microbatch_size={c.microbatch_size} "
        f"schedule={c.schedule}, every layer at its leanest"
    )


def _more_memory(found: Sequence[Shortfall]) -> list[Relaxation]:
    """The least limit under which the configuration that comes closest has a plan."""
    if not found:
        return []
    closest = min(found, key=lambda s: s.missing_bytes)

    def candidates(limit: int) -> list[Candidate]:
        relaxed = _relaxed(closest, limit)
        return [Candidate(closest.configuration, 0.0, lambda: relaxed)]

    def describe(limit: int, _: Solution) -> str:
        more = f"fits with {_gib(closest.missing_bytes)} more per {_device(closest)}"
        if not closest.problem.device:
            return f"{more} (memory_limit={limit})"
        return more if closest.whole.kinds else f"{more}, and as large a part more on the others"

    return [Relaxation([closest.needed_bytes], candidates, describe)]


def _relaxed(short: Shortfall, limit: int) -> Problem:
    """The problem with a higher limit on every device like the one that is short."""
    own = replace(short.problem, memory_limit_bytes=limit)
    if not short.whole.kinds:
        return own
    each = (own if kind == short.problem else kind for kind in short.whole.kinds)
    return replace(short.whole, kinds=tuple(each))


def _helpful(relaxations: Sequence[Relaxation], verify: Verify) -> list[str]:
    """What the user could give up, cheapest plan first; each gets a fair part of the time."""
    end = time.monotonic() + SECONDS
    found = []
    for k, relaxation in enumerate(relaxations):
        now = time.monotonic()
        try:
            fit = _first_fit(relaxation, verify, now + (end - now) / (len(relaxations) - k))
        except KeyboardInterrupt:  # why nothing fits is known: say it
            break
        found += [fit] if fit else []
    return [name for _, name in sorted(found)]


def _first_fit(relaxation: Relaxation, verify: Verify, deadline: float) -> tuple[float, str] | None:
    """Cost and description of the first value that has a plan."""
    for value in relaxation.values:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        try:
            solution = verify(relaxation.candidates(value), left)
        except AutoparError:
            continue
        return _cost(solution), relaxation.describe(value, solution)
    return None


def _cost(solution: Solution) -> float:
    """Device seconds per sample, which plans for other batches and devices can be compared by."""
    c = solution.problem.configuration
    return solution.objective_seconds * c.pp * c.dp * c.tp / c.global_batch_size


def _gib(size: int) -> str:
    """GiB with two decimals; MiB or bytes where that would read 0."""
    if size >= GIB / 100:
        return f"{size / GIB:.2f} GiB"
    return f"{size / MIB:.2f} MiB" if size >= MIB / 100 else f"{size} bytes"
