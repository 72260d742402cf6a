"""What an assignment costs, straight from the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopar.solve.problem import Option, Problem


def stages(problem: Problem, boundaries: Sequence[int]) -> Iterator[range]:
    """The layer positions of each stage; ``boundaries[p]`` is the first layer of stage p."""
    ends = [*boundaries[1:], len(problem.layers)]
    return (range(a, b) for a, b in zip(boundaries, ends, strict=True))


def stage_memory_bytes(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[int]:
    """Peak bytes of each stage: baseline + state + in-flight activations + largest transient."""
    peaks = []
    for p, layers in enumerate(stages(problem, boundaries)):
        flight = problem.configuration.in_flight(p)
        held = sum(options[i].state_bytes + flight * options[i].activation_bytes for i in layers)
        transient = max((options[i].transient_bytes for i in layers), default=0)
        peaks.append(problem.baseline_bytes + held + transient)
    return peaks


def stage_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[float]:
    """Seconds of one micro-batch on each stage, forward and backward, with its p2p transfers."""
    pp = problem.configuration.pp
    return [
        sum(options[i].microbatch_seconds for i in layers) + problem.p2p_seconds * neighbours(pp, p)
        for p, layers in enumerate(stages(problem, boundaries))
    ]


def neighbours(pp: int, stage: int) -> int:
    """How many stages exchange activations with ``stage``."""
    return (stage > 0) + (stage < pp - 1)


def stage_step_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> list[float]:
    """Seconds that each stage pays once per optimizer step."""
    return [sum(options[i].step_seconds for i in layers) for layers in stages(problem, boundaries)]


def objective_seconds(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option]
) -> float:
    """Seconds of one optimizer step: ``sum(t) + (m - 1) * max(t) + max(g)``.

    The first micro-batch crosses every stage, the other m - 1 follow at the pace of the slowest
    stage (Huang et al. 2019, GPipe; the same for 1f1b), and the slowest synchronisation ends it.
    """
    seconds = stage_seconds(problem, boundaries, options)
    last = max(stage_step_seconds(problem, boundaries, options))
    return sum(seconds) + (problem.configuration.num_microbatches - 1) * max(seconds) + last


def violations(problem: Problem, boundaries: Sequence[int], options: Sequence[Option]) -> list[str]:
    """Every rule of the problem that an assignment breaks; empty for a legal one."""
    broken = []
    if len(options) != len(problem.layers) or len(boundaries) != problem.configuration.pp:
        return ["one option per layer and one boundary per stage are needed"]
    if boundaries[0] != 0 or any(not len(layers) for layers in stages(problem, boundaries)):
        broken.append(f"stages {tuple(boundaries)} do not cover the layers")
    for i, (layer, option) in enumerate(zip(problem.layers, options, strict=True)):
        if option not in problem.menus[layer]:
            broken.append(f"layer {i} has no option {option.key}")
    for i, j in problem.linked:
        if options[i].key != options[j].key:
            broken.append(f"layers {i} and {j} differ: {options[i].key}, {options[j].key}")
    for p, peak in enumerate(stage_memory_bytes(problem, boundaries, options)):
        if peak > problem.memory_limit_bytes:
            broken.append(f"stage {p} needs {peak} of {problem.memory_limit_bytes} bytes")
    return broken
