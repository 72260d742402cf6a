"""``make_plan``: trace, shard, price, solve, assemble."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from autopar import graph_json
from autopar.cluster import Cluster
from autopar.cost.data_parallel import OPTIMIZER_BYTES
from autopar.errors import AutoparError, UsageError
from autopar.graph import Graph
from autopar.heterogeneous import HeterogeneousCluster
from autopar.plan import Baseline, Mesh, Plan, SolverReport
from autopar.solve.alternatives import fastest, order_note, runner_plans
from autopar.solve.baselines import combined, run_baselines
from autopar.solve.heterogeneous import (
    HeterogeneousPricer,
    assemble_kinds,
    divided,
    heterogeneous_pricer,
)
from autopar.solve.infeasible import NothingLegalError, Relaxation
from autopar.solve.intra import LAYOUTS
from autopar.solve.kinds import kinds_notes, kinds_rule
from autopar.solve.menus import Pricer
from autopar.solve.notes import extrapolated, move_notes, provenance, undivided, unseen
from autopar.solve.pins import conflict, contradiction
from autopar.solve.placements import check_placements, dims_of, fewest_dims, legal_placements
from autopar.solve.problem import Candidate, Configuration, Group, Solution
from autopar.solve.relaxations import Asked, relaxations
from autopar.solve.room import priced
from autopar.solve.search import solve
from autopar.solve.shardings import Offered, Shardings
from autopar.solve.space import Task, check_pins, configurations, degrees, rules_of
from autopar.solve.statistics import (
    Statistics,
    check_precision,
    find_statistics,
    listed,
    statistics_notes,
)
from autopar.strategies.patterns import ENDS, Classes, attention_heads, find_classes, reduce
from autopar.strategies.sharding_json import encode_pattern, encode_sharding
from autopar.strategies.splitting import splits_backward
from autopar.trace import trace
from autopar.trace.norms import has_sync_norms
from autopar.trace.saved import saved_on_cpu
from autopar.workload import Workload, parameters_of

# What a search gets at least: even a time limit that the trace has used up may find a plan.
LEAST_SECONDS = 0.5
BASELINE_SECONDS = 5.0
# How much faster a pipeline has to be with the kinds of device in the other order to be told of.
NOTABLE = 0.01


@dataclass(frozen=True)
class Request:
    """The arguments of ``autopar.plan``, resolved; see there."""

    workload: Workload
    world_size: int
    machines: Cluster | HeterogeneousCluster
    optimizer: str | int
    precision: str
    memory_limit: float | None
    pins: dict[str, Any]
    gap: float
    time_limit: float
    progress: Callable[[int, int, float | None, float], None] | None
    solver: str
    source: str

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        given = self.workload.global_batch_size
        return self.workload.batch_size() * self.world_size if given is None else given

    @property
    def kinds(self) -> tuple[Cluster, ...]:
        """The kinds of device, in the order of the ranks."""
        return (self.machines,) if isinstance(self.machines, Cluster) else self.machines.kinds

    @property
    def cluster(self) -> Cluster:
        """The kind of the first device."""
        return self.kinds[0]

    @property
    def devices(self) -> tuple[int, ...]:
        """How many devices there are of each kind, empty where all are of one."""
        return () if isinstance(self.machines, Cluster) else self.machines.devices

    @property
    def memory_limit_bytes(self) -> int:
        """Bytes that one rank may use, on a device of the first kind."""
        return self.limit_of(self.cluster)

    def limit_of(self, cluster: Cluster) -> int:
        """Bytes that one rank may use on a device of ``cluster``."""
        limit = self.memory_limit
        if limit is None:
            return cluster.memory_bytes
        return int(limit * cluster.memory_bytes) if limit <= 1 else int(limit)


@dataclass(frozen=True)
class _Traced:
    """A request with everything that is known before prices are compared."""

    request: Request
    graph: Graph
    classes: Classes
    names: tuple[str, ...]
    task: Task
    deadline: float

    @property
    def seconds_left(self) -> float:
        """Until the time limit of the whole plan, trace included; never quite nothing."""
        return max(LEAST_SECONDS, self.deadline - time.perf_counter())

    def pricer(self, pins: dict[str, Any]) -> Pricer:
        """Prices under ``pins``."""
        request = self.request
        samples = request.global_batch_size / request.world_size
        shardings = Shardings(self.graph, self.classes, request.cluster, request.solver, samples)

        def on(cluster: Cluster) -> Pricer:
            return Pricer(
                replace(shardings, cluster=cluster), request.precision, request.optimizer, {},
                request.limit_of(cluster), self.names,
            )  # fmt: skip

        if not request.devices:
            return on(request.cluster).with_pins(pins)
        return heterogeneous_pricer(map(on, request.kinds), request.devices).with_pins(pins)


def make_plan(request: Request) -> Plan:
    """The plan for ``request``; raises as ``autopar.plan`` does."""
    _check(request)
    started = time.perf_counter()
    traced = _trace(request)
    check_pins(traced.task)
    check_placements(traced.graph, traced.classes, traced.names, request.pins)
    pricer = traced.pricer(request.pins)
    solution = _solve(traced, pricer, request.pins)
    solution, baselines = _baselines(traced, pricer, solution)
    return _plan(traced, pricer, solution, baselines, time.perf_counter() - started)


def _check(request: Request) -> None:
    """Refuses what no plan could honour before anything is traced."""
    if not isinstance(request.world_size, int) or request.world_size < 1:
        raise UsageError(f"world_size={request.world_size!r}", expected="an integer of at least 1",
                         where="world_size", hint="pass the number of devices")  # fmt: skip
    if request.devices and sum(request.devices) != request.world_size:
        machines = request.machines
        raise UsageError(
            f"world_size={request.world_size}", where="world_size", hint="change one of the two",
            expected=f"{sum(request.devices)}: {machines.name} is {machines.description}",
        )  # fmt: skip
    if request.global_batch_size < 1:
        raise UsageError(f"global_batch_size={request.global_batch_size}",
                         expected="at least 1", where="global_batch_size")  # fmt: skip
    if request.precision not in ("fp32", "bf16"):
        raise UsageError(f"precision={request.precision!r}", expected="fp32 or bf16",
                         where="precision")  # fmt: skip
    exchange = request.pins.get("exchange", "collective")
    if exchange != "collective" and request.precision != "fp32":
        raise UsageError(
            f"exchange={exchange} in {request.precision}", expected="fp32", where="pin",
            hint="plan with precision fp32, or without this pin",
        )  # fmt: skip
    if isinstance(request.optimizer, str) and request.optimizer not in OPTIMIZER_BYTES:
        raise UsageError(
            f"optimizer={request.optimizer!r}",
            expected=f"{', '.join(OPTIMIZER_BYTES)}, or bytes per parameter",
            where="optimizer",
        )
    if request.memory_limit is not None and request.memory_limit <= 0:
        raise UsageError(f"memory_limit={request.memory_limit}", where="memory_limit",
                         expected="bytes per device, or a fraction up to 1")  # fmt: skip


def _trace(request: Request) -> _Traced:
    deadline = time.perf_counter() + request.time_limit
    args, kwargs = request.workload.inputs()
    work = request.workload
    whole = trace(work.model, args, kwargs, target=work.example_target, loss_fn=work.loss_fn,
                  precision=request.precision)  # fmt: skip
    if all(kind.device == "cpu" for kind in request.kinds):
        whole = saved_on_cpu(whole)
    statistics = find_statistics(whole)
    check_precision(statistics, request.precision)
    graph, classes = reduce(whole, find_classes(whole))
    names = tuple(layer.name for layer in whole.layers)
    task = Task(
        request.world_size, request.global_batch_size, len(classes.spread()),
        attention_heads(graph), request.pins, names,
        tuple(layer.name for layer in whole.layers if layer.kind != "block"), classes.runs,
        statistics=statistics,
        devices=request.devices,
        devices_per_node=0 if request.devices else request.cluster.devices_per_node,
    )  # fmt: skip
    return _Traced(request, graph, classes, names, task, deadline)


def _candidates(traced: _Traced, pricer: Pricer, pins: dict[str, Any]) -> list[Group]:
    """Every configuration that the pins allow, as one group for each tp degree.

    Raises:
        UsageError: there is none.
    """
    task = replace(traced.task, pins=pins, interleaves=pricer.interleaves,
                   splits=splits_backward(traced.graph, traced.classes))  # fmt: skip
    bound = _peak_seconds(traced, pricer, task)
    found = []
    for tp in sorted({tp for _, _, tp in degrees(task)}):
        own = replace(task, pins={**pins, "tp": tp})
        size = len(list(configurations(own, list(LAYOUTS))))
        found += [Group(bound, size, partial(_expand, pricer, own))] if size else []
    if not found:
        raise UsageError(
            f"no legal factorisation of {task.world_size} devices",
            expected=f"pp * dp * tp = {task.world_size}, pp <= {task.blocks} blocks, dp dividing"
            f" the batch of {task.global_batch_size}, tp dividing the heads {list(task.heads)};"
            " micro-batches that pp divides for interleaved_1f1b and zero_bubble"
            + _other_schedules(pricer, task)
            + _one_replica(task.statistics)
            + (f"; {kinds_rule(task.devices)}" if task.devices else ""),
            where=f"pins {pins}" if pins else "world_size, global_batch_size",
            hint="change the global batch, the number of devices or the pins",
        )
    return found


def _other_schedules(pricer: Pricer, task: Task) -> str:
    """The schedules that the model does not allow, and why."""
    found = "" if task.splits else (
        "; another schedule than zero_bubble, as parameters behind the first layer meet what it"
        " made at several places, or not in the layer that reads them"
    )  # fmt: skip
    return found if pricer.interleaves else found + (
        "; one stage per rank, as two stages of a rank would share a parameter"
    )  # fmt: skip


def _one_replica(statistics: Statistics) -> str:
    mixing = listed(statistics.mixing)
    return f"; dp = 1, as samples depend on each other in {mixing}" if mixing else ""


def _expand(pricer: Pricer, task: Task) -> list[Candidate]:
    """The configurations of one tp degree in the layouts that its layers can have."""
    tp, shardings = task.pins["tp"], pricer.shardings
    layouts = shardings.layouts(tp, wanted="tp" in pricer.pins)
    multiple = {layout: shardings.microbatch_multiple(tp, layout) for layout in layouts}
    batch, statistics = task.global_batch_size, task.statistics
    return [
        priced(pricer, config)
        for mean in configurations(task, layouts)
        for config in divided(pricer, mean, batch // mean.num_microbatches)
        if all(size % multiple.get(config.layout, 1) == 0 for size in config.sizes)
        and (len(set(config.sizes)) == 1 or not statistics.synchronised)
    ]


def _peak_seconds(traced: _Traced, pricer: Pricer, task: Task) -> float:
    """A step at the peak of all devices: a bound on configurations that nobody has priced."""
    one = Configuration(1, 1, 1, 1, task.global_batch_size, "1f1b")
    flops = 3 * sum(pricer.cost(m, one).flops for m in traced.classes.members)
    return flops * task.global_batch_size / _peak_flops(traced.request, task.world_size)


def _peak_flops(request: Request, world_size: int) -> float:
    """The peak of all devices together, in FLOP/s."""
    pairs = zip(request.devices or (world_size,), request.kinds, strict=True)
    return sum(count * kind.peak_flops(request.precision) for count, kind in pairs)


def _solve(traced: _Traced, pricer: Pricer, pins: dict[str, Any]) -> Solution:
    request = traced.request
    try:
        return solve(
            _candidates(traced, pricer, pins),
            gap=request.gap,
            time_limit=traced.seconds_left,
            progress=request.progress,
            solver=request.solver,
            relaxations=_relaxations(traced, pricer),
            runners=True,
        )
    except NothingLegalError as error:
        raise (_contradiction(traced, pricer) or error) from None


def _contradiction(traced: _Traced, pricer: Pricer) -> UsageError | None:
    """The pins that leave a layer without any option; None if it is not them.

    Known only now: whether a layer can have pinned placements, the op-level program says.
    """

    def possible(pins: dict[str, Any]) -> bool:
        try:
            groups = _candidates(traced, _with_pins(traced, pricer, pins), pins)
        except UsageError:
            return False
        problems = (candidate.build() for group in groups for candidate in group.expand())
        return any(all(problem.menus) for problem in problems)

    if possible(pricer.pins) or not possible({}):
        return None
    found = conflict(pricer.pins, possible)
    degree = {axis: pricer.pins[axis] for axis in ("pp", "dp", "tp") if axis in pricer.pins}
    dims = dims_of(traced.graph, traced.classes, traced.names)
    legal = [
        legal_placements(pin, fewest_dims(dims, pin.name), lambda own: possible(degree | own))
        for pin in found
        if pin.kind == "placement"
    ]
    return contradiction(found, "; ".join(filter(None, [rules_of(found, traced.task), *legal])))


def _with_pins(traced: _Traced, pricer: Pricer, pins: dict[str, Any]) -> Pricer:
    """Prices under other pins; costs are shared where these ask for the same placements."""
    check_pins(replace(traced.task, pins=pins))
    return pricer.with_pins(pins)


def _relaxations(traced: _Traced, pricer: Pricer) -> list[Relaxation]:
    """What the user could give up if nothing fits."""
    pins, parts = traced.request.pins, traced.classes.parts

    def with_pins(own: dict[str, Any]) -> list[Group]:
        return _candidates(traced, _with_pins(traced, pricer, own), own)

    def with_task(change: dict[str, int]) -> list[Group]:
        other = replace(traced, task=replace(traced.task, **change))  # type: ignore[arg-type]
        return _candidates(other, _with_pins(other, pricer, pins), pins)

    blocks = tuple(member not in parts for member in traced.classes.members)
    node = traced.request.cluster.devices_per_node
    return relaxations(Asked(traced.task, node, blocks, with_pins, with_task))


def _baselines(
    traced: _Traced, pricer: Pricer, solution: Solution
) -> tuple[Solution, tuple[Baseline, ...]]:
    """What the user would have typed, priced as the plan is, and the best plan by simulation.

    Another plan within the gap, or a baseline that honours all pins, can be ahead of the optimum of
    the closed form. Whoever presses Ctrl-C wants the plan that there is: then there are none.
    """
    if solution.status == "interrupted":
        return solution, ()
    request, found = traced.request, [solution, *solution.rivals, *solution.runners_up]

    def solve_pinned(pins: dict[str, Any], even: bool) -> Solution:
        own = replace(_with_pins(traced, pricer, pins), equal_stages=even)
        candidates = _candidates(traced, own, pins)
        limit = min(BASELINE_SECONDS, traced.seconds_left)
        result = solve(candidates, time_limit=limit, solver=traced.request.solver, advise=False)
        if combined(request.pins, pins) == pins:
            found.append(result)
        return replace(result, objective_seconds=_step_seconds(traced, own, result))

    node = request.cluster.devices_per_node
    try:
        baselines = run_baselines(
            solve_pinned, request.world_size, node, request.pins, unequal=bool(request.devices)
        )
    except KeyboardInterrupt:
        return solution, ()
    step_seconds = partial(_step_seconds, traced, pricer)
    return fastest(solution, found, step_seconds, request.gap), baselines


def _step_seconds(traced: _Traced, pricer: Pricer, solution: Solution) -> float:
    """The simulated step of a solution."""
    return assemble_kinds(pricer, traced.names, solution)[2].step_seconds


def _plan(traced: _Traced, pricer: Pricer, solution: Solution, baselines: tuple[Baseline, ...],
          seconds: float) -> Plan:  # fmt: skip
    request, config = traced.request, solution.problem.configuration
    stages, layers, prediction, kinds = assemble_kinds(pricer, traced.names, solution)
    return Plan(
        model=type(request.workload.model).__name__,
        world_size=request.world_size,
        global_batch_size=request.global_batch_size,
        optimizer=str(request.optimizer),
        precision=request.precision,
        memory_limit_bytes=request.memory_limit_bytes,
        mesh=Mesh(config.pp, config.dp, config.tp, config.dp_shard),
        microbatch_size=config.microbatch_size,
        num_microbatches=config.num_microbatches,
        schedule=config.schedule,  # type: ignore[arg-type]
        virtual_stages=config.virtual_stages,
        stages=stages,
        layers=layers,
        prediction=prediction,
        solver=SolverReport(solution.status, solution.gap, solution.bound_seconds, seconds,
                            solution.candidates, solution.solver, solution.objective_seconds,
                            solution.simulated),
        baselines=baselines,
        cluster=provenance(request.machines),
        pins=request.pins,
        parameters=parameters_of(request.workload.model),
        program=_program(traced, pricer, solution),
        notes=(*solution.notes,
               *statistics_notes(traced.task.statistics, config.microbatch_size, config.dp),
               *kinds_notes(request.devices, traced.task.blocks),
               *_other_order(traced, pricer, solution, prediction.step_seconds),
               *undivided(pricer, config), *extrapolated(request.kinds, config),
               *unseen(pricer)),
        workload=request.source,
        runners_up=runner_plans(pricer, traced.names, solution, prediction),
        offload=config.offload,  # type: ignore[arg-type]
        exchange=config.exchange,  # type: ignore[arg-type]
        kinds=kinds,
    )  # fmt: skip


def _other_order(
    traced: _Traced, pricer: Pricer, solution: Solution, seconds: float
) -> tuple[str, ...]:
    """What a pipeline of these degrees gains if the second kind of device holds the first stages.

    Which ranks are on which devices is the user's to say: the plan keeps to it.
    """
    config, pins = solution.problem.configuration, traced.request.pins
    settled = {"stages", "stage"} & set(pins) or solution.status == "interrupted"
    if not isinstance(pricer, HeterogeneousPricer) or config.pp == 1 or settled:
        return ()
    own = pricer.turned()
    turned = replace(traced, task=replace(traced.task, devices=own.devices))
    degrees = {"pp": config.pp, "dp": config.dp, "tp": config.tp}
    limit = min(BASELINE_SECONDS, traced.seconds_left)
    try:
        found = solve(_candidates(turned, own, {**pins, **degrees}), time_limit=limit, advise=False)
    except (AutoparError, KeyboardInterrupt):
        return ()
    other = _step_seconds(turned, own, found)
    return order_note(own, other, seconds) if other < (1 - NOTABLE) * seconds else ()


def _program(traced: _Traced, pricer: Pricer, solution: Solution) -> dict[str, Any]:
    """The graph of one layer of each class and its sharding: what the program is written from.

    A class that is sharded in several ways stands there as one pattern for each of them.
    """
    config, classes = solution.problem.configuration, traced.classes
    patterns, shardings, members, notes = {}, {}, [], []
    named: dict[str, str] = {}
    for member, option in zip(classes.members, solution.options, strict=True):
        home = classes.home(member)
        k = _first_equal(pricer.offered(member, config), option.tp_option)
        name = home if home == ENDS or not k else f"{home}#{k}"
        members.append(member if home == ENDS else name)
        named.setdefault(member, members[-1])
        if name not in patterns:
            sharding = pricer.offered(member, config)[k].sharding
            patterns[name] = encode_pattern(classes.patterns[home])
            shardings[name] = encode_sharding(sharding)
            notes += move_notes(pricer, sharding, config)
    return {
        "graph": graph_json.encode(traced.graph),
        "patterns": patterns,
        "parts": {name: encode_pattern(p) for name, p in classes.parts.items()},
        "device": pricer.cluster.device,
        "constants": traced.request.workload.constants(),
        "sync_norms": has_sync_norms(traced.request.workload.model),
        "inplace": any(
            getattr(m, "inplace", False) for m in traced.request.workload.model.modules()
        ),
        "members": members,
        "reads": [list(slots) for slots in classes.reads],
        "writes": [list(slots) for slots in classes.writes],
        "cuts": [
            [[c.slot, named[c.member], c.value] for c in classes.cuts[start - 1]]
            for start in solution.boundaries[1:]
        ],
        "shardings": shardings,
        "notes": notes,
    }


def _first_equal(offered: Sequence[Offered], k: int) -> int:
    """Layers that are pinned differently may have been offered one sharding twice."""
    chosen = offered[k].sharding.strategies
    return next(i for i, each in enumerate(offered) if each.sharding.strategies == chosen)
