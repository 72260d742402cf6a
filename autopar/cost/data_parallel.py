"""What ``fully_shard`` costs a layer: gathers, reductions, the bytes it holds.

One primitive in five modes, by ``zero`` and the dp degree. With ``s`` the degree of sharding
(1 for zero 0, ``dp_shard`` otherwise), ``n`` elements per rank after the tp split and ``c`` bytes
per element of compute:

- always held: ``4 n / s`` of master parameters, ``4 n / s`` of gradients, optimizer state;
- gathered parameters ``c n``: for the whole step with zero 0, 1 and 2, and with zero 3 where
  there are pipeline stages, which do not free what a backward has gathered; otherwise for one
  layer.
  Flat buffers come on top: under zero 1 and 2 that of the layer which was gathered last, which
  ``fully_shard`` keeps until something else is gathered, under zero 3 that of the next layer too;
- unreduced gradients: for a moment if they are reduced in every micro-batch. If only in the last
  one, as zero 0, zero 1 and every pipeline does, ``4 n`` of them stay, which the reduced ones
  replace: there, and with one micro-batch, zero 1 is zero 2;
- a reduction's flat buffer ``4 n``, and the gradients that are copied into it or out of it.
  Pipelines reduce when all their passes are over;
- under several micro-batches the gradient of a parameter that a later part reads too, as a tied
  embedding's: autograd keeps it from the head's backward to the embedding's, beside the sum of
  earlier micro-batches';
- a copy of the gradients that are partial sums on tp, which travel as one when all passes are
  over: it takes the place of the activations that the layer held until then.

With ``dp_shard`` below dp (HSDP) gathers and reduce-scatters stay within ``dp_shard`` neighbours.
One all-reduce per step adds the shards of the ``dp / dp_shard`` replicas: where gradients are
reduced in every micro-batch, the sum of their shards waits for the last one in place of the
reduced gradients.

Optimizer state may be in host memory instead, see ``offload.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.compute import elementwise_seconds, optimizer_seconds
from autopar.cost.exchange import exchange_bytes, exchange_counts, exchange_seconds
from autopar.cost.layer import LayerCost
from autopar.cost.moves import tp_group
from autopar.cost.offload import offloads, state_seconds
from autopar.cost.schedule import ROUNDS, gather_events, rank_actions

MASTER_BYTES = 4
OPTIMIZER_BYTES = {"sgd": 0, "adamw": 8}


@dataclass(frozen=True)
class Traffic:
    """What parameters and gradients weigh on the wire, and when they travel.

    The default is what emitted programs do; published runs of other systems differ.

    Attributes:
        gather_bytes: of one gathered parameter; None: as the kernels read it.
        reduce_bytes: of one reduced gradient.
        every_microbatch: whether sharded gradients are reduced in each micro-batch (pp = 1).
        overlapped: whether communication runs beside the layer's computing.
        bucket_bytes: what travels in one collective, where that is not a layer's parameters.
        all_reduced: whether gradients are all-reduced although the optimizer needs a shard of them.
        unpacked: whether what each rank sent is copied into every tensor on its own.
        shards: ranks among which the optimizer's state is divided; None: all of dp. More replicas
            of it save gathers across nodes.
        accumulate_bytes: what adding up one gradient moves in the first and in each later
            micro-batch; None: as emitted programs do, see ``accumulation_seconds``.
        update_bytes: what the optimizer moves per parameter; None: as the model's curve has it.
        whole_bytes: what clipping and zeroing move per gradient that the rank keeps whole; None:
            clipping alone, of the shard that the optimizer needs.
    """

    gather_bytes: int | None = None
    reduce_bytes: int = MASTER_BYTES
    every_microbatch: bool = True
    overlapped: bool = True
    bucket_bytes: int | None = None
    all_reduced: bool = False
    unpacked: bool = False
    shards: int | None = None
    accumulate_bytes: tuple[int, int] | None = None
    update_bytes: int | None = None
    whole_bytes: int | None = None


@dataclass(frozen=True)
class Setting:
    """What the model-wide choices are, as far as data parallelism is concerned.

    ``replicas`` hold the same part of what layers with zero 1, 2 or 3 divide.
    """

    pp: int
    dp: int
    tp: int
    num_microbatches: int
    schedule: str
    precision: str
    optimizer: str | int
    traffic: Traffic = field(default_factory=Traffic)
    virtual_stages: int = 1
    offload: str = "none"
    exchange: str = "collective"
    replicas: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.tp

    @property
    def dp_shard(self) -> int:
        """Ranks among which the state of a layer with zero 1, 2 or 3 is divided."""
        return self.dp // self.replicas

    @property
    def shards(self) -> int:
        """Ranks among which the optimizer's state is divided."""
        return min(self.dp_shard, self.traffic.shards or self.dp_shard)

    @property
    def wrapped(self) -> bool:
        """Whether ``fully_shard`` is applied: it also keeps the master copy for bf16."""
        return (self.dp > 1 and not self.written_out) or self.precision == "bf16"

    @property
    def written_out(self) -> bool:
        """Whether gradients are exchanged by the program itself, see ``exchange.py``."""
        return self.dp > 1 and self.exchange != "collective"

    @property
    def compute_bytes(self) -> int:
        """Bytes of a parameter as the kernels read it."""
        return 2 if self.precision == "bf16" else 4

    @property
    def gather_bytes(self) -> int:
        """Bytes of a parameter while it is gathered."""
        own = self.traffic.gather_bytes
        return self.compute_bytes if own is None else own

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of optimizer state per parameter."""
        known = OPTIMIZER_BYTES
        return self.optimizer if isinstance(self.optimizer, int) else known[self.optimizer]


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one layer that stay for the whole step, by kind, and the peaks on top of them.

    ``transient`` is there while the layer runs, ``behind`` when all passes of the step are over.
    ``ahead`` is that part of ``transient`` which the next layer has, gathered meanwhile.
    ``host`` bytes of optimizer state are in host memory; those of one layer come to the device at
    a time.
    """

    parameters: int
    gradients: int
    optimizer: int
    transient: int
    behind: int = 0
    host: int = 0
    ahead: int = 0

    @property
    def total(self) -> int:
        """Bytes that stay."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class DpCost:
    """Exposed seconds per micro-batch and per step, and collectives per step.

    ``accumulation_seconds`` are those of adding up gradients, computing in each backward.
    """

    forward_seconds: float
    backward_seconds: float
    sync_seconds: float
    optimizer_seconds: float
    accumulation_seconds: float = 0.0
    collectives: Counter[str] = field(default_factory=Counter)


def dp_group(cluster: Cluster, setting: Setting) -> Group:
    """Ranks of a dp group are tp apart; those of one node come before the next node's."""
    return _spread(cluster, setting.dp, setting.tp)


def shard_group(cluster: Cluster, setting: Setting) -> Group:
    """The neighbours on the dp axis that divide a layer's state.

    Where such groups do not fill nodes evenly, the price is that of the one that is split most.
    """
    group = _spread(cluster, setting.shards, setting.tp)
    if setting.replicas == 1:
        return group
    room = max(1, cluster.devices_per_node // setting.tp)
    per_node = math.gcd(group.size, room)
    crossing = min(setting.tp, cluster.devices_per_node) if per_node < group.size else 1
    return Group(group.size, per_node, crossing)


def replica_group(cluster: Cluster, setting: Setting) -> Group:
    """Ranks that hold the same shard: all of a node leave it at once, each to its own replicas."""
    return _spread(cluster, setting.replicas, setting.dp_shard * setting.tp)


def _spread(cluster: Cluster, size: int, stride: int) -> Group:
    """Ranks that are ``stride`` apart, as many as a node holds on each."""
    per_node = max(1, min(size, cluster.devices_per_node // stride))
    crossing = min(stride, cluster.devices_per_node) if per_node < size else 1
    return Group(size, per_node, crossing)


def gathers(setting: Setting, zero: int, stage: int, *, learns: bool = True) -> int:
    """How often one layer's parameters are gathered per step.

    A layer that does not learn, because all before it is frozen, has no backward.

    zero 1 and 2 gather once and keep them. zero 3 frees them behind the forward of every
    micro-batch and gathers them again for backward; torch's pipeline stages do not free
    them behind a backward, so a forward that follows a backward finds them gathered.
    With more than three stages per rank torch's schedule itself frees and gathers them.
    """
    if zero == 0 or setting.dp == 1:
        return 0
    if setting.virtual_stages > 3:
        few = min(setting.num_microbatches, ROUNDS * setting.pp)
        rounds = (setting.num_microbatches - few) // setting.pp
        counts = [
            _scheduled_gathers(
                setting.schedule, setting.pp, number, setting.virtual_stages, zero, stage
            )
            for number in ([few] if not rounds else [few, few - setting.pp])
        ]
        return counts[0] + rounds * (counts[0] - counts[-1])
    if zero < 3:
        return 1
    return count_gathers(setting, stage) if learns else setting.num_microbatches


def count_gathers(setting: Setting, stage: int) -> int:
    """Gathers of zero 3 over the stage's actions.

    The first action gathers, and so does each that follows a forward; something follows every
    forward, its backward at the latest. So the order of the schedule makes no difference.
    """
    microbatches = setting.num_microbatches
    return 2 * microbatches if setting.pp == 1 else microbatches + 1


@lru_cache(maxsize=4096)
def _scheduled_gathers(schedule: str, pp: int, m: int, v: int, zero: int, stage: int) -> int:
    """Gathers over the actions of the stage's rank, in the order in which torch runs them."""
    rank = rank_actions(schedule, pp, stage % pp, m, v)
    gathered, count = False, 0
    for action, (fetched, freed) in zip(rank, gather_events(rank), strict=True):
        gathered = gathered and stage not in freed
        if stage in fetched or action.stage == stage:
            count += not gathered
            gathered = True
        if action.stage == stage and action.kind == "F" and zero == 3:
            gathered = False
    return count


def reductions(setting: Setting, zero: int) -> int:
    """How often one layer's gradients are reduced per step."""
    every = zero > 1 and setting.pp == 1 and setting.traffic.every_microbatch
    return setting.num_microbatches if every else 1


def state_bytes(
    cost: LayerCost, setting: Setting, zero: int, activation_bytes: int = 0
) -> StateBytes:
    """Bytes of one layer's parameters, gradients and optimizer state on one rank.

    ``activation_bytes`` are what the layer holds of each micro-batch from forward to backward.
    """
    found = _device_bytes(cost, setting, zero, activation_bytes)
    if not offloads(setting.offload, "optimizer"):
        return found
    behind = max(found.behind, found.optimizer)
    return replace(found, optimizer=0, behind=behind, host=found.optimizer)


def backward_bytes(cost: LayerCost, setting: Setting) -> int:
    """Working set of one layer's backward, see ``StateBytes`` for what ``fully_shard`` adds.

    A parameter's gradient is new beside the sum of earlier micro-batches' until autograd has added
    it. Where ``fully_shard`` reduces in backward, its buffer counts and is larger. In bf16 the
    gradients of a whole layer wait until they are added to a sum in float32.
    """
    as_emitted = setting.traffic.accumulate_bytes is None
    if setting.precision == "bf16" and setting.pp > 1 and as_emitted:
        return cost.transient_bytes + setting.compute_bytes * cost.trained_elements
    alone = setting.num_microbatches == 1 or (setting.wrapped and setting.pp == 1)
    return max(
        0, (cost.transient_bytes if alone else cost.summed_bytes) - early_bytes(cost, setting)
    )


def early_bytes(cost: LayerCost, setting: Setting) -> int:
    """Gradients that wait for those of an earlier part: in no backward behind this layer's own.

    So they count as what stays, and not again in the backward that makes them.
    """
    return setting.compute_bytes * cost.tied_elements if setting.num_microbatches > 1 else 0


def _device_bytes(
    cost: LayerCost, setting: Setting, zero: int, activation_bytes: int
) -> StateBytes:
    """The same where nothing is in host memory."""
    n, trained, compute = cost.parameter_elements, cost.trained_elements, setting.compute_bytes
    shards = setting.dp_shard if zero else 1
    held = -(-n // shards)
    copied = MASTER_BYTES * -(-cost.partial_elements // shards)
    flat = max(0, copied - activation_bytes)
    own = -(-trained // shards)
    early = early_bytes(cost, setting)
    if not setting.wrapped:
        behind = exchange_bytes(setting.exchange, setting.dp, trained) if setting.written_out else 0
        gradients = MASTER_BYTES * trained + flat + early
        return StateBytes(4 * n, gradients, setting.optimizer_bytes * trained, 0, behind)
    pipeline = setting.pp > 1
    # torch's pipeline stages do not free what a backward has gathered.
    kept = compute * n if zero < 3 or pipeline else 0
    deferred = pipeline or (zero < 2 and setting.num_microbatches > 1)
    buffers = {0: 0, 1: 1, 2: 1, 3: 2 if pipeline else 3}[zero]
    gather = buffers * compute * n
    reduce = MASTER_BYTES * trained + (MASTER_BYTES * own if deferred else compute * trained)
    return StateBytes(
        MASTER_BYTES * held + kept,
        MASTER_BYTES * (trained if deferred else own) + flat + early,
        setting.optimizer_bytes * own,
        gather + (0 if pipeline else reduce),
        reduce if pipeline else 0,
        ahead=compute * n if zero == 3 else 0,
    )


def dp_cost(
    cluster: Cluster, cost: LayerCost, setting: Setting, zero: int, stage: int,
    again_seconds: float = 0.0,
) -> DpCost:  # fmt: skip
    """Prices the gathers, reductions and the optimizer step of one layer.

    ``again_seconds`` of recomputation in backward hide communication as backward itself does.
    """
    trained, m = cost.trained_elements, setting.num_microbatches
    held = -(-trained // (setting.shards if zero else 1))
    step = _update_seconds(cluster, cost, setting, held)
    tp_sync = _tp_sync_seconds(cluster, cost, setting, zero)
    hooks = cluster.overhead_seconds("shard_forward") if setting.wrapped else 0.0
    added = accumulation_seconds(cluster, cost, setting, zero)
    if setting.dp == 1:
        return DpCost(0.0, hooks, tp_sync, step, added)
    group, holders = dp_group(cluster, setting), shard_group(cluster, setting)
    if setting.written_out and not trained:
        return DpCost(0.0, 0.0, tp_sync, step, added)
    if setting.written_out:
        sync = exchange_seconds(cluster, setting.exchange, group, trained, setting.world_size)
        counts = exchange_counts(setting.exchange, setting.dp)
        return DpCost(0.0, 0.0, sync, step, added, counts)
    kind = "reduce_scatter" if zero and not setting.traffic.all_reduced else "all_reduce"
    gathered_bytes = setting.gather_bytes * cost.parameter_elements
    gather = _moved(cluster, setting, "all_gather", gathered_bytes, holders)
    gather += cluster.overhead_seconds("shard_gather", gathered_bytes)
    if setting.traffic.unpacked:
        gather += setting.shards * cost.parameter_tensors * cluster.dispatch_seconds()
    reduced_bytes = setting.traffic.reduce_bytes * trained
    within = holders if zero and setting.replicas > 1 else group
    reduce = _moved(cluster, setting, kind, reduced_bytes, within)
    reduce += cluster.overhead_seconds("shard_reduce", reduced_bytes) if trained else 0.0
    across = replica_seconds(cluster, setting, trained) if zero else 0.0
    times = gathers(setting, zero, stage, learns=cost.learns)
    count = reductions(setting, zero) if trained else 0
    counts = Counter({"all_gather": times, kind: count})
    counts.update(all_reduces(setting, zero, count))
    behind = cost.backward_seconds + again_seconds

    def exposed(communication: float, compute: float) -> float:
        return _exposed(cluster, setting, communication, compute)

    def last(beside: float) -> float:
        """What is reduced in the last micro-batch alone, with what all communicate ``beside``."""
        if count == 1:
            return exposed(reduce + across, behind)
        return exposed(beside + across, behind) - exposed(beside, behind)

    if zero == 3:
        forward = exposed(gather, cost.forward_seconds)
        backward = exposed(gather + (reduce if count > 1 else 0.0), behind)
        backward *= min(1.0, (times - m) / m if times > m else float(cost.learns))
        sync = tp_sync + last(gather + reduce)
        return DpCost(forward, backward + hooks, sync, step, added, counts)
    backward = exposed(reduce, behind) if count > 1 else 0.0
    first = times * exposed(gather, cost.forward_seconds) if zero else 0.0
    return DpCost(0.0, backward + hooks, last(reduce) + first + tp_sync, step, added, counts)


def all_reduces(setting: Setting, zero: int, reductions: int) -> Counter[str]:
    """Those of a layer's shards over the replicas, which wait for its last reduce-scatter."""
    return Counter(all_reduce=1) if zero and reductions and setting.replicas > 1 else Counter()


def replica_seconds(cluster: Cluster, setting: Setting, trained: int) -> float:
    """The all-reduce of the shards of ``trained`` gradients over the replicas, once per step."""
    if setting.replicas == 1 or not trained:
        return 0.0
    payload_bytes = setting.traffic.reduce_bytes * -(-trained // setting.dp_shard)
    return _moved(cluster, setting, "all_reduce", payload_bytes, replica_group(cluster, setting))


def _moved(
    cluster: Cluster, setting: Setting, kind: str, payload_bytes: int, group: Group
) -> float:
    """Seconds of a collective of all ranks at once, or of the share of a bucket that it is."""
    if not payload_bytes:
        return 0.0
    bucket = setting.traffic.bucket_bytes or payload_bytes
    slow = cluster.contention(group.size, setting.world_size)
    return slow * payload_bytes / bucket * collective_seconds(cluster, kind, bucket, group)


def accumulation_seconds(cluster: Cluster, cost: LayerCost, setting: Setting, zero: int) -> float:
    """Mean seconds per micro-batch in which a layer's gradients are added to earlier ones.

    autograd reads both and writes the sum, in float32. Where gradients in bf16 wait for the last
    micro-batch, ``fully_shard`` copies the first into float32 and adds the others to that. Where
    they are reduced in every micro-batch, each rank adds up its share alone.
    """
    m = setting.num_microbatches
    held = cost.trained_elements
    first, later = 0, 3 * MASTER_BYTES
    if setting.traffic.accumulate_bytes is not None:
        first, later = setting.traffic.accumulate_bytes
    elif setting.wrapped and reductions(setting, zero) > 1:
        held = -(-held // setting.dp_shard)
    elif setting.precision == "bf16" and (m > 1 or setting.pp > 1):
        first, later = 2 + MASTER_BYTES, 2 + 2 * MASTER_BYTES
    tensors = max(1, cost.parameter_tensors - cost.frozen_tensors)

    def added(bytes_each: int) -> float:
        return tensors * elementwise_seconds(cluster, bytes_each * held // tensors)

    return (added(first) + (m - 1) * added(later)) / m


def _update_seconds(cluster: Cluster, cost: LayerCost, setting: Setting, held: int) -> float:
    """The optimizer step of one rank on ``held`` elements, and its part of the clipping.

    Clipping reads gradients for their norm, then reads and writes them to scale them.
    Included is the way of state that is in host memory.
    """
    tensors = cost.parameter_tensors - cost.frozen_tensors
    whole = setting.traffic.whole_bytes
    clipped = 3 * MASTER_BYTES * held if whole is None else whole * cost.trained_elements
    kernels = elementwise_seconds(cluster, clipped)
    if setting.traffic.update_bytes is None:
        kernels += optimizer_seconds(cluster, held, setting.optimizer, tensors)
    else:
        kernels += elementwise_seconds(cluster, setting.traffic.update_bytes * held)
    each = cluster.overhead_seconds("clip_parameter")
    if setting.wrapped or setting.tp > 1:
        each += cluster.overhead_seconds("shard_parameter")
    if offloads(setting.offload, "optimizer"):
        kernels += state_seconds(cluster, setting.optimizer_bytes * held, held, tensors)
    return kernels + tensors * each


def _tp_sync_seconds(cluster: Cluster, cost: LayerCost, setting: Setting, zero: int) -> float:
    """All-reduce over tp of the gradients of replicated parameters that were used on shards.

    It comes behind the reduction over dp, on what this rank then holds.
    """
    held = -(-cost.partial_elements // (setting.dp_shard if zero else 1))
    group = tp_group(cluster, setting.tp)
    slow = cluster.contention(setting.tp, setting.world_size)
    return slow * collective_seconds(cluster, "all_reduce", held * MASTER_BYTES, group)


def _exposed(cluster: Cluster, setting: Setting, communication: float, compute: float) -> float:
    """Seconds that communication adds to the computing beside it.

    The shorter of the two hides behind the longer, but both take turns on some of the device:
    ``Cluster.overlap_slowdown`` is the share of the shorter that shows. On a CPU it is 1, as
    gloo's threads take turns with the compute threads.
    """
    if not setting.traffic.overlapped:
        return communication
    both = min(communication, compute)
    return communication - both + cluster.overlap_slowdown * both
