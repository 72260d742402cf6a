"""Why nothing fits: the stage that comes closest, by how much it misses, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.errors import InfeasiblePlanError
from autopar.solve.bounds import bottleneck_path, dense
from autopar.solve.chain import Chain, Floats, chains
from autopar.solve.problem import Candidate, Configuration, Problem, Solution

Relaxation = tuple[str, Callable[[], Sequence[Candidate]]]
Verify = Callable[[Sequence[Candidate]], Solution]

GIB = 1024**3


@dataclass(frozen=True)
class Shortfall:
    """The fullest stage of the leanest plan of a configuration, in bytes."""

    configuration: Configuration
    stage: int
    layers: tuple[int, int]
    limit_bytes: int
    baseline_bytes: int
    state_bytes: int
    activation_bytes: int
    transient_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Peak of the stage."""
        held = self.state_bytes + self.activation_bytes + self.transient_bytes
        return self.baseline_bytes + held

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
        relaxations: (what to give up, the candidates there would be then).
        verify: solves the candidates of a relaxation; one that raises InfeasiblePlanError
            is not suggested. Those that help are listed fastest first.
    """
    found = list(_shortfalls(problems))
    helpful = _helpful(relaxations, verify) if verify else []
    if not found:
        return InfeasiblePlanError(
            "no configuration is legal",
            expected="degrees that divide the world size, the batch and the layers",
            where=f"{len(problems)} configurations",
            hint="; or ".join(helpful) or "fewer pins, or another world size",
        )
    closest = min(found, key=lambda s: s.missing_bytes)
    needed = f"memory_limit={closest.needed_bytes} or more"
    return InfeasiblePlanError(
        _headline(closest),
        expected=f"at most {_gib(closest.limit_bytes)} on every device",
        where=_place(closest),
        hint="; or ".join([*helpful, needed]),
    )


def _shortfalls(problems: Sequence[Problem]) -> Iterator[Shortfall]:
    for problem in problems:
        for chain in chains(problem):
            shortfall = least_memory(chain)
            if shortfall:
                yield shortfall


def least_memory(chain: Chain) -> Shortfall | None:
    """The fullest stage when boundaries and options are chosen for memory alone.

    None if some layer has no option at all, or there are fewer layers than stages.
    """
    peaks = np.stack([_least_bytes(chain, depth) for depth in chain.depths])
    boundaries = bottleneck_path(dense(chain, peaks))
    if boundaries is None:
        return None
    ends = [*boundaries[1:], len(chain.layers)]
    fullest = [
        peaks[p, chain.content[i, j]] for p, (i, j) in enumerate(zip(boundaries, ends, strict=True))
    ]
    stage = int(np.argmax(fullest))
    return _split(chain, stage, (boundaries[stage], ends[stage]))


def _least_bytes(chain: Chain, depth: int) -> Floats:
    """Least peak of every content: each layer its leanest option, for every cap on transients."""
    best = np.full(len(chain.counts), np.inf)
    for cap in np.unique(chain.transient_bytes):
        leanest = _leanest(chain, depth, cap)
        missing = (chain.counts[:, leanest < 0] > 0).any(axis=1)
        held = chain.counts @ _held(chain, depth)[leanest] + cap
        best = np.minimum(best, np.where(missing, np.inf, held))
    return best


def _held(chain: Chain, depth: int) -> Floats:
    return chain.state_bytes + depth * chain.activation_bytes


def _leanest(chain: Chain, depth: int, cap: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The option of each class that holds least, among those with transients up to ``cap``."""
    held = np.where(chain.transient_bytes <= cap, _held(chain, depth), np.inf)
    found = np.full(len(chain.menus), -1, dtype=np.int64)
    for c in range(len(chain.menus)):
        members = np.flatnonzero((chain.owner == c) & np.isfinite(held))
        if len(members):
            found[c] = members[held[members].argmin()]
    return found


def _split(chain: Chain, stage: int, layers: tuple[int, int]) -> Shortfall:
    """The bytes of one stage at its leanest, by kind."""
    depth, counts = chain.depths[stage], chain.counts[chain.content[layers]]
    present = counts > 0
    choices = [_leanest(chain, depth, cap) for cap in np.unique(chain.transient_bytes)]
    options = min(
        (o[present] for o in choices if (o[present] >= 0).all()),
        key=lambda o: counts[present] @ _held(chain, depth)[o] + chain.transient_bytes[o].max(),
    )
    number, problem = counts[present], chain.problem
    return Shortfall(
        configuration=problem.configuration, stage=stage, layers=layers,
        limit_bytes=problem.memory_limit_bytes, baseline_bytes=problem.baseline_bytes,
        state_bytes=int(number @ chain.state_bytes[options]),
        activation_bytes=int(depth * (number @ chain.activation_bytes[options])),
        transient_bytes=int(chain.transient_bytes[options].max()),
    )  # fmt: skip


def _headline(short: Shortfall) -> str:
    kinds = {"state": short.state_bytes, "activations": short.activation_bytes,
             "transient": short.transient_bytes, "baseline": short.baseline_bytes}  # fmt: skip
    split = " + ".join(f"{name} {_gib(size)}" for name, size in kinds.items() if size)
    return (
        f"no plan fits: the closest is short by {_gib(short.missing_bytes)} "
        f"(needs {_gib(short.needed_bytes)} = {split})"
    )


def _place(short: Shortfall) -> str:
    """Stage, ranks and layers; pp is the outermost mesh axis."""
    c = short.configuration
    width = c.dp * c.tp
    first, last = short.stage * width, (short.stage + 1) * width - 1
    ranks = f"rank {first}" if first == last else f"ranks {first}-{last}"
    return (
        f"stage {short.stage} ({ranks}, layers {short.layers[0]}-{short.layers[1] - 1}) of "
        f"pp={c.pp} dp={c.dp} tp={c.tp} microbatch_size={c.microbatch_size} "
        f"schedule={c.schedule}, every layer at its leanest"
    )


def _helpful(relaxations: Sequence[Relaxation], verify: Verify) -> list[str]:
    """What the user could give up, fastest plan first."""
    found = []
    for name, candidates in relaxations:
        try:
            found.append((verify(candidates()).objective_seconds, name))
        except InfeasiblePlanError:
            continue
    return [name for _, name in sorted(found)]


def _gib(size: int) -> str:
    """GiB with two decimals; bytes where that would read 0."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size} bytes"
