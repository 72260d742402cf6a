"""A sharded layer priced for any micro-batch: seconds, bytes and collectives, by arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self, TypedDict, TypeVar

from autopar.cluster import Cluster
from autopar.cost import activations
from autopar.cost.activations import NOT_HOSTED, Hosted
from autopar.cost.moves import inner_seconds, move_seconds
from autopar.cost.ops import OpCost, op_cost, use_of
from autopar.cost.working_set import working_set
from autopar.graph import DTYPE_BYTES, Graph
from autopar.strategies.choices import uniform
from autopar.strategies.sharding import Pattern, Sharding, local_elements, local_shape
from autopar.strategies.states import Move, R, V
from autopar.strategies.statistics import is_synchronised
from autopar.strategies.strategy import Strategy


@dataclass(frozen=True)
class Recomputed:
    """A layer that is computed again in backward, per micro-batch.

    ``seconds`` of compute and ``tp_seconds`` of communication are repeated, ``held_bytes`` stay
    from forward to backward, ``transient_bytes`` come back for the backward of this layer.
    """

    seconds: float
    tp_seconds: float
    held_bytes: int
    transient_bytes: int


class Held(TypedDict):
    """Bytes of a layer's activations: see ``LayerCost``."""

    saved_bytes: int
    input_bytes: int
    output_bytes: int
    transient_bytes: int
    summed_bytes: int
    step_bytes: int
    step_summed_bytes: int
    again_bytes: int


class Norm(NamedTuple):
    """A normalisation on one rank: channels, and bytes of its result for a micro-batch."""

    channels: int
    bytes: int


# All that makes one sharding of a layer dearer than another.
FIGURES = (
    "forward_seconds", "backward_seconds", "tp_forward_seconds", "tp_backward_seconds",
    "tp_again_seconds", "parameter_elements", "parameter_tensors", "partial_elements",
    "saved_bytes", "transient_bytes", "summed_bytes", "kept_bytes", "repeated_seconds",
    "input_seconds", "weight_seconds", "waiting_bytes", "norm_elements", "trained_modules",
    "selective_bytes", "step_bytes", "step_summed_bytes",
)  # fmt: skip
# What takes longer where several groups of ranks share a network.
CONTENDED = frozenset({"tp_forward_seconds", "tp_backward_seconds", "tp_again_seconds"})


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Seconds of one layer on one rank for one micro-batch, without data parallelism.

    Those of forward and backward leave out tensor-parallel communication, which stands in
    ``tp_forward_seconds`` and ``tp_backward_seconds``. ``input_seconds`` and ``weight_seconds`` are
    backward in two parts, see ``OpCost``. ``trained_modules`` counts the modules that have
    parameters of their own with a gradient.
    """

    forward_seconds: float
    backward_seconds: float
    tp_forward_seconds: float
    tp_backward_seconds: float
    input_seconds: float
    weight_seconds: float
    trained_modules: int

    def contended(self, slow: float) -> Self:
        """The same where tensor-parallel communication is slower by this factor."""
        if slow == 1.0:
            return self
        names = (f.name for f in fields(self) if f.name in CONTENDED)
        return replace(self, **{name: slow * getattr(self, name) for name in names})


Times = TypeVar("Times", bound=LayerTimes)


@dataclass(frozen=True, kw_only=True)
class LayerCost(LayerTimes):
    """One layer on one rank, for one micro-batch.

    ``parameter_elements`` is what one rank holds after the tp split; ``partial_elements`` counts
    those whose gradient must be all-reduced over tp once per step.
    Between the two parts of backward ``waiting_bytes`` are held besides what is saved.
    ``kept_seconds`` and ``kept_bytes`` are the forward of the ops that selective recomputation
    does not repeat and their results.
    ``norms`` are the normalisations whose statistics are taken over the samples of all dp ranks.
    At its fullest moment (``working_set.py``) the layer holds ``transient_bytes`` more than it
    saves, ``summed_bytes`` where backward adds gradients of parameters to those of earlier
    micro-batches, and ``again_bytes`` more than that while selective recomputation runs.
    ``step_bytes`` and ``step_summed_bytes`` are the gradients around one operation, and with those
    of parameters.
    ``saved_tensors`` counts what is saved; ``handed_bytes`` of it are results for further layers.
    ``hosted`` says what of them waits in host memory, where they do.
    ``tied_elements`` are those of parameters that an earlier part on the same rank holds: their
    gradients wait until that part has made its own, see ``data_parallel.py``.
    ``frozen_elements`` and ``frozen_tensors`` are those of parameters that need no gradient;
    ``learns`` says whether anything in the layer has one.
    """

    flops: int
    parameter_elements: int
    parameter_tensors: int
    partial_elements: int
    saved_bytes: int
    input_bytes: int
    output_bytes: int
    transient_bytes: int
    summed_bytes: int
    tp_forward: Counter[str]
    tp_backward: Counter[str]
    tp_again: Counter[str]
    tp_again_seconds: float
    waiting_bytes: int = 0
    step_bytes: int = 0
    step_summed_bytes: int = 0
    again_bytes: int = 0
    kept_seconds: float = 0.0
    kept_bytes: int = 0
    norms: tuple[Norm, ...] = ()
    saved_tensors: int = 0
    handed_bytes: int = 0
    hosted: Hosted = NOT_HOSTED
    tied_elements: int = 0
    frozen_elements: int = 0
    frozen_tensors: int = 0
    learns: bool = True

    @property
    def trained_elements(self) -> int:
        """What one rank holds of the parameters that have a gradient."""
        return self.parameter_elements - self.frozen_elements

    @property
    def norm_elements(self) -> int:
        """Channels on one rank of all normalisations over the samples."""
        return sum(norm.channels for norm in self.norms)

    @property
    def repeated_seconds(self) -> float:
        """Forward of what selective recomputation repeats."""
        return self.forward_seconds - self.kept_seconds

    def in_two_parts(self) -> LayerCost:
        """The cost where all that is saved stays until the gradients of parameters are made."""
        return replace(self, transient_bytes=self.step_bytes, summed_bytes=self.step_summed_bytes)

    @property
    def selective_bytes(self) -> int:
        """What comes back for backward where some results were kept; below 0 if those go."""
        return self.saved_bytes + self.again_bytes - self.kept_bytes

    def recomputed(self, mode: str) -> Recomputed:
        """What the layer costs if it is computed again in backward: "none", "selective", "full"."""
        if mode == "none":
            return Recomputed(0.0, 0.0, self.saved_bytes, 0)
        if mode == "full":
            return Recomputed(
                self.forward_seconds, self.tp_again_seconds, self.input_bytes, self.saved_bytes
            )
        return Recomputed(
            self.repeated_seconds,
            self.tp_again_seconds,
            self.input_bytes + self.kept_bytes,
            self.selective_bytes,
        )


# Prices of operations by their index, strategy, whether one call adds a bias along, tp degree and
# micro-batch size.
OpCosts = dict[tuple[int, Strategy, bool, int, int], OpCost]


class _Priced(NamedTuple):
    """A layer's operations, its moves with their seconds, and collectives inside operations."""

    compute: list[OpCost]
    comm: list[tuple[Move, tuple[float, float]]]
    inner_seconds: float


def _priced(
    graph: Graph, pattern: Pattern, sharding: Sharding, cluster: Cluster, batch: int,
    known: OpCosts | None,
) -> _Priced:  # fmt: skip
    known = {} if known is None else known
    compute = [_op(graph, sharding, cluster, i, batch, known) for i in pattern.ops]
    comm = _moved(graph, sharding, cluster, batch)
    return _Priced(compute, comm, _inner_seconds(graph, sharding, cluster, batch))


def layer_times(
    graph: Graph, pattern: Pattern, sharding: Sharding, cluster: Cluster, batch: int,
    known: OpCosts | None = None,
) -> LayerTimes:  # fmt: skip
    """The seconds of ``layer_cost`` alone, in a third of the time: most bounds need no more."""
    own = _priced(graph, pattern, sharding, cluster, batch, known)
    return _times(graph, pattern, sharding, cluster, own)


def _times(
    graph: Graph, pattern: Pattern, sharding: Sharding, cluster: Cluster, own: _Priced
) -> LayerTimes:
    compute, comm, inner = own
    tp_forward, tp_backward = sum(s[0] for _, s in comm) + inner, sum(s[1] for _, s in comm)
    inner_count = sum(len(s.collectives) for s in sharding.strategies.values())
    calls = sum(s[0] > 0 for _, s in comm) + inner_count, sum(s[1] > 0 for _, s in comm)
    issued, issued_backward = _issued(graph, pattern, compute)
    dispatch = cluster.dispatch_seconds(sharding.tp)
    device_forward = sum(c.forward_seconds for c in compute)
    device_forward += issued * cluster.overhead_seconds("op_forward")
    computed_backward = sum(c.backward_seconds for c in compute)
    device_backward = computed_backward + issued_backward * cluster.overhead_seconds("op_backward")
    device_backward += _parameter_seconds(cluster, sharding)
    backward = max(device_backward, (issued_backward + calls[1]) * dispatch - tp_backward)
    return LayerTimes(
        forward_seconds=max(device_forward, (issued + calls[0]) * dispatch - tp_forward),
        backward_seconds=backward,
        tp_forward_seconds=tp_forward,
        tp_backward_seconds=tp_backward,
        input_seconds=sum(c.input_seconds for c in compute) + backward - computed_backward,
        weight_seconds=sum(c.weight_seconds for c in compute),
        trained_modules=_trained_modules(graph, sharding),
    )


def layer_cost(
    graph: Graph, pattern: Pattern, sharding: Sharding, cluster: Cluster, batch: int,
    away: bool = False, known: OpCosts | None = None,
) -> LayerCost:  # fmt: skip
    """Prices ``pattern`` under ``sharding`` for micro-batches of ``batch`` samples.

    Where activations are ``away``, in host memory, it counts what of them is when here.
    Most operations run alike in many shardings: ``known`` keeps what they cost on ``cluster``.
    """
    own = _priced(graph, pattern, sharding, cluster, batch, known)
    compute, comm, inner = own
    again = _moves_again(graph, pattern, sharding)
    saved = activations.saved_tensors(graph, pattern, sharding, batch)
    kept, kept_extra = activations.kept_tensors(graph, pattern, sharding, batch)
    found = LayerCost(
        **vars(_times(graph, pattern, sharding, cluster, own)),
        flops=sum(c.flops for c in compute),
        parameter_elements=_parameter_elements(graph, sharding, sharding.parameters),
        parameter_tensors=len(sharding.parameters),
        partial_elements=_partial_elements(graph, sharding),
        **_held(graph, pattern, sharding, batch, saved),
        tp_forward=_count(m.forward for m, _ in comm) + _inner_counts(sharding),
        tp_backward=_count(m.backward for m, _ in comm),
        tp_again=_count(sharding.moves[k].move.forward for k in again) + _inner_counts(sharding),
        tp_again_seconds=sum(comm[k][1][0] for k in again) + inner,
        waiting_bytes=activations.waiting_bytes(graph, pattern, sharding, batch),
        kept_seconds=_kept_seconds(graph, pattern, compute),
        kept_bytes=sum(kept.values()) + kept_extra,
        norms=_norms(graph, pattern, sharding, batch),
        saved_tensors=len(saved) + sum(activations.has_extra(graph, i) for i in pattern.ops),
        handed_bytes=sum(activations.handed_bytes(graph, pattern, sharding, batch).values()),
        hosted=activations.hosted(graph, pattern, sharding, batch, saved) if away else NOT_HOSTED,
    )
    return _learning(found, graph, pattern, sharding)


def _held(
    graph: Graph, pattern: Pattern, sharding: Sharding, batch: int, saved: activations.Tensors
) -> Held:
    """What is saved, what crosses the layer's ends, and its fullest moments."""
    received, sent = activations.crossing_bytes(graph, pattern, sharding, batch)
    most = working_set(graph, pattern, sharding, batch, saved)
    total = sum(saved.values()) + activations.extra_bytes(graph, pattern, sharding, batch)
    step, summed = activations.transient_bytes(graph, pattern, sharding, batch)
    return {
        "saved_bytes": total,
        "input_bytes": received,
        "output_bytes": sent,
        "transient_bytes": max(most.backward, most.forward) - total,
        "summed_bytes": max(most.summed, most.forward) - total,
        "step_bytes": step,
        "step_summed_bytes": summed,
        "again_bytes": max(0, most.repeated - max(most.backward, most.forward)),
    }


def _moved(
    graph: Graph, sharding: Sharding, cluster: Cluster, batch: int
) -> list[tuple[Move, tuple[float, float]]]:
    """Each move with its seconds in forward and in backward."""
    return [
        (m.move, move_seconds(cluster, m.move, graph.values[m.value], sharding.tp, batch))
        for m in sharding.moves
    ]


def _inner_seconds(graph: Graph, sharding: Sharding, cluster: Cluster, batch: int) -> float:
    """Collectives that the layer's ops issue in their forward."""
    strategies = sharding.strategies.values()
    return sum(inner_seconds(cluster, s, graph.values, sharding.tp, batch) for s in strategies)


def _kept_seconds(graph: Graph, pattern: Pattern, compute: list[OpCost]) -> float:
    """Forward of the ops that selective recomputation does not repeat."""
    pairs = zip(pattern.ops, compute, strict=True)
    return sum(cost.forward_seconds for i, cost in pairs if activations.is_kept(graph.ops[i]))


def _op(
    graph: Graph, sharding: Sharding, cluster: Cluster, index: int, batch: int, known: OpCosts
) -> OpCost:
    op, strategy = graph.ops[index], sharding.strategies[index]
    joined = _joined(graph, sharding, index)
    key = index, strategy, joined, sharding.tp, batch
    if key not in known:
        states = [*strategy.inputs, *zip(op.outputs, strategy.outputs, strict=True)]
        shapes = {n: local_shape(graph.values[n], s, sharding.tp, batch) for n, s in states}
        known[key] = op_cost(cluster, op, graph.values, shapes, use_of(graph, index, joined))
    return known[key]


def _joined(graph: Graph, sharding: Sharding, index: int) -> bool:
    """Whether a bias is added to a product as it was made, so that one call does both."""
    product = graph.biased.get(index)
    if product is None or product not in sharding.strategies:
        return False
    made = sharding.strategies[product].outputs[0]
    return dict(sharding.strategies[index].inputs)[graph.ops[product].outputs[0]] == made


def _norms(graph: Graph, pattern: Pattern, sharding: Sharding, batch: int) -> tuple[Norm, ...]:
    """Each op whose statistics are synchronised, as one rank has it."""
    found = []
    for index in (i for i in pattern.ops if is_synchronised(graph.ops[i])):
        out = graph.values[graph.ops[index].outputs[0]]
        shape = local_shape(out, sharding.strategies[index].outputs[0], sharding.tp, batch)
        found.append(Norm(shape[1], math.prod(shape) * DTYPE_BYTES[out.dtype]))
    return tuple(found)


def _issued(graph: Graph, pattern: Pattern, compute: list[OpCost]) -> tuple[int, int]:
    """How many operations the host issues in a forward and in a backward pass of the layer.

    Collectives not counted. Backward has one operation per gradient.
    """
    forward = backward = 0
    for index, cost in zip(pattern.ops, compute, strict=True):
        forward += cost.forward_seconds > 0
        if cost.backward_seconds > 0:
            values = (graph.values[n] for n in graph.ops[index].inputs())
            backward += max(1, sum(value.requires_grad for value in values))
    return forward, backward


def _parameter_seconds(cluster: Cluster, sharding: Sharding) -> float:
    """What reading DTensor parameters costs a micro-batch, most of it in their gradients."""
    if sharding.unsplit:
        return 0.0
    return len(sharding.parameters) * cluster.overhead_seconds("tp_parameter")


def _count(kinds: Iterable[str]) -> Counter[str]:
    return Counter(kind for kind in kinds if kind)


def _inner_counts(sharding: Sharding) -> Counter[str]:
    return Counter(kind for s in sharding.strategies.values() for kind, _ in s.collectives)


def _parameter_elements(graph: Graph, sharding: Sharding, names: Iterable[str]) -> int:
    states = sharding.parameters
    return sum(local_elements(graph.values[n], states[n], sharding.tp, 1) for n in names)


def _learning(found: LayerCost, graph: Graph, pattern: Pattern, sharding: Sharding) -> LayerCost:
    """The cost with what needs no gradient."""
    frozen = [n for n in sharding.parameters if not graph.values[n].requires_grad]
    made = (name for i in pattern.ops for name in graph.ops[i].outputs)
    return replace(
        found,
        frozen_elements=_parameter_elements(graph, sharding, frozen),
        frozen_tensors=len(frozen),
        learns=any(graph.values[name].requires_grad for name in made),
    )


def _trained_modules(graph: Graph, sharding: Sharding) -> int:
    values = (graph.values[n] for n in sharding.parameters)
    return len({value.source.rpartition(".")[0] for value in values if value.requires_grad})


def _partial_elements(graph: Graph, sharding: Sharding) -> int:
    return sum(graph.values[n].elements(1) for n, s in sharding.parameters.items() if s == V)


def _moves_again(graph: Graph, pattern: Pattern, sharding: Sharding) -> list[int]:
    """Moves whose result an op reads before the last one that keeps something for backward."""
    saving = [i for i in pattern.ops if graph.saved[i].values or activations.has_extra(graph, i)]
    early = [i for i in pattern.ops if saving and i <= saving[-1]]
    read = {pair for i in early for pair in sharding.strategies[i].inputs}
    return [k for k, m in enumerate(sharding.moves) if (m.value, m.target) in read]


def replicated(graph: Graph, pattern: Pattern) -> Sharding:
    """The sharding of a layer at tp = 1: everything whole, nothing moved."""
    chosen = {i: uniform(graph.ops[i], graph.values, R) for i in pattern.ops}
    used = dict.fromkeys(n for i in pattern.ops for n in graph.ops[i].inputs())
    parameters = {n: R for n in used if graph.values[n].kind == "parameter"}
    boundary = pattern.boundary(R)
    return Sharding(1, "replicate", chosen, (), parameters, unsplit=True, boundary=boundary)
