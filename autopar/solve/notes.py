"""What a plan says about its figures: what moves cost, what is not divided, what is a guess."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.cluster import Cluster
from autopar.cost.collectives import is_extrapolated
from autopar.cost.data_parallel import Setting, dp_group, replica_group, shard_group
from autopar.cost.moves import move_seconds, tp_group
from autopar.cost.ops import op_cost
from autopar.graph import Op
from autopar.heterogeneous import HeterogeneousCluster
from autopar.plan import Provenance
from autopar.solve.menus import Pricer
from autopar.solve.problem import Configuration
from autopar.strategies.choices import is_known
from autopar.strategies.sharding import Sharding
from autopar.trace.opaque import FUNCTION, OPAQUE, OpaqueCall
from autopar.trace.saved import RECURRENT

# A payload that every collective curve covers, to ask whether group sizes are covered.
REFERENCE_PAYLOAD = 2**20
SMALLEST_SPLIT = 2


def move_notes(pricer: Pricer, sharding: Sharding, config: Configuration) -> list[list[str]]:
    """[value, target state, "67 MB, 0.31 ms"] for every move that communicates in forward."""
    notes = []
    for moved in sharding.moves:
        value = pricer.graph.values[moved.value]
        seconds, _ = move_seconds(
            pricer.cluster, moved.move, value, sharding.tp, config.microbatch_size
        )
        if moved.move.forward:
            size = value.bytes(config.microbatch_size) / 1e6
            notes.append([moved.value, str(moved.target), f"{size:.3g} MB, {1e3 * seconds:.2g} ms"])
    return notes


def provenance(cluster: Cluster | HeterogeneousCluster) -> Provenance:
    """Where the prices come from; of two kinds, as far as it is known of both."""
    if isinstance(cluster, Cluster):
        return Provenance(
            cluster.name, cluster.sha256, cluster.calibrated, cluster.description,
            cluster.fit_error(), cluster.devices_per_node, cluster.step_error(),
        )  # fmt: skip
    errors = {
        f"{kind.name} {curve}": error
        for kind in cluster.kinds
        for curve, error in kind.fit_error().items()
    }
    return Provenance(
        cluster.name, cluster.sha256, all(kind.calibrated for kind in cluster.kinds),
        cluster.description, errors, min(kind.devices_per_node for kind in cluster.kinds),
    )  # fmt: skip


def extrapolated(kinds: Sequence[Cluster], config: Configuration) -> tuple[str, ...]:
    """Groups that are larger than, or span more nodes than, what the cost models' curves cover."""
    return tuple(note for kind in kinds for note in _beyond(kind, config))


def _beyond(cluster: Cluster, config: Configuration) -> tuple[str, ...]:
    degrees = config.pp, config.dp, config.tp, 1, config.schedule, "bf16", 0
    setting = Setting(*degrees, replicas=config.replicas)
    groups = {"tp": tp_group(cluster, config.tp), "dp": dp_group(cluster, setting)}
    if config.replicas > 1:
        parts = {"shard": shard_group, "replicate": replica_group}
        groups = groups | {axis: of(cluster, setting) for axis, of in parts.items()}
    names = [
        f"{axis} groups of {group.size} on {-(-group.size // group.per_node)} node(s)"
        for axis, group in groups.items()
        if is_extrapolated(cluster, "all_reduce", REFERENCE_PAYLOAD, group)
    ]
    if not names:
        return ()
    return (f"{cluster.name} has no measured collectives for {' and '.join(names)}: extrapolated",)


def undivided(pricer: Pricer, config: Configuration) -> tuple[str, ...]:
    """Ops that nobody knows how to divide: what they cost on every rank of the tp axis.

    The figure is what a division would save at best, in all layers, per micro-batch. A plan without
    tp says which they are: they may be why it has none.
    """
    if config.tp == 1:
        return _indivisible(pricer) if config.pp * config.dp > 1 else ()
    graph, classes, lost = pricer.graph, pricer.classes, dict[str, float]()
    for name, pattern in classes.patterns.items():
        times = max(1, classes.members.count(name))
        for op in (graph.ops[i] for i in pattern.ops):
            if not is_known(op, graph.values, config.tp):
                saved = (1 - 1 / config.tp) * _whole_seconds(pricer, op, config.microbatch_size)
                lost[_spoken(op)] = lost.get(_spoken(op), 0.0) + times * saved
    return tuple(
        f"no way to divide {target} was found: whole on every tp rank, which costs up to"
        f" {1e3 * seconds:.2g} ms per micro-batch"
        for target, seconds in sorted(lost.items())
    )


def _indivisible(pricer: Pricer) -> tuple[str, ...]:
    """What tensor parallelism would leave whole."""
    graph, patterns = pricer.graph, pricer.classes.patterns.values()
    ops = (graph.ops[i] for pattern in patterns for i in pattern.ops)
    found = {_spoken(op) for op in ops if not is_known(op, graph.values, SMALLEST_SPLIT)}
    return tuple(
        f"no way to divide {target} was found: tp would leave it whole on every rank"
        for target in sorted(found)
    )


def _spoken(op: Op) -> str:
    """How the notes name an op; one that stands for a module by the module."""
    if op.target != OPAQUE:
        return op.target
    path = OpaqueCall.of(op).path
    if path.startswith(FUNCTION):
        return f"the {path}, which has no shapes without data,"
    name = f"the module {path}" if path else "the model"
    return f"{name}, which cannot be traced,"


def unseen(pricer: Pricer) -> tuple[str, ...]:
    """Recurrent operations on GPUs, whose kernels have never been asked what they keep."""
    graph, patterns = pricer.graph, pricer.classes.patterns.values()
    names = {graph.ops[i].target for pattern in patterns for i in pattern.ops}
    found = sorted(name for name in names if name.split(".")[1] in RECURRENT)
    return () if pricer.cluster.device == "cpu" else tuple(
        f"what {name} keeps for backward is planned as that of torch's fused cells: cuDNN has a"
        " reserve of its own, of a size that is known on a GPU alone"
        for name in found
    )  # fmt: skip


def _whole_seconds(pricer: Pricer, op: Op, batch: int) -> float:
    values = pricer.graph.values
    names = dict.fromkeys((*op.inputs(), *op.outputs))
    shapes = {n: tuple(size.at(batch) for size in values[n].shape) for n in names}
    cost = op_cost(pricer.cluster, op, values, shapes)
    return cost.forward_seconds + cost.backward_seconds
