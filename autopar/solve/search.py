"""The search: candidates best bound first, then an exact solve of what the bounds leave open."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from autopar.errors import InfeasiblePlanError
from autopar.solve.bounds import cheapest_path, dense, good_paths, least_of, windows
from autopar.solve.chain import Chain, chains, relaxed_chain
from autopar.solve.columns import may_fit, relax, rounded_pattern
from autopar.solve.engine import solver_name
from autopar.solve.fronts import spread
from autopar.solve.infeasible import Relaxation, UndiagnosedError, diagnose
from autopar.solve.optimum import solve_chain
from autopar.solve.patterns import OutOfTimeError
from autopar.solve.pooled import may_reach
from autopar.solve.price import objective_seconds, violations
from autopar.solve.problem import Candidate, Group, Option, Problem, Solution
from autopar.solve.queue import Queue
from autopar.solve.runners import PER_FAMILY, Family, family, runners_up
from autopar.solve.simpler import simpler
from autopar.solve.windows import Open

Progress = Callable[[int, int, float | None, float], None]

# Bounds exclude only what cannot be better by a tenth of the gap: it costs little, and the plan
# is better than asked for. The search still ends when the gap itself is met.
AIM = 0.1
BUDGETS = (2_000, 20_000, 200_000)
RIVALS = 8
VERIFYING = 0.5  # the gap that will do to show that something fits
TOLERANCE = 2e-6  # of floating point sums, as a share of the objective
ROUNDING = 1e-12
PAUSE = 0.1  # seconds between two reports within one chain


@dataclass(frozen=True)
class _Incumbent:
    """The best plan so far; ``candidate`` is its position in best-first order."""

    problem: Problem
    boundaries: tuple[int, ...]
    options: tuple[Option, ...]
    seconds: float
    candidate: int


@dataclass
class _Search:
    """What is known while the search runs.

    No plan costs less than ``bound``: the least of ``dropped`` (everything excluded by a bound),
    ``unexplored`` (candidates not built yet) and the bounds of the chains in ``open``.
    ``proven`` is the highest bound so far, ``told`` when it was reported. ``problems`` are those
    built while there was no plan, to explain why there is none; ``seen`` are those that were tried,
    the most promising first, a few of each family; ``tried`` is how many of each there were.
    ``beaten`` are the plans that were the best before ``best``.
    """

    queue: Queue
    gap: float
    deadline: float
    progress: Progress | None
    solver: str
    best: _Incumbent | None = None
    dropped: float = np.inf
    unexplored: float = -np.inf
    open: list[Open] = field(default_factory=list)
    fate: dict[int, str] = field(default_factory=dict)
    stopped: str = ""
    proven: float = -np.inf
    told: float = -np.inf
    problems: list[Problem] = field(default_factory=list)
    seen: list[Problem] = field(default_factory=list)
    tried: Counter[Family] = field(default_factory=Counter)
    beaten: list[_Incumbent] = field(default_factory=list)

    @property
    def target(self) -> float:
        """Plans that cost this much or more need not be looked at."""
        return self.best.seconds * (1 - AIM * self.gap) if self.best else np.inf

    @property
    def bound(self) -> float:
        """No plan costs less."""
        lowest = min(self.dropped, self.unexplored, *(o.bound for o in self.open), np.inf)
        return min(lowest, self.best.seconds) if self.best else lowest

    @property
    def done(self) -> int:
        """Configurations of which it is known what becomes of them."""
        return len(self.fate) + len(self.queue.crowded)

    def report(self) -> None:
        """Tells the caller how far the search is; what was once proven stays so."""
        self.proven, self.told = max(self.proven, self.bound), time.monotonic()
        if self.progress:
            seconds = self.best.seconds if self.best else None
            self.progress(self.done, self.queue.considered, seconds, float(self.proven))


def solve(
    candidates: Sequence[Candidate | Group], *, gap: float = 0.01, time_limit: float = 60.0,
    progress: Progress | None = None, solver: str = "highs",
    relaxations: Sequence[Relaxation] | None = (), runners: bool = False, advise: bool = True,
) -> Solution:  # fmt: skip
    """The plan with the fewest seconds per step, to a relative ``gap`` if time allows.

    Args:
        candidates: configurations with lower bounds, or groups of them; few are built.
        gap: the search ends when no plan can be faster by more than this share.
        time_limit: seconds after which the best plan so far is returned, as on Ctrl-C.
        progress: called with configurations done, their number, the best plan's seconds, the bound.
        solver: "highs" or "cbc".
        relaxations: what the user could give up, tried if nothing fits; None: do not look why.
        runners: whether to look for runners-up too, and to keep rivals.
        advise: whether the reason why nothing fits comes with what would fit, verified by solves.

    Raises:
        InfeasiblePlanError: nothing fits, or nothing was found in time; without advice an
            ``UndiagnosedError``.
    """
    begun = time.monotonic()
    search = _Search(Queue(candidates), gap, begun + time_limit, progress, solver)
    try:
        _explore(search)
        _close(search)
        search.report()
    except OutOfTimeError:
        search.stopped = "time limit"
    except KeyboardInterrupt:
        if search.best is None:
            raise
        search.stopped = "interrupted"
    if search.best is None:
        raise _failure(search, relaxations, time_limit, advise)
    solution = _solution(search, _simpler(search, search.best), time.monotonic() - begun)
    if not runners:
        return solution
    solution = replace(solution, rivals=_rivals(search, solution))
    return replace(solution, runners_up=_runners_up(search, solution))


def _simpler(search: _Search, best: _Incumbent) -> _Incumbent:
    """The plan with fewer different options per class, as good as the search looked, if any.

    Within the gap that was asked for it stays there.
    """
    least = max(search.bound, search.proven)
    within = least / (1 - search.gap) if search.gap < 1 else np.inf
    limit = min(best.seconds * (1 + AIM * search.gap), max(best.seconds, within))
    options = simpler(best.problem, best.boundaries, best.options, limit)
    seconds = objective_seconds(best.problem, best.boundaries, options)
    return replace(best, options=options, seconds=seconds)


def _rivals(search: _Search, solution: Solution) -> tuple[Solution, ...]:
    """The last plans that were the best for a while and are within the gap too."""
    found = (_solution(search, own, solution.seconds) for own in search.beaten[::-1])
    return tuple(s for s in found if s.gap <= search.gap + TOLERANCE)[:RIVALS]


def _runners_up(search: _Search, solution: Solution) -> tuple[Solution, ...]:
    """Plans of other families, none where the caller is in a hurry."""
    if search.stopped:
        return ()
    built = [entry.problem for entry in search.queue.built()]
    others = itertools.chain(search.seen, built, search.queue.listed())
    try:
        return runners_up(solution.problem.configuration, others, _rounded, search.deadline)
    except KeyboardInterrupt:  # the plan is there: return it
        return ()


def _rounded(problem: Problem) -> Solution:
    """A good plan of a problem, without proof."""
    own = _Search(Queue([]), 0.0, np.inf, None, "highs")
    _try(own, 0, problem)
    if own.best is None:
        raise InfeasiblePlanError("no plan fits")
    return _solution(own, own.best, 0.0)


def _explore(search: _Search) -> None:
    """Builds candidates in order of their bounds until no other can win."""
    queue = search.queue
    while queue:
        search.unexplored = queue.bound
        if queue.bound >= search.target:
            search.dropped = min(search.dropped, queue.bound)
            break
        if time.monotonic() > search.deadline:
            _try_what_is_built(search)
            raise OutOfTimeError
        entry = queue.pop(hurry=search.best is None)
        if entry is not None:
            search.fate[entry.number] = _try(search, entry.number, entry.problem)
        search.report()
    search.unexplored = np.inf


def _try_what_is_built(search: _Search) -> None:
    """Out of time without a plan: one that is a moment away is still worth that moment."""
    for entry in search.queue.built():
        if search.best is not None:
            break
        search.fate[entry.number] = _try(search, entry.number, entry.problem)


def _try(search: _Search, number: int, problem: Problem) -> str:
    """Opens the chains of a problem; returns what became of it so far."""
    kind = family(problem.configuration)
    search.tried[kind] += 1
    if search.tried[kind] <= PER_FAMILY:
        search.seen.append(problem)
    if search.best is None:
        search.problems.append(problem)
    fate, loose = "infeasible", relaxed_chain(problem)
    if not all(loose.menus) or not may_reach(loose):
        return fate
    if not may_reach(loose, search.target):
        search.dropped = min(search.dropped, search.target)
        return "bounded out"
    for opened in _chains(search, number, loose):
        fate = "bounded out" if fate == "infeasible" else fate
        if opened.bound >= search.target:
            search.dropped = min(search.dropped, opened.bound)
            continue
        search.open.append(opened)
        _improve_by_rounding(search, opened)
        fate = "solved"
    return fate


def _chains(search: _Search, number: int, loose: Chain) -> Iterator[Open]:
    """The chains of a problem in which something may fit.

    ``loose`` is the one without the links: where it is hopeless there is no need to try every key.
    """
    opened = _opened(loose, number)
    if opened is None:
        return
    if opened.bound >= search.target or not loose.problem.linked:
        yield opened
        return
    for chain in chains(loose.problem):
        opened = _opened(chain, number)
        if opened is not None:
            yield opened


def _opened(chain: Chain, number: int) -> Open | None:
    """The chain with its relaxation, None if nothing fits."""
    room = dense(chain, np.where(may_fit(chain), 0.0, np.inf))
    if cheapest_path(room) is None:
        return None
    relaxed = relax(chain)
    bound = windows(least_of(chain, relaxed)).bound
    return Open(chain, relaxed, bound, number) if bound < np.inf else None


def _improve_by_rounding(search: _Search, opened: Open) -> None:
    """Looks for a better plan among the rounded patterns."""
    chain, patterns = opened.chain, opened.relaxed.patterns
    lead = np.stack([dense(chain, a, chain.lead_share) for a, _, _ in patterns])
    pace = np.stack([dense(chain, b, chain.pace_share) for _, b, _ in patterns])
    step = np.stack([dense(chain, g) for _, _, g in patterns])
    for value, path, weighting in good_paths(lead, pace, step):
        if search.best and value >= search.best.seconds:
            continue
        ends = [*path[1:], len(chain.layers)]
        filled = [
            rounded_pattern(chain.on(place.kind), place.depths, int(chain.content[i, j]), k)
            for place, i, j, k in zip(chain.places, path, ends, weighting, strict=True)
        ]
        _accept(search, opened, path, [row.tolist() for row in filled])


def _accept(
    search: _Search, opened: Open, starts: Sequence[int], taken: Sequence[Sequence[int]]
) -> None:
    """Prices a plan given by layers per option of each rank, and keeps it if it is the best."""
    chain, problem = opened.chain, opened.chain.problem
    layers = problem.fold.layers.tolist()
    options: dict[int, Option] = {}
    for rank, (start, end) in enumerate(pairwise([*starts, len(layers)])):
        view = chain.on(chain.places[rank].kind)
        twins = view.twins(chain.places[rank].depths)
        counts = chain.counts[chain.content[start, end]]
        numbers = spread(
            view, twins, counts, np.repeat(range(len(taken[rank])), taken[rank]).tolist()
        )
        rest: dict[int, list[Option]] = {c: [] for c in range(len(view.menus))}
        for option, owner, number in zip(view.options, view.owner, numbers, strict=True):
            rest[int(owner)] += [option] * number
        for place in range(start, end):
            options[layers[place]] = rest[chain.layers[place]].pop(0)
    boundaries, chosen = problem.fold.boundaries(starts), [options[i] for i in sorted(options)]
    broken = violations(problem, boundaries, chosen)
    assert not broken, broken
    seconds = objective_seconds(problem, boundaries, chosen)
    if search.best is None or seconds < search.best.seconds:
        search.beaten += [search.best] if search.best else []
        search.best = _Incumbent(problem, boundaries, tuple(chosen), seconds, opened.candidate)


def _close(search: _Search) -> None:
    """Solves the open chains, with more patterns each time, until the gap is met."""
    for budget in BUDGETS:
        _drop_beaten(search)
        if not search.open or _closed(search):
            return
        _solve_open(search, budget)
        search.report()


def _drop_beaten(search: _Search) -> None:
    for opened in search.open:
        if opened.bound >= search.target:
            search.dropped = min(search.dropped, opened.bound)
    kept = [o for o in search.open if o.bound < search.target]
    for number in {o.candidate for o in search.open} - {o.candidate for o in kept}:
        if search.best is None or number != search.best.candidate:
            search.fate[number] = "bounded out"
    search.open = kept


def _closed(search: _Search) -> bool:
    best = search.best
    return best is not None and 1 - search.bound / best.seconds <= search.gap + TOLERANCE


def _solve_open(search: _Search, budget: int) -> None:
    """Solves the open chains; afterwards their bounds are what has been proven."""
    for k in sorted(range(len(search.open)), key=lambda k: search.open[k].bound):
        if search.open[k].bound < search.target:
            _solve_one(search, k, budget)
            search.report()


def _solve_one(search: _Search, k: int, budget: int) -> None:
    """Solves an open chain; what is found and proven on the way holds if it is interrupted.

    Of the plans on the way the last alone is kept: they are much alike.
    """
    opened, beaten = search.open[k], len(search.beaten)
    slack, deadline = AIM * search.gap, search.deadline
    for reached in solve_chain(opened, search.target, slack, budget, deadline):
        if reached.plan is not None:
            starts, patterns = reached.plan
            _accept(search, opened, starts, [pattern.taken for pattern in patterns])
            del search.beaten[beaten + 1 :]
        bound = max(search.open[k].bound, min(reached.bound, search.target))
        search.open[k] = replace(opened, bound=bound)
        now = time.monotonic()
        if now > deadline:
            raise OutOfTimeError
        if now >= search.told + PAUSE:
            search.report()


def _failure(
    search: _Search, relaxations: Sequence[Relaxation] | None, time_limit: float, advise: bool
) -> InfeasiblePlanError:
    """Why there is no plan: it is proven that none fits, or time ran out before one was found."""
    if search.stopped or search.open:
        return InfeasiblePlanError(
            f"no plan found in {time_limit:g} s, and none excluded",
            expected="a plan that fits into the memory of each device",
            where=f"search over {search.queue.considered} configurations",
            hint="a larger time_limit, or pins that narrow the search",
        )
    if relaxations is None:
        return InfeasiblePlanError("no plan fits")
    return (
        UndiagnosedError(lambda: diagnose(_problems(search)))
        if not advise
        else diagnose(_problems(search), relaxations=relaxations, verify=_verify)
    )


def _problems(search: _Search) -> list[Problem]:
    """All that were looked at while there was no plan."""
    return [*search.problems, *(candidate.build() for candidate in search.queue.crowded)]


def _verify(candidates: Sequence[Candidate | Group], seconds: float) -> Solution:
    """Some plan, soon: how good it is matters little, and why there is none not at all."""
    return solve(candidates, gap=VERIFYING, time_limit=seconds, relaxations=None)


def _solution(search: _Search, best: _Incumbent, seconds: float) -> Solution:
    bound = float(min(max(search.bound, search.proven), best.seconds))
    if np.isclose(bound, best.seconds, rtol=ROUNDING, atol=0.0):
        bound = best.seconds
    gap = 1 - bound / best.seconds if best.seconds else 0.0
    met = gap <= search.gap + TOLERANCE
    return Solution(
        problem=best.problem, boundaries=best.boundaries, options=best.options,
        objective_seconds=best.seconds, bound_seconds=bound, gap=gap,
        status="optimal" if met else search.stopped or "feasible",
        seconds=seconds, candidates=_counts(search), solver=solver_name(search.solver),
    )  # fmt: skip


def _counts(search: _Search) -> dict[str, int]:
    """How many configurations were considered, and what became of them."""
    fates = Counter(search.fate.values())
    untried = "not reached" if search.stopped else "bounded out"
    considered = search.queue.considered
    fates["infeasible"] += len(search.queue.crowded)
    fates[untried] += considered - search.done
    counts = {"considered": considered, "bounded out": 0, "infeasible": 0, "solved": 0}
    return counts | {name: number for name, number in fates.items() if number}
