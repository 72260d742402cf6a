"""What the solver is given and what it returns: plain numbers, no graph and no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to run one layer of a class under a configuration.

    Seconds of forward and backward are per micro-batch and include tensor-parallel
    communication and recomputation; ``step_seconds`` is paid once per optimizer step
    (exposed gradient synchronisation, parameter gathering, optimizer).
    ``state_bytes`` holds parameters, gradients and optimizer state; ``activation_bytes``
    is kept for every micro-batch in flight; ``transient_bytes`` is the peak on top of these
    while the layer runs, so a stage pays the largest of its layers once.
    """

    key: str
    tp_option: int
    zero: int
    recompute: str
    forward_seconds: float
    backward_seconds: float
    step_seconds: float
    state_bytes: int
    activation_bytes: int
    transient_bytes: int

    @property
    def microbatch_seconds(self) -> float:
        """Forward and backward of one micro-batch."""
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class Configuration:
    """The model-wide choices. ``layout`` is the tp layout of the activations between layers."""

    pp: int
    dp: int
    tp: int
    microbatch_size: int
    num_microbatches: int
    schedule: str
    layout: str = "replicate"

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations stage ``stage`` holds at its peak."""
        if self.pp == 1:
            return 1
        if self.schedule == "gpipe":
            return self.num_microbatches
        return min(self.num_microbatches, self.pp - stage)


@dataclass(frozen=True)
class Problem:
    """Stage boundaries and per-layer options under one configuration.

    Attributes:
        layers: the class of each layer, in chain order.
        menus: for each class, its options.
        p2p_seconds: cost of one stage boundary per micro-batch, forward and backward together,
            borne by both of the stages that it joins.
        linked: pairs of layer positions that must take options with the same ``key``.
        baseline_bytes: bytes that every rank holds whatever is chosen.
    """

    configuration: Configuration
    layers: tuple[int, ...]
    menus: tuple[tuple[Option, ...], ...]
    memory_limit_bytes: int
    p2p_seconds: float = 0.0
    linked: tuple[tuple[int, int], ...] = ()
    baseline_bytes: int = 0


@dataclass(frozen=True)
class Candidate:
    """A configuration that may never be built; its optimum is at least ``lower_bound`` seconds."""

    configuration: Configuration
    lower_bound: float
    build: Callable[[], Problem]


@dataclass(frozen=True)
class Solution:
    """The best assignment found, with an honest bound over everything that was considered.

    ``boundaries[p]`` is the first layer of stage p; ``options[i]`` is the choice for layer i.
    ``candidates`` counts configurations by what became of them.
    """

    problem: Problem
    boundaries: tuple[int, ...]
    options: tuple[Option, ...]
    objective_seconds: float
    bound_seconds: float
    gap: float
    status: str
    seconds: float
    candidates: dict[str, int]
    solver: str
