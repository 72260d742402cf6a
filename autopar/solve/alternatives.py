"""The fastest of simulated plans, and what it says of others: runners-up, other orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from autopar.plan import Mesh, Prediction, RunnerUp
from autopar.solve.heterogeneous import HeterogeneousPricer, assemble_kinds
from autopar.solve.menus import Pricer
from autopar.solve.problem import Solution
from autopar.solve.runners import family
from autopar.solve.search import TOLERANCE


def fastest(
    searched: Solution, found: Sequence[Solution], seconds: Callable[[Solution], float], gap: float
) -> Solution:
    """The one of ``found`` whose simulated step takes the fewest ``seconds``.

    ``searched`` is the optimum of the closed form, whose bound holds for all. The gap is that of
    the plan's own closed form. Where it is more than the ``gap`` asked for, though the search came
    within that, the plan is kept, for the simulation is the finer model; but it is not called
    optimal, and a note says why it is preferred.
    """
    times = [seconds(solution) for solution in found]
    best = found[times.index(min(times))]
    bound = min(searched.bound_seconds, best.objective_seconds)
    own = 1 - bound / best.objective_seconds
    notes: tuple[str, ...] = ()
    status = searched.status
    if searched.gap <= gap + TOLERANCE < own:
        notes = (_preferred(own, gap, min(times), seconds(searched)),)
        status = "feasible"
    others = tuple(s for s in (searched, *searched.runners_up) if s is not best)
    return replace(
        best, bound_seconds=bound, gap=own, status=status, candidates=searched.candidates,
        runners_up=others, simulated=len(found), notes=notes,
    )  # fmt: skip


def _preferred(own: float, gap: float, now: float, then: float) -> str:
    return (
        f"the gap of {100 * own:.2g} % is more than the {100 * gap:.2g} % asked for: a plan within"
        f" it was found, but its simulated step takes {then:.4g} s, that of this plan {now:.4g} s"
    )


def runner_plans(
    pricer: Pricer, names: tuple[str, ...], solution: Solution, plan: Prediction
) -> tuple[RunnerUp, ...]:
    """The runners-up of other families than the plan's, each simulated, fastest first."""
    own = family(solution.problem.configuration)
    found = []
    for other in solution.runners_up:
        config = other.problem.configuration
        if family(config) == own:
            continue
        priced = assemble_kinds(pricer, names, other)[2]
        found.append(RunnerUp(
            Mesh(config.pp, config.dp, config.tp, config.dp_shard), config.microbatch_size,
            config.schedule, config.virtual_stages, priced.step_seconds, priced.memory_bytes,
            _lost(priced, plan),
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda runner: runner.step_seconds))


def _lost(runner: Prediction, plan: Prediction) -> str:
    """The part of the step that grows most: "0.12 s more bubble"."""
    kinds = dict.fromkeys((*plan.breakdown, *runner.breakdown))
    more = {part: runner.breakdown.get(part, 0) - plan.breakdown.get(part, 0) for part in kinds}
    part = max(more, key=lambda p: more[p])
    return f"{more[part]:.2g} s more {part}" if more[part] > 0 else "equally fast"


def order_note(turned: HeterogeneousPricer, seconds: float, now: float) -> tuple[str, ...]:
    """What a plan says where the other order of its devices is faster."""
    first = turned.kinds[0].cluster.name
    return (
        f"with the stages of {first} first such a pipeline takes {seconds:.3g} s instead of"
        f" {now:.3g} s: name these devices first, and start their ranks first",
    )
