"""What a plan says of other plans: its runners-up, and the other order of its devices."""

from __future__ import annotations

from autopar.plan import Mesh, Prediction, RunnerUp
from autopar.solve.heterogeneous import HeterogeneousPricer, assemble_kinds
from autopar.solve.menus import Pricer
from autopar.solve.problem import Solution
from autopar.solve.runners import family


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
            Mesh(config.pp, config.dp, config.tp), config.microbatch_size, config.schedule,
            config.virtual_stages, priced.step_seconds, priced.memory_bytes, _lost(priced, plan),
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
