"""What the solver is given and what it returns: plain numbers, no graph and no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autopar.cost.schedule import SINGLE, Depth, schedule_depths
from autopar.solve.fold import Fold, fold_of


@dataclass(frozen=True)
class Option:
    """One way to run one layer of a class under a configuration.

    Seconds of forward and backward are per micro-batch and include tensor-parallel
    communication and recomputation; ``step_seconds`` is paid once per optimizer step
    (exposed gradient synchronisation, parameter gathering, optimizer).
    ``state_bytes`` holds parameters, gradients and optimizer state; ``activation_bytes``
    is kept for every micro-batch in flight; ``transient_bytes`` is the peak on top of these
    while the layer runs, so a rank pays the largest of its layers once. Of ``backward_seconds``,
    ``weight_seconds`` make the gradients of parameters; a schedule that makes them later holds
    ``waiting_bytes`` per micro-batch besides the activations until then. ``gradient_bytes`` and
    ``optimizer_bytes`` are parts of ``state_bytes``, ``reserve_bytes`` of ``activation_bytes``:
    no tensors, but what the allocator holds beside them. ``alone_bytes`` are what is left of
    ``transient_bytes`` where nothing else on its stage is gathered, as zero 3 gathers the layer
    that comes next; the search does not know of it.
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
    weight_seconds: float = 0.0
    waiting_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    reserve_bytes: int = 0
    alone_bytes: int = 0

    def held_bytes(self, depth: Depth) -> int:
        """State, and what is kept for the micro-batches in flight."""
        return (
            self.state_bytes
            + depth.forwarded * self.activation_bytes
            + depth.waiting * self.waiting_bytes
        )

    @property
    def microbatch_seconds(self) -> float:
        """Forward and backward of one micro-batch."""
        return self.forward_seconds + self.backward_seconds


Menus = tuple[tuple[Option, ...], ...]


@dataclass(frozen=True)
class Configuration:
    """The model-wide choices. ``layout`` is the tp layout of the activations between layers.

    The chain is cut into ``stages`` = pp * virtual_stages; rank p holds stages p, p + pp, ...
    ``offload`` says what is in host memory: "none", "optimizer", "activations" or "all";
    ``exchange`` how replicas add up gradients: "collective", "ring" or "server".
    ``shares`` are the samples of each dp rank's micro-batches where devices differ; then
    ``microbatch_size`` is that of the first. ``replicas`` hold the same part of what layers with
    zero 1, 2 or 3 divide among ``dp_shard`` ranks.
    """

    pp: int
    dp: int
    tp: int
    microbatch_size: int
    num_microbatches: int
    schedule: str
    layout: str = "replicate"
    virtual_stages: int = 1
    offload: str = "none"
    exchange: str = "collective"
    shares: tuple[int, ...] = ()
    replicas: int = 1

    @property
    def dp_shard(self) -> int:
        """Neighbours on the dp axis among which layers divide their state."""
        return self.dp // self.replicas

    def has_mode(self, zero: int) -> bool:
        """Whether layers may have a zero mode: none of one shard, else not 0 beside replicas.

        A program lays out one mesh, and zero 0 would need one on which all of dp is one axis.
        """
        if self.replicas == 1:
            return True
        return (zero == 0) == (self.dp_shard == 1)

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step."""
        each = sum(self.shares) if self.shares else self.dp * self.microbatch_size
        return each * self.num_microbatches

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size of micro-batch that some rank has."""
        return self.shares or (self.microbatch_size,)

    @property
    def stages(self) -> int:
        """Number of stages, virtual ones counted."""
        return self.pp * self.virtual_stages

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.tp

    @property
    def communicators(self) -> int:
        """Process groups that a rank communicates in: that of all ranks, and one per mesh axis.

        Where state is divided within a part of the dp axis, that part has one besides.
        """
        within = 1 < self.dp_shard < self.dp
        return within + sum(n > 1 for n in (self.world_size, self.pp, self.dp, self.tp))

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of parameters are made apart from the others."""
        return self.schedule == "zero_bubble" and self.pp > 1

    @property
    def actions(self) -> int:
        """Passes of a micro-batch through a stage: forward, and backward in one part or in two."""
        return 3 if self.splits_backward else 2

    @property
    def of_layers(self) -> Configuration:
        """As single layers see it: equal for schedules that make no difference to any of them.

        What does is a backward in two parts, and stages that torch's schedule itself gathers, see
        ``cost/data_parallel.py: gathers``.
        """
        if self.virtual_stages > 3:
            return self
        schedule = self.schedule if self.splits_backward else "1f1b"
        return replace(self, schedule=schedule, virtual_stages=1)

    @property
    def depths(self) -> tuple[Depth, ...]:
        """What each stage holds at its peak, in micro-batches."""
        if self.pp == 1:
            return (Depth(1, 0),)
        return schedule_depths(self.schedule, self.pp, self.num_microbatches, self.virtual_stages)

    def depth(self, stage: int) -> Depth:
        """What stage ``stage`` holds at its peak, in micro-batches."""
        return self.depths[stage]

    def kept(self, stage: int) -> tuple[int, int]:
        """Micro-batches whose result, and whose gradient, a rank with one stage has sent and keeps.

        What it makes stays until its backward; a gradient that it returned until the next one has
        been made, and under gpipe, which waits for all at the end, for the rest of the step. That
        of the present micro-batch is the first layer's own.
        """
        if self.pp == 1 or self.schedule not in SINGLE:
            return 0, 0
        returned = self.num_microbatches - 1
        if self.schedule != "gpipe":
            returned = min(1, returned)
        last = stage == self.pp - 1
        return 0 if last else self.depth(stage).forwarded, returned if stage else 0

    @property
    def most_kept(self) -> int:
        """The ``kept`` of any stage at most: the first makes most, the second of those between."""
        return max(sum(self.kept(stage)) for stage in {0, min(1, self.pp - 1), self.pp - 1})

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations stage ``stage`` holds at its peak."""
        return self.depth(stage).forwarded

    def crossing_seconds(self, option: Option) -> float:
        """What a micro-batch takes on its way through a layer while others wait for it."""
        return crossing_seconds(option, self.splits_backward)


def crossing_seconds(option: Option, splits_backward: bool) -> float:
    """``Configuration.crossing_seconds``, of which ``splits_backward`` is all that matters.

    A zero bubble schedule fills the time in which I takes longer than F by making gradients
    of parameters, which nothing waits for.
    """
    if not splits_backward:
        return option.microbatch_seconds
    gradient = option.backward_seconds - option.weight_seconds
    return option.forward_seconds + max(0.0, gradient - option.weight_seconds)


@dataclass(frozen=True)
class Problem:
    """Stage boundaries and per-layer options under one configuration.

    Attributes:
        layers: the class of each layer, in chain order.
        menus: for each class, its options.
        cut_seconds: cost of a stage boundary in front of each layer per micro-batch, forward and
            backward together, borne by both of the stages that it joins; empty where it is none.
        linked: pairs of layer positions that must take options with the same ``key``.
        baseline_bytes: bytes that every rank holds whatever is chosen; ``reserve_bytes`` of them
            are no tensors.
        cuts: for each stage the layers that it may begin with; empty where any may.
        turns: with several stages per rank, the chunk of every layer in the order of which each
            rank takes an interval, see ``fold.py``.
        device: what errors call the devices; empty where all are of one kind.
        kinds: where the ranks of a pipeline are on devices of several kinds, the problem as each
            kind has it. They differ in prices, limits and baselines alone; ``cut_seconds`` are then
            those of boundaries between devices of two kinds.
        rank_kinds: the kind of each rank, as its position in ``kinds``.
        idle: classes of layers without parameters. No rank of a pipeline has these alone, for
            torch's optimizers refuse to have nothing to update.
    """

    configuration: Configuration
    layers: tuple[int, ...]
    menus: Menus
    memory_limit_bytes: int
    cut_seconds: tuple[float, ...] = ()
    linked: tuple[tuple[int, int], ...] = ()
    baseline_bytes: int = 0
    reserve_bytes: int = 0
    cuts: tuple[tuple[int, ...], ...] = ()
    turns: tuple[int, ...] = ()
    device: str = ""
    kinds: tuple[Problem, ...] = ()
    rank_kinds: tuple[int, ...] = ()
    idle: frozenset[int] = frozenset()

    def kind(self, rank: int) -> int:
        """The kind of device of a rank; 0 where all are of one."""
        return self.rank_kinds[rank] if self.kinds else 0

    def on(self, rank: int) -> Problem:
        """The problem as the devices of a rank have it."""
        return self.kinds[self.rank_kinds[rank]] if self.kinds else self

    def transfer_seconds(self, boundaries: Sequence[int], stage: int) -> float:
        """p2p seconds of a stage for one micro-batch, over all of its boundaries."""
        before = self.sides(stage)[0][boundaries[stage]]
        ends = [*boundaries[1:], 0]
        return before + self.sides(stage)[1][ends[stage]]

    def sides(self, stage: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """``cut_seconds`` of a stage's boundary with the one before, and with the one behind."""
        before, behind = self.boundary_seconds[stage : stage + 2]
        return before, behind

    @cached_property
    def boundary_seconds(self) -> tuple[tuple[float, ...], ...]:
        """``cut_seconds`` in front of each stage, and behind the last; [stages + 1].

        Nothing is sent in front of the first and behind the last.
        """
        pp, stages = self.configuration.pp, self.configuration.stages
        none = (0.0,) * len(self.layers)
        if not self.kinds:
            return (none, *[self.cut_seconds or none] * (stages - 1), none)
        sides = ((self.rank_kinds[s % pp], self.rank_kinds[(s + 1) % pp]) for s in range(stages))
        inner = ((self.kinds[a] if a == b else self).cut_seconds or none for a, b in sides)
        return (none, *list(inner)[:-1], none)

    @property
    def fold(self) -> Fold:
        """The order in which ranks take the layers: the chain's own with one stage per rank."""
        turns = self.turns or (0,) * len(self.layers)
        return fold_of(turns, self.configuration.virtual_stages)


@dataclass(frozen=True)
class Candidate:
    """A configuration that may never be built; its optimum is at least ``lower_bound`` seconds.

    Where ``has_room`` denies it nothing fits, which is known at less cost than the problem.
    """

    configuration: Configuration
    lower_bound: float
    build: Callable[[], Problem]
    has_room: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Group:
    """Configurations that are not even listed while something else may be faster.

    ``size`` is their number, ``expand`` lists them; none takes less than ``lower_bound`` seconds.
    """

    lower_bound: float
    size: int
    expand: Callable[[], Sequence[Candidate]]


@dataclass(frozen=True)
class Solution:
    """The best assignment found, with an honest bound over everything that was considered.

    ``boundaries[p]`` is the first layer of stage p; ``options[i]`` is the choice for layer i.
    ``candidates`` counts configurations by what became of them. ``runners_up`` are plans of
    other families, see ``runners.py``; ``rivals`` other plans within the gap that was asked for.
    It is the best of ``simulated`` plans whose schedules were simulated; ``notes`` say why it is
    preferred to one with a smaller gap.
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
    runners_up: tuple[Solution, ...] = ()
    rivals: tuple[Solution, ...] = ()
    simulated: int = 1
    notes: tuple[str, ...] = ()
