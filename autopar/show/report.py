"""The neutral report of a plan: what is shown, before anything decides how it looks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autopar.plan import Baseline, Memory, Plan
from autopar.show.layers import layer_table
from autopar.show.parts import Facts, Section, Table
from autopar.show.units import duration, percent, share, size

MEMORY_KINDS = (
    "parameters", "gradients", "optimizer", "activations", "transient", "buffers", "reserve",
)  # fmt: skip
EXCHANGES = {
    "collective": "collectives of the library",
    "ring": "a ring of sends and receives",
    "server": "rank 0, a parameter server",
}
TIME_PARTS = {
    "compute": "compute",
    "tp_comm": "tensor-parallel communication",
    "dp_comm": "data-parallel communication",
    "pp_comm": "pipeline communication",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
    "offload": "copies to host memory and back",
}


@dataclass(frozen=True)
class Report:
    """A verdict in one line, sections of tables and facts, and the commands to type next."""

    title: str
    verdict: str
    sections: tuple[Section, ...]
    commands: tuple[str, ...] = ()


def report(plan: Plan, path: str = "plan.json") -> Report:
    """Everything there is to say about ``plan``; ``path`` is where the next commands find it."""
    sections = (
        _choices,
        _kinds,
        _stages,
        _memory,
        _time,
        layer_table,
        _baselines,
        _runners_up,
        _search,
        _costs,
        _notes,
    )
    built = (section(plan) for section in sections)
    return Report(
        title=f"{plan.model} on {plan.world_size} x {plan.cluster.name} (plan {plan.plan_id})",
        verdict=verdict(plan),
        sections=tuple(section for section in built if section is not None),
        commands=next_commands(plan, path),
    )


def verdict(plan: Plan) -> str:
    """The plan in one line; an uncalibrated cost model is the first thing that it says."""
    mesh, (used, limit) = plan.mesh, _fullest(plan)
    caution = "" if plan.cluster.calibrated else "UNCALIBRATED cost model, figures are estimates: "
    return (
        f"{caution}{mesh} takes "
        f"{interval(plan)} per step and {size(used)} of {size(limit)} per rank;"
        f" {_certificate(plan)}"
    )


def _fullest(plan: Plan) -> tuple[int, int]:
    """Bytes that are used, and that may be, on the devices with the least room to spare."""
    each = [(kind.memory_bytes, kind.memory_limit_bytes) for kind in plan.kinds]
    each = each or [(plan.prediction.memory_bytes, plan.memory_limit_bytes)]
    return max(each, key=lambda pair: pair[0] / pair[1])


def interval(plan: Plan) -> str:
    """The step time, and the range that the cost model's own errors leave: "1.2 s (1.1 to 1.3)".

    Four fifths of the step times that the model was compared with lie in such a range.
    """
    seconds, error = plan.prediction.step_seconds, plan.cluster.step_error
    if not error:
        return duration(seconds)
    low, high = (seconds / (1 + error[bound]) for bound in ("p90", "p10"))
    return f"{duration(seconds)} ({duration(low)} to {duration(high)})"


def _certificate(plan: Plan) -> str:
    if plan.solver.gap <= 0:
        return "proven optimal"
    return f"proven within {percent(plan.solver.gap)} of the optimum"


def next_commands(plan: Plan, path: str) -> tuple[str, ...]:
    """The shell lines that write the program and start it."""
    model = "" if plan.workload else " --model MODULE:FUNCTION"
    program = path.removesuffix(".json") + "_train.py"
    return (
        f"autopar emit {shlex.quote(path)} -o {shlex.quote(program)}{model}",
        launch_command(plan, program),
    )


def launch_command(plan: Plan, program: str) -> str:
    """The torchrun line that starts ``program`` on every rank, to be typed on each node."""
    per_node = min(plan.world_size, plan.cluster.devices_per_node)
    nodes = -(-plan.world_size // per_node)
    rendezvous = "" if nodes == 1 else f" --nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST"
    return f"torchrun{rendezvous} --nproc-per-node {per_node} {shlex.quote(program)}"


def _choices(plan: Plan) -> Section:
    zero = sorted({layer.zero for layer in plan.layers})
    recompute = sorted({layer.recompute for layer in plan.layers})
    pins = ", ".join(_pins(plan.pins))
    rows = (
        ("mesh", str(plan.mesh)),
        ("schedule", f"{plan.schedule}, {plan.virtual_stages} stage(s) per rank"),
        ("micro-batches", f"{plan.num_microbatches} of {_sizes(plan)} per data-parallel rank"),
        ("global batch", f"{plan.global_batch_size:,} samples"),
        ("ZeRO stages", ", ".join(map(str, zero))),
        ("recompute", ", ".join(recompute)),
        ("in host memory", _offload(plan)),
        ("gradients added up by", EXCHANGES[plan.exchange]),
        ("precision", f"{plan.precision}, optimizer {plan.optimizer}"),
        ("pinned by you", pins or "nothing"),
    )
    return Section("Decisions", (Facts(rows),))


def _pins(pins: Mapping[str, Any]) -> Iterator[str]:
    """Pins as they are typed: "tp=2", "recompute@model.layers.0=full"."""
    for key, value in pins.items():
        if isinstance(value, Mapping):
            yield from (f"{key}@{name}={own}" for name, own in value.items())
        else:
            yield f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _offload(plan: Plan) -> str:
    """What is kept on the host, and how much on the rank that keeps most."""
    if plan.offload == "none":
        return "nothing"
    most = max(map(plan.host_bytes, range(plan.mesh.pp)))
    kinds = {"all": "optimizer and activations"}.get(plan.offload, plan.offload)
    return f"{kinds}, {size(most)} per rank"


def _sizes(plan: Plan) -> str:
    """Samples of a micro-batch: "4 sample(s)", "6 or 2 sample(s)" where devices differ."""
    sizes = dict.fromkeys(plan.shares or (plan.microbatch_size,))
    return f"{' or '.join(map(str, sizes))} sample(s)"


def _kinds(plan: Plan) -> Section | None:
    """What devices of several kinds do."""
    rows = tuple(
        (kind.cluster, str(kind.devices), ", ".join(map(str, kind.stages)),
         str(kind.microbatch_size), duration(kind.step_seconds),
         f"{size(kind.memory_bytes)} ({share(kind.memory_bytes, kind.memory_limit_bytes)})")
        for kind in plan.kinds
    )  # fmt: skip
    columns = ("devices", "number", "stages", "samples per micro-batch", "per step", "memory")
    replicas = "stages and times below are those of the kind that takes longest"
    note = replicas if plan.mesh.pp == 1 else ""
    return Section("Kinds of device", (Table(columns, rows, note),)) if rows else None


def _stages(plan: Plan) -> Section:
    where = ("devices",) if plan.kinds else ()
    figures = ("forward", "backward", "of it tp", "send", "sync", "memory")
    rows = []
    for index, stage in enumerate(plan.stages):
        prices = stage.prediction
        seconds = (
            prices.forward_seconds,
            prices.backward_seconds,
            prices.tp_comm_seconds,
            prices.p2p_seconds,
            prices.sync_seconds,
        )
        used = prices.memory.total
        memory = f"{size(used)} ({share(used, plan.limit_bytes(index))})"
        kind = plan.stage_kind(index)
        on = [kind.cluster if kind else "" for _ in where]
        rows.append((str(index), *on, _span(stage.layers), *map(duration, seconds), memory))
    note = "forward, backward, tp and send per micro-batch; sync per step"
    return Section("Stages", (Table(("stage", *where, "layers", *figures), tuple(rows), note),))


def _span(names: tuple[str, ...]) -> str:
    if len(names) < 3:
        return ", ".join(names)
    return f"{names[0]} .. {names[-1]} ({len(names)})"


def _memory(plan: Plan) -> Section:
    numbers = range(len(plan.stages))
    rows = tuple(
        (", ".join(map(str, numbers[rank :: plan.mesh.pp])),
         *_memory_row(plan.rank_memory(rank), plan.limit_bytes(rank)))
        for rank in range(plan.mesh.pp)
    )  # fmt: skip
    limits = dict.fromkeys(size(plan.limit_bytes(rank)) for rank in range(plan.mesh.pp))
    note = f"percent of the limit of {' or '.join(limits)} per rank"
    return Section("Memory per rank", (Table(("stage", "peak", *MEMORY_KINDS), rows, note),))


def _memory_row(memory: Memory, limit_bytes: int) -> tuple[str, ...]:
    kinds = (size(getattr(memory, kind)) for kind in MEMORY_KINDS)
    return (f"{size(memory.total)} ({share(memory.total, limit_bytes)})", *kinds)


def _time(plan: Plan) -> Section:
    prediction = plan.prediction
    rows = tuple(
        (TIME_PARTS.get(part, part), duration(seconds), share(seconds, prediction.step_seconds))
        for part, seconds in prediction.breakdown.items()
    )
    total = ("step", duration(prediction.step_seconds), "100 %")
    speed = (
        ("throughput", f"{prediction.samples_per_second:,.4g} samples/s"),
        ("model flops utilisation", percent(prediction.mfu)),
    )
    return Section(
        "Time per step", (Table(("part", "time", "share"), (*rows, total)), Facts(speed))
    )


def _baselines(plan: Plan) -> Section | None:
    if not plan.baselines:
        return None
    ranked = sorted(plan.baselines, key=lambda base: (base.step_seconds is None, base.step_seconds))
    rows = tuple(_baseline_row(base, plan.prediction.step_seconds) for base in ranked)
    columns = ("baseline", "per step", "against this plan", "memory", "remark")
    return Section("What you would have typed", (Table(columns, rows),))


def _baseline_row(base: Baseline, step_seconds: float) -> tuple[str, ...]:
    if base.step_seconds is None:
        memory = "-" if base.memory_bytes is None else size(base.memory_bytes)
        return (base.name, "cannot run", "-", memory, base.reason)
    ratio = f"{base.step_seconds / step_seconds:.2f} x the time"
    memory = size(base.memory_bytes or 0)
    remark = f"{base.description}; {base.reason}" if base.reason else base.description
    return (base.name, duration(base.step_seconds), ratio, memory, remark)


def _runners_up(plan: Plan) -> Section | None:
    if not plan.runners_up:
        return None
    rows = tuple(
        (
            f"{r.mesh} microbatch_size={r.microbatch_size}"
            + (f" {r.schedule}" if r.mesh.pp > 1 else ""),
            duration(r.step_seconds),
            size(r.memory_bytes),
            r.reason,
        )
        for r in plan.runners_up
    )
    columns = ("plan", "per step", "memory", "why it lost")
    return Section("Runners-up", (Table(columns, rows),))


def _search(plan: Plan) -> Section:
    solver = plan.solver
    candidates = ", ".join(f"{count:,} {fate}" for fate, count in solver.candidates.items())
    rows = (
        ("solver", f"{solver.name}, {solver.status}"),
        (
            "objective",
            f"{duration(solver.objective)} per step in the closed form that is minimised",
        ),
        ("lower bound", f"{duration(solver.bound)} of it, over everything in the search space"),
        ("gap", percent(solver.gap)),
        ("simulated", f"{solver.simulated} of the best plans, of which this is the fastest"),
        ("solved in", duration(solver.seconds)),
        ("configurations", candidates or "-"),
    )
    return Section("Search", (Facts(rows),))


def _costs(plan: Plan) -> Section:
    costs = plan.cluster
    origin = "measured on the device" if costs.calibrated else "not measured, from publications"
    errors = ", ".join(f"{curve} {percent(error)}" for curve, error in costs.fit_error.items())
    rows = (
        ("cost model", f"{costs.name} (sha256 {costs.sha256[:12]})"),
        ("figures", origin),
        ("source", costs.summary),
        ("fit error", errors or "not stated"),
        ("step times", _step_error(costs.step_error)),
    )
    return Section("Cost model", (Facts(rows),))


def _step_error(error: dict[str, float]) -> str:
    if not error:
        return "never compared with measured ones: no interval can be given"
    return (
        f"{100 * error['p10']:+.0f} % to {100 * error['p90']:+.0f} % (p10 to p90) off on "
        f"{error['points']:.0f} measured ones that it was not fitted to"
    )


def _notes(plan: Plan) -> Section | None:
    if not plan.notes:
        return None
    return Section("Notes", (Facts(tuple(("", note) for note in plan.notes)),))
