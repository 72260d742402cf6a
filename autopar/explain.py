"""Why a layer is as it is: what else was asked for, and what that would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from autopar.errors import InfeasiblePlanError, UsageError
from autopar.plan import LayerPlan, Plan

# Decisions of single layers; all others are the plan's.
OF_LAYERS = ("zero", "recompute", "stage")
OF_MESH = ("pp", "dp", "tp", "dp_shard")

Planner = Callable[[dict[str, Any]], Plan]


@dataclass(frozen=True)
class Alternative:
    """The best plan with other decisions, or the reason why there is none.

    ``part`` is the kind of time of which it has most more than the plan, of the kinds of
    ``Prediction.breakdown``; ``seconds`` how much more.
    """

    asked: dict[str, Any]
    plan: Plan | None = None
    refused: str = ""
    part: str = ""
    seconds: float = 0.0


def find_layer(plan: Plan, name: str) -> LayerPlan:
    """The layer of that name.

    Raises:
        UsageError: there is none; names those that are spelled alike.
    """
    names = [layer.name for layer in plan.layers]
    if name not in names:
        near = get_close_matches(name, names) or [names[0], "...", names[-1]]
        raise UsageError(f"layer {name!r}", expected="a layer of the plan", where="LAYER",
                         hint=", ".join(near))  # fmt: skip
    return plan.layers[names.index(name)]


def check_asked(plan: Plan, layer: LayerPlan, asked: Mapping[str, Any]) -> None:
    """Refuses to ask for what the plan does.

    Raises:
        UsageError: all that is asked for is decided like that.
    """
    if all(_chosen(plan, layer, kind) == value for kind, value in asked.items()):
        words = ", ".join(f"{kind}={value}" for kind, value in asked.items())
        raise UsageError(words, expected="something that the plan does not do",
                         where="--why-not", hint="another value")  # fmt: skip


def alternative(
    plan: Plan, layer: LayerPlan, asked: Mapping[str, Any], make: Planner
) -> Alternative:
    """What becomes of the plan where ``asked`` is pinned beside what the user had pinned.

    Decisions of ``OF_LAYERS`` are those of ``layer`` alone. ``make`` plans under pins.
    """
    try:
        found = make(pins_with(plan.pins, layer.name, asked))
    except InfeasiblePlanError as error:
        return Alternative(dict(asked), refused=_in_a_line(error))
    own, other = plan.prediction.breakdown, found.prediction.breakdown
    more = {part: other.get(part, 0.0) - own.get(part, 0.0) for part in {**own, **other}}
    part = max(more, key=lambda key: more[key])
    return Alternative(dict(asked), found, part=part, seconds=more[part])


def pins_with(pins: Mapping[str, Any], layer: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The user's pins with what is asked for; for single layers it comes before what was there."""
    found = dict(pins)
    for kind, value in asked.items():
        if kind not in OF_LAYERS:
            found[kind] = value
            continue
        before = found.get(kind, {})
        rest = before if isinstance(before, dict) else {"*": before}
        found[kind] = {layer: value, **{key: rest[key] for key in rest if key != layer}}
    return found


def _chosen(plan: Plan, layer: LayerPlan, kind: str) -> Any:
    """What the plan has decided; None for what is not compared."""
    owner: Any = layer if kind in OF_LAYERS else plan.mesh if kind in OF_MESH else plan
    return getattr(owner, kind, None)


def _in_a_line(error: InfeasiblePlanError) -> str:
    return error.found + (f"; {error.hint}" if error.hint else "")
