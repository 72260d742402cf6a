"""What an assignment costs, straight from the definitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import mul

from autopar.solve.problem import Configuration, Option, Problem


def stages(problem: Problem, boundaries: Sequence[int]) -> Iterator[range]:
    """The layer positions of each stage; ``boundaries[s]`` is the first layer of stage s."""
    ends = [*boundaries[1:], len(problem.layers)]
    return (range(a, b) for a, b in zip(boundaries, ends, strict=True))


def by_rank(problem: Problem, figures: Sequence[float]) -> list[float]:
    """Sums figures of stages over the stages of each rank."""
    pp = problem.configuration.pp
    return [sum(figures[rank::pp]) for rank in range(pp)]


def rank_memory_bytes(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[int]:
    """Peak bytes of each rank: baseline + state + in-flight activations + largest transient.

    Every stage of a rank counts at its own worst moment.
    """
    pp = problem.configuration.pp
    held, transient = [problem.on(rank).baseline_bytes for rank in range(pp)], [0] * pp
    for s, layers in enumerate(stages(problem, boundaries)):
        depth = problem.configuration.depth(s)
        for i in layers:
            held[s % pp] += options[i].held_bytes(depth)
            transient[s % pp] = max(transient[s % pp], options[i].transient_bytes)
    return [h + t for h, t in zip(held, transient, strict=True)]


def stage_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[float]:
    """Seconds of one micro-batch on each stage, forward and backward, with its p2p transfers."""
    return [
        sum(options[i].microbatch_seconds for i in layers) + problem.transfer_seconds(boundaries, s)
        for s, layers in enumerate(stages(problem, boundaries))
    ]


def crossing_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[float]:
    """``Configuration.crossing_seconds`` of each stage, with its p2p transfers."""
    configuration = problem.configuration
    return [
        sum(configuration.crossing_seconds(options[i]) for i in layers)
        + problem.transfer_seconds(boundaries, s)
        for s, layers in enumerate(stages(problem, boundaries))
    ]


def stage_step_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[float]:
    """Seconds that each stage pays once per optimizer step."""
    return [sum(options[i].step_seconds for i in layers) for layers in stages(problem, boundaries)]


def objective_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> float:
    """Seconds of one step: ``sum(c_p) / v + max(m t_p - c_p / v) + max(g_p)`` over ranks p.

    ``t_p`` is the work of rank p for one micro-batch, ``c_p`` the part of it that later stages wait
    for, ``g_p`` its work once per step. A micro-batch crosses every rank, which takes the v-th part
    of ``c_p`` with v stages per rank; meanwhile or afterwards the slowest rank works through all
    m micro-batches. For gpipe and 1f1b ``c_p = t_p``, and this is ``sum(t) + (m - 1) max(t) +
    max(g)`` (Huang et al. 2019). For equal stages it is what the simulated schedule takes.
    """
    m, v = problem.configuration.num_microbatches, problem.configuration.virtual_stages
    work = by_rank(problem, stage_seconds(problem, boundaries, options))
    lead = [c / v for c in by_rank(problem, crossing_seconds(problem, boundaries, options))]
    last = max(by_rank(problem, stage_step_seconds(problem, boundaries, options)))
    return sum(lead) + max(m * t - c for t, c in zip(work, lead, strict=True)) + last


def time_bound(
    config: Configuration, numbers: Sequence[int], seconds: Sequence[float],
    step_seconds: Sequence[float], cut_seconds: Sequence[float], crossing: Sequence[float],
) -> float:  # fmt: skip
    """No plan is faster whose layers take at least these seconds per micro-batch and per step.

    Figures are those of a layer of each class, of which there are ``numbers``. The stages meet at
    the narrowest of the cuts. ``crossing`` are those of ``Configuration.crossing_seconds``, which
    are ``seconds`` unless backward is split. Lead and pace of all ranks add up to m times the work;
    no rank's pace is below their mean, nor below that of the rank with the largest layer.
    """
    m, v = config.num_microbatches, config.virtual_stages
    transfers = 2 * narrowest(cut_seconds, config.stages - 1)
    lead = (_total(numbers, crossing) + transfers) / v
    work = _total(numbers, seconds) + transfers
    mean = (1 - 1 / config.pp) * lead + m * work / config.pp
    largest = max(lead - own / v + m * t for own, t in zip(crossing, seconds, strict=True))
    step = max(_total(numbers, step_seconds) / config.pp, *step_seconds)
    return max(mean, largest) + step


def _total(numbers: Sequence[int], each: Sequence[float]) -> float:
    return float(sum(map(mul, numbers, each)))


def narrowest(cut_seconds: Sequence[float], boundaries: int) -> float:
    """Seconds of so many stage boundaries, one side of each, at least: they are all different."""
    return sum(sorted(cut_seconds[1:])[:boundaries])


def problem_bound(problem: Problem) -> float:
    """A bound on every plan of a problem that ignores memory and stage boundaries."""
    config, numbers = problem.configuration, Counter(problem.layers)
    fastest, crossing, cheapest = (
        [min(map(figure, problem.menus[c]), default=0.0) for c in numbers]
        for figure in (
            lambda o: o.microbatch_seconds, config.crossing_seconds, lambda o: o.step_seconds
        )
    )  # fmt: skip
    return time_bound(
        config, list(numbers.values()), fastest, cheapest, problem.cut_seconds, crossing
    )


def violations(problem: Problem, boundaries: Sequence[int], options: Sequence[Option]) -> list[str]:
    """Every rule of the problem that an assignment breaks; empty for a legal one."""
    broken: list[str] = []
    if len(options) != len(problem.layers) or len(boundaries) != problem.configuration.stages:
        return ["one option per layer and one boundary per stage are needed"]
    broken += _misplaced(problem, boundaries)
    for s, layers in enumerate(stages(problem, boundaries)):
        menus = problem.on(s % problem.configuration.pp).menus
        for i in layers:
            if options[i] not in menus[problem.layers[i]]:
                broken.append(f"layer {i} has no option {options[i].key}")
    for i, j in problem.linked:
        if options[i].key != options[j].key:
            broken.append(f"layers {i} and {j} differ: {options[i].key}, {options[j].key}")
    for p, peak in enumerate(rank_memory_bytes(problem, boundaries, options)):
        limit = problem.on(p).memory_limit_bytes
        if peak > limit:
            broken.append(f"rank {p} needs {peak} of {limit} bytes")
    return broken


def _misplaced(problem: Problem, boundaries: Sequence[int]) -> list[str]:
    """Stages that begin where they may not."""
    broken = []
    if boundaries[0] != 0 or any(not len(layers) for layers in stages(problem, boundaries)):
        broken.append(f"stages {tuple(boundaries)} do not cover the layers")
    for s, (start, allowed) in enumerate(zip(boundaries, problem.cuts, strict=False)):
        if start not in allowed:
            broken.append(f"stage {s} may begin with layers {allowed}, not {start}")
    pp, learns = problem.configuration.pp, [c not in problem.idle for c in problem.layers]
    found = enumerate(stages(problem, boundaries))
    busy = {s % pp for s, layers in found if any(learns[i] for i in layers)}
    if pp > 1 and len(busy) < pp:
        broken.append(f"ranks {sorted(set(range(pp)) - busy)} have no parameters")
    if not problem.fold.is_cut_by(boundaries):
        broken.append(f"stages {tuple(boundaries)} are no intervals of {problem.turns}")
    return broken
