"""From the solver's assignment to the figures of a plan: per stage, per step, per collective."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

from autopar.cost.data_parallel import all_reduces, dp_cost, gathers, reductions, state_bytes
from autopar.cost.exchange import exchange_counts
from autopar.cost.layer import LayerCost
from autopar.cost.offload import activation_bytes
from autopar.cost.simulator import simulate_passes
from autopar.cost.statistics import statistics_collectives, statistics_seconds
from autopar.plan import (
    LayerPlan,
    Memory,
    Passes,
    Prediction,
    StagePlan,
    StagePrediction,
    sum_memory,
)
from autopar.solve.menus import Pricer
from autopar.solve.placements import parameter_name
from autopar.solve.problem import Configuration, Option, Solution
from autopar.strategies.states import placement_of


@dataclass(frozen=True)
class _Stage:
    """Layers of one stage with their options, and the cuts at its boundaries.

    ``rank_layers`` are the layers of all stages of its rank, class and sharding, on the first of
    these and none on the others: what a rank does once is told with its first stage.
    """

    index: int
    members: tuple[str, ...]
    names: tuple[str, ...]
    options: tuple[Option, ...]
    cuts: tuple[int, ...] = ()
    shared: int = 0
    rank_layers: tuple[tuple[str, int], ...] = ()


def assemble(
    pricer: Pricer, names: tuple[str, ...], solution: Solution
) -> tuple[tuple[StagePlan, ...], tuple[LayerPlan, ...], Prediction]:
    """Stages, layers and prediction of a solution; ``names`` are the layers' names in order."""
    config = solution.problem.configuration
    stages = _stages(pricer, names, solution)
    sent = [
        pricer.of_boundary(config, s).wire_seconds(config, start - 1)
        for s, start in enumerate(solution.boundaries[1:])
    ]
    transfers = [0.0, *sent, 0.0]
    plans = tuple(
        StagePlan(
            s.names,
            _predict_stage(pricer.of_stage(config, s.index), config, s, transfers[s.index :][:2]),
        )
        for s in stages
    )
    layers = tuple(
        _layer_plan(pricer, config, name, member, option, stage.index)
        for stage in stages
        for name, member, option in zip(stage.names, stage.members, stage.options, strict=True)
    )
    each = [plan.prediction for plan in plans]
    return plans, layers, _predict(pricer, config, stages, each)


def _stages(pricer: Pricer, names: tuple[str, ...], solution: Solution) -> list[_Stage]:
    starts = [*solution.boundaries, len(names)]
    spans, pp = list(pairwise(starts)), solution.problem.configuration.pp
    members = [pricer.classes.members[a:b] for a, b in spans]
    taken = [option.tp_option for option in solution.options]
    layers = [list(zip(members[s], taken[a:b], strict=True)) for s, (a, b) in enumerate(spans)]
    return [
        _Stage(
            s, members[s], names[a:b], solution.options[a:b],
            tuple(k - 1 for k in (a, b) if 0 < k < len(names)), _shared(pricer, members, s),
            tuple(pair for own in layers[s::pp] for pair in own) if s < pp else (),
        )
        for s, (a, b) in enumerate(spans)
    ]  # fmt: skip


def _shared(pricer: Pricer, stages: list[tuple[str, ...]], stage: int) -> int:
    """Number of parameters that a stage holds together with other stages."""
    found = 0
    values = pricer.graph.values
    for parts in (p for n, p in pricer.shared.items() if values[n].requires_grad):
        holders = [p for p, members in enumerate(stages) if set(members).intersection(parts)]
        found += stage in holders and len(holders) > 1
    return found


def _fetched_again(pricer: Pricer, config: Configuration, stage: _Stage) -> set[str]:
    """What of a stage is gathered as one, again for every backward: blocks, and the other parts."""
    return {
        "ends" if member in pricer.classes.parts else name
        for name, member, option in zip(stage.names, stage.members, stage.options, strict=True)
        if option.zero == 3 and pricer.cost(member, config, option.tp_option).parameter_elements
    }


def _predict_stage(
    pricer: Pricer, config: Configuration, stage: _Stage, transfers: list[float]
) -> StagePrediction:
    """Sums over the stage's layers; the transient peak is that of its largest layer.

    ``transfers`` are the seconds of those from the stage before and to the stage behind.
    """
    action = pricer.action_seconds(config)
    slow = pricer.cluster.computing_slowdown(config.world_size)
    setting, depth = pricer.setting(config), config.depth(stage.index)
    forward = backward = tp = sync = optimizer = offload = 0.0
    parameters = gradients = state = activations = transient = host = 0
    reserve = pricer.reserve_bytes(config) if stage.index < config.pp else 0
    alone = len(_fetched_again(pricer, config, stage)) == 1
    for member, option in zip(stage.members, stage.options, strict=True):
        cost = pricer.layer(member, config, option.tp_option)
        again = pricer.between(member, cost, config, option.recompute)
        parallel = dp_cost(pricer.cluster, cost, setting, option.zero, stage.index, again.seconds)
        held = state_bytes(cost, setting, option.zero, again.held_bytes)
        compute = cost.forward_seconds * slow
        norms = statistics_seconds(pricer.cluster, cost, setting, option.recompute)
        forward += compute + parallel.forward_seconds + norms[0]
        whole, _ = pricer.backward_seconds(cost, config, whole=stage.index == 0)
        backward += whole - cost.tp_backward_seconds
        backward += slow * (again.seconds + parallel.accumulation_seconds)
        backward += parallel.backward_seconds + pricer.checkpoint_seconds(option.recompute)
        backward += norms[1]
        moved = pricer.offload_seconds(member, cost, config)
        forward, backward, offload = forward + moved, backward + moved, offload + 2 * moved
        host += held.host
        if pricer.moves_activations(member, config):
            host += depth.forwarded * activation_bytes(cost)
        tp += cost.tp_forward_seconds + cost.tp_backward_seconds + again.tp_seconds
        sync += parallel.sync_seconds + pricer.shared_seconds(member, config, option.tp_option)
        optimizer += parallel.optimizer_seconds * slow
        parameters, gradients = parameters + held.parameters, gradients + held.gradients
        state += held.optimizer
        beside = depth.forwarded * option.reserve_bytes
        activations += option.held_bytes(depth) - option.state_bytes - beside
        reserve += beside
        transient = max(transient, option.alone_bytes if alone else option.transient_bytes)
    buffers = _buffer_bytes(pricer, config, stage)
    memory = Memory(parameters, gradients, state, activations, transient, buffers, reserve)
    counts = _collectives(pricer, config, stage)
    return StagePrediction(
        forward,
        backward,
        tp,
        sum(transfers) + config.actions * action,
        sync,
        optimizer,
        memory,
        dict(sorted(counts.items())),
        offload,
        host,
        _passes(pricer, config, stage, (forward, backward + tp), transfers[-1]),
    )


def _buffer_bytes(pricer: Pricer, config: Configuration, stage: _Stage) -> int:
    """Buffers of the model, inputs, and what crosses the stage's cuts."""
    held = pricer.buffer_bytes(config, stage.cuts, first=stage.index < config.pp)
    held += sum(pricer.classes.buffer_bytes.get(member, 0) for member in stage.members)
    return held + pricer.kept_bytes(config, stage.index, stage.cuts)


def _layer_plan(
    pricer: Pricer, config: Configuration, name: str, member: str, option: Option, stage: int
) -> LayerPlan:
    pattern = pricer.classes.priced(member)
    offered = pricer.offered(member, config)[option.tp_option]
    own = pricer.shardings.share(member, config.tp, config.layout, option.tp_option)
    placements = {}
    for value, state in own.parameters.items():
        source = parameter_name(pricer.graph, pattern, value, name)
        placements[source] = (placement_of(state),)
    taken = f"{config.layout}:{offered.aim}" if offered.aim else config.layout
    return LayerPlan(name, stage, placements, option.zero, option.recompute, taken)  # type: ignore[arg-type]


def _predict(
    pricer: Pricer, config: Configuration, stages: list[_Stage], each: list[StagePrediction]
) -> Prediction:
    """Simulates the schedule with each stage's own times; synchronisation and optimizer follow."""
    timeline = simulate_passes(
        config.schedule, [p.passes for p in each], config.num_microbatches, config.virtual_stages
    )
    ranks = [each[rank :: config.pp] for rank in range(config.pp)]
    tail = max(sum(p.sync_seconds + p.optimizer_seconds for p in rank) for rank in ranks)
    step = timeline.makespan + tail
    flops = 3 * sum(cost.flops for stage in stages for cost in _costs(pricer, config, stage))
    peaks = (
        pricer.of_stage(config, rank).cluster.peak_flops(pricer.precision)
        for rank in range(config.pp)
    )
    peak = config.dp * config.tp * sum(peaks)
    total = flops * config.tp * config.dp * config.num_microbatches
    return Prediction(
        step_seconds=step,
        memory_bytes=max(sum_memory(p.memory for p in rank).total for rank in ranks),
        breakdown=_breakdown(config, ranks, step),
        samples_per_second=config.global_batch_size / step,
        mfu=total / (step * peak),
        collectives=_sum_collectives(each),
    )


def _costs(pricer: Pricer, config: Configuration, stage: _Stage) -> list[LayerCost]:
    """The price of each layer of a stage under its sharding."""
    own = pricer.of_stage(config, stage.index)
    pairs = zip(stage.members, stage.options, strict=True)
    return [own.cost(member, config, option.tp_option) for member, option in pairs]


def _passes(
    pricer: Pricer, config: Configuration, stage: _Stage, seconds: tuple[float, float],
    transfer: float,
) -> Passes:  # fmt: skip
    """What the schedule plays; ``seconds`` are those of forward alone, and of all else."""
    tp_forward = sum(cost.tp_forward_seconds for cost in _costs(pricer, config, stage))
    action, split = pricer.action_seconds(config), config.splits_backward
    return Passes(
        seconds[0] + tp_forward + action,
        seconds[1] - tp_forward + (1 + split) * action,
        sum(option.weight_seconds for option in stage.options) + split * action,
        transfer,
        sum(option.activation_bytes - option.reserve_bytes for option in stage.options),
        sum(option.waiting_bytes for option in stage.options),
    )


def _breakdown(
    config: Configuration, ranks: list[list[StagePrediction]], step: float
) -> dict[str, float]:
    """The time of the busiest rank by kind; what is left of the step is bubble."""
    m = config.num_microbatches
    work = [
        sum(p.forward_seconds + p.backward_seconds + p.tp_comm_seconds for p in rank)
        for rank in ranks
    ]
    busiest = ranks[work.index(max(work))]
    parts = {
        "compute": m
        * sum(p.forward_seconds + p.backward_seconds - p.offload_seconds for p in busiest),
        "tp_comm": m * sum(p.tp_comm_seconds for p in busiest),
        "dp_comm": sum(p.sync_seconds for p in busiest),
        "pp_comm": m * sum(p.p2p_seconds for p in busiest),
        "optimizer": sum(p.optimizer_seconds for p in busiest),
    }
    if any(p.offload_seconds for p in busiest):
        parts["offload"] = m * sum(p.offload_seconds for p in busiest)
    rest = step - sum(parts.values())
    if rest < 0:  # transfers overlap with the neighbours' compute in the simulated schedule
        parts["pp_comm"] = max(0.0, parts["pp_comm"] + rest)
    return {**parts, "bubble": max(0.0, rest)}


def _collectives(pricer: Pricer, config: Configuration, stage: _Stage) -> Counter[str]:
    """Every collective that one rank of the stage issues in one step, by kind.

    Besides those of the layers: one all-reduce over tp for all partial gradients together,
    one per parameter that several stages hold, and one for the loss.
    """
    setting, m = pricer.setting(config), config.num_microbatches
    counts: Counter[str] = Counter()
    groups: defaultdict[str, list[tuple[int, LayerCost]]] = defaultdict(list)
    partial = any(pricer.layer(m, config, k).partial_elements for m, k in stage.rank_layers)
    for name, member, option in zip(stage.names, stage.members, stage.options, strict=True):
        cost = pricer.layer(member, config, option.tp_option)
        again = cost.tp_again if option.recompute != "none" else Counter()
        for passed in (cost.tp_forward, cost.tp_backward, again):
            counts.update({kind: number * m for kind, number in passed.items()})
        counts += statistics_collectives(cost, setting, option.recompute)
        held = pricer.cost(member, config, option.tp_option)
        if held.parameter_elements:
            groups["ends" if member in pricer.classes.parts else name].append((option.zero, held))
    for group in groups.values() if config.dp > 1 else ():
        zero, trained = group[0][0], any(held.trained_elements for _, held in group)
        learns = any(held.learns for _, held in group)
        if setting.written_out:
            counts += exchange_counts(config.exchange, config.dp) if trained else Counter()
            continue
        counts["all_gather"] += gathers(setting, zero, stage.index, learns=learns)
        often = reductions(setting, zero) if trained else 0
        counts["reduce_scatter" if zero else "all_reduce"] += often
        counts += all_reduces(setting, zero, often)
    world = config.pp * config.dp * config.tp
    counts["all_reduce"] += partial + stage.shared + (world > 1 and bool(stage.rank_layers))
    crossings = sum(len(pricer.classes.cuts[cut]) for cut in stage.cuts)
    counts["send"] += crossings * m
    counts["recv"] += crossings * m
    return +counts


def _sum_collectives(stages: list[StagePrediction]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for stage in stages:
        total.update(stage.collectives)
    return dict(sorted(total.items()))
