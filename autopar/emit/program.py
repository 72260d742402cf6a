"""From a plan to the text of its program."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from autopar import graph_json
from autopar.emit.chassis import Loop, Part, Program, render
from autopar.emit.constants import LINE, Tensor
from autopar.emit.layers import LayerClass, StageText, layer_classes, stage_text
from autopar.emit.source import literal, local_dimensions, spelled
from autopar.errors import PlanFormatError
from autopar.graph import Graph
from autopar.plan import Plan
from autopar.plan_file import write_atomically
from autopar.strategies.growth import SUM, loss_powers
from autopar.strategies.patterns import ENDS, Classes, Crossing
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.sharding_json import decode_pattern, decode_sharding
from autopar.strategies.statistics import (
    changed_buffers,
    is_synchronised,
    updates_statistics,
)


@dataclass(frozen=True)
class _Data:
    """The plan's program data, decoded.

    ``notes`` are comments by (value, target state), ``cuts`` what crosses each stage boundary.
    """

    graph: Graph
    classes: Classes
    shardings: dict[str, Sharding]
    notes: dict[tuple[str, str], str]
    cuts: tuple[tuple[Crossing, ...], ...]


def write_program(plan: Plan, path: str | os.PathLike[str], model: str = "") -> None:
    """Writes the stand-alone program of ``plan``; equal plans give equal bytes.

    Args:
        plan: what to run.
        path: the file to write; it is written whole or not at all.
        model: "module:function" that returns the workload.

    Raises:
        PlanFormatError: the plan's program data cannot be read.
    """
    text = program_text(plan, model, os.path.basename(os.fspath(path)))
    write_atomically(path, text)


def program_text(plan: Plan, model: str = "", file_name: str = "program.py") -> str:
    """The text that ``write_program`` writes."""
    try:
        graph = graph_json.decode(plan.program["graph"])
        patterns = {n: decode_pattern(p) for n, p in plan.program["patterns"].items()}
        parts = {n: decode_pattern(p) for n, p in plan.program["parts"].items()}
        reads, writes = (tuple(map(tuple, plan.program[key])) for key in ("reads", "writes"))
        classes = Classes(patterns, parts, tuple(plan.program["members"]), reads, writes)
        cuts = tuple(tuple(Crossing(*c) for c in cut) for cut in plan.program["cuts"])
        shardings = {n: decode_sharding(s) for n, s in plan.program["shardings"].items()}
        notes = {(value, state): note for value, state, note in plan.program["notes"]}
    except (KeyError, TypeError, ValueError) as error:
        raise PlanFormatError(f"the plan's program data is unreadable: {error!r}",
                              where="program", hint="plan this model again") from error  # fmt: skip
    data = _Data(graph, classes, shardings, notes, cuts)
    return render(_program(plan, data, model, file_name))


def _program(plan: Plan, data: _Data, model: str, file_name: str) -> Program:
    graph, classes, shardings, notes = data.graph, data.classes, data.shardings, data.notes
    split, _ = layer_classes(graph, classes, shardings, _class_names(graph, classes), notes)
    text = stage_text(graph, classes, shardings, notes, guarded=plan.mesh.pp > 1)
    pairs = list(zip(plan.layers, classes.members, strict=True))
    blocks = [(layer, member) for layer, member in pairs if member not in classes.parts]
    ends = [layer for layer, member in pairs if member in classes.parts]
    mesh, constants = plan.mesh, plan.program.get("constants", {})
    inputs, targets = _places(text.inputs, nested=bool(constants))
    return Program(
        title=_title(plan),
        summary=_summary(plan),
        pp=mesh.pp,
        dp=mesh.dp,
        tp=mesh.tp,
        dp_shard=mesh.dp_shard,
        global_batch=plan.global_batch_size,
        microbatch=plan.microbatch_size,
        inputs=inputs,
        targets=targets,
        constants={p: literal(value, str) for p, value in constants.items()},
        blocks=tuple(layer.name for layer, _ in blocks),
        stages=_stages(plan, blocks),
        zero=tuple(layer.zero for layer, _ in blocks),
        recompute=tuple(layer.recompute for layer, _ in blocks),
        layers=tuple(split[m].name if m in split else None for _, m in blocks),
        parameters=plan.parameters,
        unread=_unread(plan, graph, [layer.name for layer, _ in blocks]),
        flow=_flow(plan, data, text),
        ends_zero=ends[0].zero if ends else 0,
        idle=tuple(i for i, (_, m) in enumerate(blocks) if not _learns(graph, classes.patterns[m])),
        classes=tuple(layer.source for layer in split.values()),
        ends_placements=(placements := _ends_placements(graph, classes, shardings)),
        tied=graph.tied,
        shared=_shared(plan, graph, classes),
        cuts=tuple(tuple(crossing.slot for crossing in cut) for cut in data.cuts),
        hidden=tuple(_hidden(graph, classes, shardings, cut) for cut in data.cuts),
        apart=mesh.pp > 1 and (plan.schedule == "zero_bubble" or _stops(data)),
        loss=graph.values[graph.loss].dtype,
        sums=loss_powers(graph) == SUM,
        context="\n".join(text.context),
        schedule=plan.schedule,
        virtual_stages=plan.virtual_stages,
        precision=plan.precision,
        gloo=plan.program.get("device") == "cpu" and plan.world_size > 1,
        predicted_step_seconds=plan.prediction.step_seconds,
        predicted_memory_bytes=plan.live_bytes,
        workload=model or plan.workload,
        tokens_per_sample=_tokens(graph),
        sync_norms=plan.program.get("sync_norms", False) and plan.world_size > 1,
        mixes=any(is_synchronised(op) for op in graph.ops),
        keeps=any(updates_statistics(op) for op in graph.ops),
        offload=plan.offload,
        exchange=plan.exchange,
        uneven=_uneven(plan, blocks, split, placements),
        inplace=plan.program.get("inplace", True),
        float_inputs=any("float" in graph.values[name].dtype for name in graph.inputs.values()),
        file_name=file_name,
        shares=plan.shares,
    )


def _places(inputs: dict[str, str], *, nested: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Where inputs and targets stand, as ``Program`` wants it, from the graph's keys."""
    places = {name: key.partition(".")[2] for name, key in inputs.items() if not _is_target(key)}
    targets = {name: key for name, key in inputs.items() if _is_target(key)}
    nested |= any("." in place for place in (*places.values(), *targets.values()))
    flat = {n: n if place.isdigit() and not nested else place for n, place in places.items()}
    return flat, targets


def _unread(plan: Plan, graph: Graph, blocks: list[str]) -> tuple[str, ...]:
    """Parameters outside the blocks that no operation reads, such as those of skipped modules."""
    read = {value.source for value in graph.values.values() if value.kind == "parameter"}
    inside = tuple(f"{name}." for name in blocks)
    others = (name for name, _, _ in plan.parameters if name not in read)
    return tuple(name for name in others if not name.startswith(inside))


def _learns(graph: Graph, pattern: Pattern) -> bool:
    """Whether a gradient flows into what a layer makes."""
    return any(graph.values[name].requires_grad for name in pattern.sent)


def _is_target(key: str) -> bool:
    return key.partition(".")[0] == "target"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"


def _title(plan: Plan) -> str:
    """The first line of the program."""
    ranks = f"{plan.model} on {_count(plan.world_size, 'rank')}"
    groups = plan.mesh.dp // plan.mesh.dp_shard
    data = f"{plan.mesh.dp} data" if groups == 1 else f"{groups} x {plan.mesh.dp_shard} data"
    mesh = f"{_pipeline(plan)} x {data} x {plan.mesh.tp} tensor"
    return f"{ranks}: {mesh}" if plan.world_size > 1 else ranks


def _pipeline(plan: Plan) -> str:
    """The pipeline in the title, e.g. "2 stages" or "2 x 3 stages" with three on each rank."""
    if plan.virtual_stages == 1:
        return _count(plan.mesh.pp, "stage")
    return f"{plan.mesh.pp} x {plan.virtual_stages} stages"


def _summary(plan: Plan) -> tuple[str, ...]:
    """Plan and prediction in a few lines for the docstring."""
    origin = "calibrated" if plan.cluster.calibrated else "from published figures"
    step, memory = plan.prediction.step_seconds, plan.prediction.memory_bytes
    schedule = f", {plan.schedule}" if plan.mesh.pp > 1 else ""
    predicted = (
        f"Predicted: {1e3 * step:.2f} ms a step, {memory / 2**30:.2f} GiB on the fullest rank"
        f" ({plan.cluster.name}, {origin})."
    )
    return (
        f"Plan {plan.plan_id}: {_count(plan.num_microbatches, 'micro-batch', 'es')}"
        f" of {_samples(plan)}{schedule}.",
        *textwrap.wrap(predicted, LINE),
    )


def _samples(plan: Plan) -> str:
    """Size of a micro-batch, or both sizes where devices differ."""
    *others, last = dict.fromkeys(plan.shares or (plan.microbatch_size,))
    return "".join(f"{size} or " for size in others) + _count(last, "sample")


def _class_names(graph: Graph, classes: Classes) -> dict[str, str]:
    """The user's class name of each pattern of blocks."""
    return {
        key: graph.calls[p.name].class_name if p.name in graph.calls else "Block"
        for key, p in classes.patterns.items()
        if key != ENDS
    }


def _stages(plan: Plan, blocks: list[tuple[Any, str]]) -> tuple[tuple[int, int], ...]:
    """(first, behind the last) block of each stage."""
    found = []
    start = 0
    for index in range(plan.mesh.pp * plan.virtual_stages):
        size = sum(layer.stage == index for layer, _ in blocks)
        found.append((start, start + size))
        start += size
    return tuple(found)


def _flow(plan: Plan, data: _Data, text: StageText) -> tuple[Part | Loop, ...]:
    """The parts, and the blocks between them in as few loops as there are ways to call them."""
    flow: list[Part | Loop] = []
    run: list[str] = []
    done = 0
    for layer, member, code in zip(plan.layers, data.classes.members, text.statements, strict=True):
        if member not in data.classes.parts:
            run.append(code)
            continue
        flow += _loops(run, done)
        done, run = done + len(run), []
        held = _part_parameters(data.graph, data.classes, member)
        held += _part_buffers(data.graph, data.classes, member)
        flow.append(Part(code, layer.stage, held))
    return (*flow, *_loops(run, done))


def _loops(calls: list[str], start: int) -> list[Loop]:
    """Loops over blocks; calls that alternate are told apart inside of one loop."""
    runs = [(call, len(list(same))) for call, same in groupby(calls)]
    kinds = dict.fromkeys(calls)
    if len(runs) > 2 * len(kinds):
        return [Loop(start, start + len(calls), _alternating(calls, start))]
    loops = []
    for call, count in runs:
        loops.append(Loop(start, start + count, call))
        start += count
    return loops


def _alternating(calls: list[str], start: int) -> str:
    """One statement for blocks that are called differently."""
    kinds = list(dict.fromkeys(calls))
    lines = []
    for number, call in enumerate(kinds):
        indices = tuple(start + k for k, other in enumerate(calls) if other == call)
        word = "if" if number == 0 else "elif"
        test = f"{word} index in {indices!r}:" if number < len(kinds) - 1 else "else:"
        lines += [test, *(f"    {line}" for line in call.splitlines())]
    return "\n".join(lines)


def _shared(plan: Plan, graph: Graph, classes: Classes) -> dict[str, tuple[int, ...]]:
    """Parameters that several ranks along the pipeline hold: first name, and which ranks."""
    names = {name: group[0] for group in graph.tied for name in group}
    stages: dict[str, set[int]] = {}
    for layer, member in zip(plan.layers, classes.members, strict=True):
        held = _part_parameters(graph, classes, member)
        if member not in classes.parts:
            held = tuple(name for name in names if name.startswith(f"{layer.name}."))
        for name in held:
            stages.setdefault(names.get(name, name), set()).add(layer.stage)
    ranks = {name: {s % plan.mesh.pp for s in found} for name, found in stages.items()}
    for name, found in stages.items():
        if len(ranks[name]) < len(found):
            raise PlanFormatError(
                f"{name} is in stages {sorted(found)}", where="program",
                expected="one stage of each rank at most that holds a parameter",
                hint="plan with virtual_stages=1",
            )  # fmt: skip
    return {name: tuple(sorted(found)) for name, found in ranks.items() if len(found) > 1}


def _part_parameters(graph: Graph, classes: Classes, part: str) -> tuple[str, ...]:
    """Parameters that a part outside the blocks reads, under every name that they have."""
    pattern = classes.parts.get(part)
    found: dict[str, None] = {}
    for index in pattern.ops if pattern else ():
        op = graph.ops[index]
        for name in op.inputs():
            if graph.values[name].kind == "parameter":
                source = graph.values[name].source
                names = next((group for group in graph.tied if source in group), ())
                found |= dict.fromkeys([spelled(graph, source, op.unit), *names])
    return tuple(found)


def _part_buffers(graph: Graph, classes: Classes, part: str) -> tuple[str, ...]:
    """Buffers that a part outside the blocks changes: those of its stage alone are up to date."""
    pattern = classes.parts.get(part)
    changed = [changed_buffers(graph.ops[i], graph.values) for i in pattern.ops] if pattern else []
    return tuple(dict.fromkeys(name for names in changed for name in names))


def _ends_placements(
    graph: Graph, classes: Classes, shardings: dict[str, Sharding]
) -> dict[str, str]:
    """Placement of every parameter outside the blocks, under every name that is used."""
    sharding = shardings.get(ENDS)
    if sharding is None or sharding.unsplit:
        return {}
    states = {graph.values[n].source: s for n, s in sharding.parameters.items()}
    found = {}
    for part in classes.parts:
        for name in _part_parameters(graph, classes, part):
            group = next((g for g in graph.tied if name in g), (name,))
            state = states[group[0]]
            found[name] = f"Shard({state.dim})" if state.kind == "S" else "Replicate()"
    return found


def _uneven(
    plan: Plan, blocks: list[tuple[Any, str]], split: dict[str, LayerClass], ends: dict[str, str]
) -> bool:
    """Whether dp_shard does not divide the first dim of what a tp rank has of some parameter."""
    kept = {f"{layer.name}.{name}": placement for layer, member in blocks if member in split
            for name, placement in split[member].placements.items()} | ends  # fmt: skip
    fused = {f"{layer.name}.{name}": dim_parts for layer, member in blocks if member in split
             for name, dim_parts in split[member].fused.items()}  # fmt: skip
    for name, shape, _ in plan.parameters:
        dim, parts = fused.get(name, (-1, 0))
        held = (parts if dim == 0 else shape[0]) if shape else 0
        held //= plan.mesh.tp if kept.get(name) == "Shard(0)" else 1
        if held % plan.mesh.dp_shard:
            return True
    return False


def _stops(data: _Data) -> bool:
    """Whether one of several activations that cross a cut may have no gradient behind it.

    torch 2.11 wants one of whatever a stage received.
    """
    values, crossing = data.graph.values, [c for cut in data.cuts for c in cut]
    if not crossing or all(len(cut) == 1 for cut in data.cuts):
        return False
    for pattern in (*data.classes.patterns.values(), *data.classes.parts.values()):
        for op in (data.graph.ops[i] for i in pattern.ops):
            learned = any(values[name].requires_grad for name in op.outputs)
            if not learned and set(pattern.received).intersection(op.inputs()):
                return True
    return not all(values[c.value].requires_grad for c in crossing)


def _hidden(
    graph: Graph, classes: Classes, shardings: dict[str, Sharding], cut: tuple[Crossing, ...]
) -> tuple[Tensor, ...]:
    """Shape and dtype, on one rank, of what crosses a cut."""
    found = []
    for crossing in cut:
        value = graph.values[crossing.value]
        state = shardings[classes.home(crossing.member)].boundary[crossing.value]
        found.append((local_dimensions(value, state), value.dtype))
    return tuple(found)


def _tokens(graph: Graph) -> int:
    """Tokens of one sample: the second dim of the first integer input."""
    for value in (graph.values[name] for name in graph.inputs.values()):
        if value.dtype == "int64" and len(value.shape) == 2:
            return value.shape[1].coefficient
    return 0
