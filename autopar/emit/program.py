"""From a plan to the text of its program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from autopar import graph_json
from autopar.emit.body import spelled
from autopar.emit.chassis import Program, Tensor, render
from autopar.emit.layers import StageText, layer_classes, stage_text
from autopar.emit.lines import wrap
from autopar.emit.source import local_dimensions
from autopar.errors import PlanFormatError
from autopar.graph import Graph
from autopar.plan import Plan
from autopar.plan_file import write_atomically
from autopar.strategies.patterns import ENDS, Classes
from autopar.strategies.sharding import Sharding
from autopar.strategies.sharding_json import decode_pattern, decode_sharding

CALL_WIDTH = 84


@dataclass(frozen=True)
class _Data:
    """The plan's program data, decoded; ``notes`` are comments by (value, target state)."""

    graph: Graph
    classes: Classes
    shardings: dict[str, Sharding]
    notes: dict[tuple[str, str], str]


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
        classes = Classes(patterns, parts, tuple(plan.program["members"]))
        shardings = {n: decode_sharding(s) for n, s in plan.program["shardings"].items()}
        notes = {(value, state): note for value, state, note in plan.program["notes"]}
    except (KeyError, TypeError, ValueError) as error:
        raise PlanFormatError(f"the plan's program data is unreadable: {error!r}",
                              where="program", hint="plan this model again") from error  # fmt: skip
    return render(_program(plan, _Data(graph, classes, shardings, notes), model, file_name))


def _program(plan: Plan, data: _Data, model: str, file_name: str) -> Program:
    graph, classes, shardings, notes = data.graph, data.classes, data.shardings, data.notes
    split, _ = layer_classes(graph, classes, shardings, _class_names(graph, classes), notes)
    text = stage_text(graph, classes, shardings, notes)
    blocks = [(layer, member) for layer, member in zip(plan.layers, classes.members, strict=True)
              if member not in classes.parts]  # fmt: skip
    ends = [
        layer for layer, m in zip(plan.layers, classes.members, strict=True) if m in classes.parts
    ]
    mesh = plan.mesh
    return Program(
        title=f"{plan.model} on {_count(plan.world_size, 'rank')}: {_count(mesh.pp, 'stage')}"
        f" x {mesh.dp} data x {mesh.tp} tensor",
        summary=_summary(plan),
        pp=mesh.pp,
        dp=mesh.dp,
        tp=mesh.tp,
        global_batch=plan.global_batch_size,
        microbatch=plan.microbatch_size,
        inputs=tuple(n for n, key in text.inputs.items() if key != "target"),
        blocks=tuple(layer.name for layer, _ in blocks),
        stages=_stages(plan, blocks),
        zero=tuple(layer.zero for layer, _ in blocks),
        recompute=tuple(layer.recompute for layer, _ in blocks),
        layers=tuple(split[m].name if m in split else None for _, m in blocks),
        parameters=plan.parameters,
        embed="\n".join(text.embed),
        call=_call(text, [m for _, m in blocks]),
        head="\n".join(text.head),
        ends_zero=ends[0].zero if ends else 0,
        classes=tuple(layer.source for layer in split.values()),
        ends_placements=_ends_placements(graph, classes, shardings),
        first=_part_parameters(graph, classes, "embedding"),
        last=_part_parameters(graph, classes, "head"),
        tied=graph.tied,
        hidden=(_hidden(graph, classes, shardings),) * (mesh.pp - 1),
        context="\n".join(text.context),
        schedule=plan.schedule,
        precision=plan.precision,
        predicted_step_seconds=plan.prediction.step_seconds,
        predicted_memory_bytes=plan.prediction.memory_bytes,
        workload=model or plan.workload,
        tokens_per_sample=_tokens(graph),
        file_name=file_name,
    )


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"


def _summary(plan: Plan) -> tuple[str, ...]:
    """Plan and prediction in a few lines for the docstring."""
    origin = "calibrated" if plan.cluster.calibrated else "from published figures"
    step, memory = plan.prediction.step_seconds, plan.prediction.memory_bytes
    schedule = f", {plan.schedule}" if plan.mesh.pp > 1 else ""
    return (
        f"Plan {plan.plan_id}: {_count(plan.num_microbatches, 'micro-batch', 'es')}"
        f" of {_count(plan.microbatch_size, 'sample')}{schedule}.",
        f"Predicted: {1e3 * step:.2f} ms a step and {memory / 2**30:.2f} GiB on the fullest rank",
        f"by the cost model {plan.cluster.name} ({origin}).",
    )


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
    for index in range(plan.mesh.pp):
        size = sum(layer.stage == index for layer, _ in blocks)
        found.append((start, start + size))
        start += size
    return tuple(found)


def _call(text: StageText, members: list[str]) -> str:
    """The statement that runs block ``index``; classes called differently are told apart."""
    by_arguments: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        by_arguments.setdefault(text.calls[member], []).append(index)
    calls = [(f"hidden = self.run(index, {arguments})", indices)
             for arguments, indices in by_arguments.items()]  # fmt: skip
    if len(calls) == 1:
        return "\n".join(wrap(calls[0][0], CALL_WIDTH))
    lines = []
    for number, (call, indices) in enumerate(calls):
        word = "if" if number == 0 else "elif"
        test = f"{word} index in {tuple(indices)!r}:" if number < len(calls) - 1 else "else:"
        lines += [test, *(f"    {line}" for line in wrap(call, CALL_WIDTH - 4))]
    return "\n".join(lines)


def _part_parameters(graph: Graph, classes: Classes, part: str) -> tuple[str, ...]:
    """Parameters that embedding or head read, as the generated code spells them."""
    pattern = classes.parts.get(part)
    found: dict[str, None] = {}
    for index in pattern.ops if pattern else ():
        op = graph.ops[index]
        for name in op.inputs():
            if graph.values[name].kind == "parameter":
                found[spelled(graph, graph.values[name].source, op.unit)] = None
    return tuple(found)


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


def _hidden(graph: Graph, classes: Classes, shardings: dict[str, Sharding]) -> tuple[Tensor, ...]:
    """Shape and dtype, on one rank, of what travels between stages."""
    key = next(m for m in classes.members if m not in classes.parts)
    pattern = classes.patterns[key]
    value = graph.values[pattern.received or pattern.sent or ""]
    shape = local_dimensions(value, shardings[key].boundary[value.name])
    return ((shape, value.dtype),)


def _tokens(graph: Graph) -> int:
    """Tokens of one sample: the second dim of the first integer input."""
    for value in (graph.values[name] for name in graph.inputs.values()):
        if value.dtype == "int64" and len(value.shape) == 2:
            return value.shape[1].coefficient
    return 0
