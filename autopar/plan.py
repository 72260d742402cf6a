"""The plan: every decision, its prediction, and where the figures came from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from autopar import plan_file

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["gpipe", "1f1b", "interleaved_1f1b", "zero_bubble"]
Exchange = Literal["collective", "ring", "server"]
Offload = Literal["none", "optimizer", "activations", "all"]


@dataclass(frozen=True)
class Mesh:
    """Degrees of the three mesh axes; the world size is their product.

    Layers with zero 1, 2 or 3 divide their state among ``dp_shard`` neighbours on the dp axis, all
    of it unless given; ``dp // dp_shard`` replicas add up their gradients.
    """

    pp: int
    dp: int
    tp: int
    dp_shard: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dp_shard", self.dp_shard or self.dp)

    def __str__(self) -> str:
        degrees = f"pp={self.pp} dp={self.dp} tp={self.tp}"
        return degrees if self.dp_shard == self.dp else f"{degrees} dp_shard={self.dp_shard}"


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one rank, by kind.

    ``reserve`` is what its device holds besides tensors: contexts, communicators, what the
    allocator keeps between them, and a margin for the errors of such predictions. ``buffers`` are
    the model's and those of a pipeline's stages.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    transient: int
    buffers: int = 0
    reserve: int = 0

    @property
    def live(self) -> int:
        """Bytes of live tensors: all kinds but the reserve."""
        return (
            self.parameters + self.gradients + self.optimizer
            + self.activations + self.transient + self.buffers
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Sum over the kinds, in bytes."""
        return self.live + self.reserve


@dataclass(frozen=True)
class Passes:
    """What one micro-batch takes and keeps on a stage, as the simulated schedule plays it.

    Seconds of the passes include communication over tp and the runtime's work on each of them;
    ``weight_seconds`` are the part of backward that makes gradients of parameters,
    ``transfer_seconds`` those of activations to the next stage and their gradients back.
    ``saved_bytes`` are kept from forward to backward, ``waiting_bytes`` besides these until a
    backward in two parts makes the gradients of parameters.
    """

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    weight_seconds: float = 0.0
    transfer_seconds: float = 0.0
    saved_bytes: int = 0
    waiting_bytes: int = 0


@dataclass(frozen=True)
class StagePrediction:
    """Prices of one stage.

    Seconds are per micro-batch, except ``sync`` and ``optimizer``, which are per step; those of
    optimizer state on its way from the host and back are among the latter. ``offload_seconds`` are
    those of activations. ``host_bytes`` are what is kept in host memory instead.
    """

    forward_seconds: float
    backward_seconds: float
    tp_comm_seconds: float
    p2p_seconds: float
    sync_seconds: float
    optimizer_seconds: float
    memory: Memory
    collectives: dict[str, int] = field(default_factory=dict)
    offload_seconds: float = 0.0
    host_bytes: int = 0
    passes: Passes = Passes()


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage: the names of its layers and its prices.

    With v virtual stages per rank there are pp * v of them, and pp rank p holds stages p, p + pp,
    p + 2 pp and so on. The memory is what this stage adds to its rank, see ``Plan.rank_memory``.
    """

    layers: tuple[str, ...]
    prediction: StagePrediction


def sum_memory(stages: Iterable[Memory]) -> Memory:
    """What stages on one rank need together: every kind is a sum, transients come one by one."""
    each = list(stages)
    sums = {
        kind: sum(getattr(memory, kind) for memory in each)
        for kind in ("parameters", "gradients", "optimizer", "activations", "buffers", "reserve")
    }
    return Memory(**sums, transient=max(memory.transient for memory in each))


@dataclass(frozen=True)
class LayerPlan:
    """The choices for one layer; ``placements`` has a parameter's on the tp axis ("Shard(0)")."""

    name: str
    stage: int
    placements: dict[str, tuple[str, ...]]
    zero: int
    recompute: Recompute
    option: str = ""


@dataclass(frozen=True)
class Prediction:
    """What the plan is expected to do; the values of ``breakdown`` add up to ``step_seconds``."""

    step_seconds: float
    memory_bytes: int
    breakdown: dict[str, float]
    samples_per_second: float
    mfu: float
    collectives: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SolverReport:
    """How the plan was found.

    The search minimises a closed form of the step time, in which every transfer between stages
    counts on both sides: ``objective`` is the plan's, and no plan in the space has one below
    ``bound``. ``Prediction.step_seconds`` comes from the simulated schedule: of ``simulated``
    plans, those within the gap, the best of other kinds and what a user would have typed, the plan
    is the one whose simulated step is shortest.
    """

    status: str
    gap: float
    bound: float
    seconds: float
    candidates: dict[str, int]
    name: str = "HiGHS"
    objective: float = 0.0
    simulated: int = 1


@dataclass(frozen=True)
class Baseline:
    """What a user would have typed.

    ``step_seconds`` is None where it cannot run; ``reason`` says why, or which pins it breaks.
    """

    name: str
    description: str
    step_seconds: float | None
    memory_bytes: int | None
    reason: str = ""


@dataclass(frozen=True)
class RunnerUp:
    """A good plan of another mesh or schedule, and the part of its step that it loses most by.

    The best that was found of its kind, not proven to be the best there is.
    """

    mesh: Mesh
    microbatch_size: int
    schedule: str
    virtual_stages: int
    step_seconds: float
    memory_bytes: int
    reason: str


@dataclass(frozen=True)
class Kind:
    """Devices of one kind among several: what each of their ranks does and is predicted to take.

    ``microbatch_size`` is the samples per micro-batch on one dp rank of this kind, ``stages`` are
    those of the pipeline that its devices hold.
    """

    cluster: str
    devices: int
    microbatch_size: int
    step_seconds: float
    memory_bytes: int
    memory_limit_bytes: int
    stages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """Which cost model priced the plan; not ``calibrated`` means figures from publications.

    ``step_error`` has p10 and p90 of its relative error on step times that it was not fitted to.
    """

    name: str
    sha256: str
    calibrated: bool
    summary: str
    fit_error: dict[str, float] = field(default_factory=dict)
    devices_per_node: int = 8
    step_error: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A complete, executable decision; docs/design.md has the meaning of each field.

    ``parameters`` lists (name, shape, dtype) of the planned model, to recognise another one.
    ``program`` is what the emitter writes the program from: the graph of one layer of each
    class with the chosen placements, as plain JSON data. ``kinds`` are empty where all devices
    are of one; else the first ranks are on devices of the first kind, and ``microbatch_size`` is
    theirs.
    """

    model: str
    world_size: int
    global_batch_size: int
    optimizer: str
    precision: str
    memory_limit_bytes: int
    mesh: Mesh
    microbatch_size: int
    num_microbatches: int
    schedule: Schedule
    virtual_stages: int
    stages: tuple[StagePlan, ...]
    layers: tuple[LayerPlan, ...]
    prediction: Prediction
    solver: SolverReport
    baselines: tuple[Baseline, ...]
    cluster: Provenance
    pins: dict[str, Any]
    parameters: tuple[tuple[str, tuple[int, ...], str], ...]
    program: dict[str, Any]
    notes: tuple[str, ...] = ()
    workload: str = ""
    runners_up: tuple[RunnerUp, ...] = ()
    offload: Offload = "none"
    exchange: Exchange = "collective"
    kinds: tuple[Kind, ...] = ()

    @property
    def shares(self) -> tuple[int, ...]:
        """Samples per micro-batch of each dp rank, where devices of several kinds differ in it."""
        each = [(k.microbatch_size, k.devices // self.mesh.tp) for k in self.kinds]
        found = tuple(size for size, replicas in each for _ in range(replicas))
        return found if len(set(found)) > 1 else ()

    @property
    def plan_id(self) -> str:
        """Twelve hex digits that change whenever anything in the plan does."""
        return plan_file.digest(self)[:12]

    def stage_kind(self, stage: int) -> Kind | None:
        """The devices that a stage is on, None where all are of one kind.

        Replicas on several have the figures of the kind that takes longest.
        """
        holders = [kind for kind in self.kinds if stage in kind.stages]
        return max(holders, key=lambda kind: kind.step_seconds, default=None)

    def limit_bytes(self, stage: int) -> int:
        """Bytes that a rank of a stage may use."""
        kind = self.stage_kind(stage)
        return kind.memory_limit_bytes if kind else self.memory_limit_bytes

    def rank_memory(self, rank: int) -> Memory:
        """Peak bytes of the ranks at position ``rank`` along the pipeline, by kind.

        Its stages count each at its own worst moment.
        """
        return sum_memory(stage.prediction.memory for stage in self.stages[rank :: self.mesh.pp])

    @property
    def live_bytes(self) -> int:
        """Live tensors on the rank that holds most of them, without the devices' reserve."""
        return max(self.rank_memory(rank).live for rank in range(self.mesh.pp))

    def host_bytes(self, rank: int) -> int:
        """Bytes of host memory that a rank at position ``rank`` along the pipeline needs."""
        return sum(stage.prediction.host_bytes for stage in self.stages[rank :: self.mesh.pp])

    def to_json(self) -> str:
        """The text that ``save`` writes; equal plans give equal text."""
        return plan_file.dumps(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, atomically: a reader sees the old file or the new one.

        Raises:
            PlanFormatError: the path cannot be written, or a value is not plain JSON data.
        """
        plan_file.write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what ``save`` wrote; the result equals the plan that was saved.

        Raises:
            PlanFormatError: the file is missing, truncated, of another schema version,
                of wrong types, or was edited after it was written.
        """
        return plan_file.loads(cls, plan_file.read_text(path), str(path))
