"""Why a layer is as it is, as a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from autopar.explain import Alternative
from autopar.plan import LayerPlan, Plan
from autopar.show.layers import choices, split_parameters
from autopar.show.parts import Facts, Section, Table
from autopar.show.report import TIME_PARTS, Report
from autopar.show.units import duration, percent, size

QUESTIONS = {"recompute": ("none", "selective", "full"), "zero": (0, 2, 3)}


def explain_report(
    plan: Plan, layer: LayerPlan, alternatives: Sequence[Alternative], path: str
) -> Report:
    """The layer's decisions, its stage, and what each alternative would cost."""
    sections = [_layer(plan, layer), _stage(plan, layer)]
    if alternatives:
        rows = tuple(_row(plan, other) for other in alternatives)
        columns = ("instead", "per step", "memory", "why not")
        sections.append(Section("Why not", (Table(columns, rows),)))
    title = f"{layer.name} of {plan.model}, plan {plan.plan_id}"
    return Report(title, _verdict(layer), tuple(sections), _questions(plan, layer, path))


def _verdict(layer: LayerPlan) -> str:
    split = split_parameters(layer) or "nothing is split over tp"
    return f"stage {layer.stage}, ZeRO {layer.zero}, recompute {layer.recompute}; {split}"


def _layer(plan: Plan, layer: LayerPlan) -> Section:
    alike = [other.name for other in plan.layers if choices(other) == choices(layer)]
    notes = [note for note in plan.notes if layer.name in note]
    rows = [
        ("treated alike", f"{len(alike)} of {len(plan.layers)}: {alike[0]} to {alike[-1]}"),
        ("pinned", ", ".join(f"{k}={v}" for k, v in plan.pins.items()) or "nothing"),
        *(("note", note) for note in notes),
    ]
    return Section("Layer", (Facts(tuple(rows)),))


def _stage(plan: Plan, layer: LayerPlan) -> Section:
    """What the layer competes for: the time and the memory of its rank."""
    passes = plan.stages[layer.stage].prediction.passes
    rank, width = layer.stage % plan.mesh.pp, plan.mesh.dp * plan.mesh.tp
    used, limit = plan.rank_memory(rank).total, plan.limit_bytes(layer.stage)
    rows = (
        ("stage", f"{layer.stage}, ranks {rank * width} to {(rank + 1) * width - 1}"),
        ("layers", str(len(plan.stages[layer.stage].layers))),
        ("forward, backward", f"{duration(passes.forward_seconds)},"
         f" {duration(passes.backward_seconds)} per micro-batch"),
        ("memory", f"{size(used)} of {size(limit)}: {size(limit - used)} left"),
    )  # fmt: skip
    return Section("Its stage", (Facts(rows),))


def _row(plan: Plan, other: Alternative) -> tuple[str, ...]:
    asked = " ".join(f"{kind}={value}" for kind, value in other.asked.items())
    if other.plan is None:
        return asked, "-", "-", other.refused
    found = other.plan.prediction
    return asked, duration(found.step_seconds), size(found.memory_bytes), reason(plan, other)


def reason(plan: Plan, other: Alternative) -> str:
    """How much slower an alternative is, and by what; or that it is as good."""
    assert other.plan is not None
    ratio = other.plan.prediction.step_seconds / plan.prediction.step_seconds - 1
    if ratio <= 0:
        gap = percent(plan.solver.gap)
        return f"{percent(-ratio)} faster: the plan is proven within {gap} of the optimum"
    part = TIME_PARTS.get(other.part, other.part)
    return f"{percent(ratio)} slower, most by {part} ({duration(other.seconds)} more)"


def _questions(plan: Plan, layer: LayerPlan, path: str) -> tuple[str, ...]:
    """A command that asks for the other values of what was decided for the layer."""
    asked = [
        f"--why-not {kind}={value}"
        for kind, values in QUESTIONS.items()
        for value in values
        if value != getattr(layer, kind) and (kind == "recompute" or plan.mesh.dp > 1)
    ]
    asked.append(f"--why-not tp={2 * plan.mesh.tp}")
    return (f"autopar explain {shlex.quote(path)} {shlex.quote(layer.name)} {' '.join(asked)}",)
