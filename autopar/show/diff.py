"""What differs between two plans: first what was decided, then what is predicted of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autopar.plan import Plan
from autopar.plan_file import content_hash
from autopar.show.parts import Section, Table
from autopar.show.report import Report

DECISIONS = (
    "mesh", "microbatch_size", "num_microbatches", "schedule", "virtual_stages", "layers", "pins",
    "offload", "exchange",
)  # fmt: skip
INPUTS = (
    "model", "world_size", "global_batch_size", "optimizer", "precision", "memory_limit_bytes",
    "workload", "cluster", "parameters",
)  # fmt: skip
PREDICTIONS = ("prediction", "kinds", "stages", "baselines", "runners_up", "notes", "program")


Kind = Literal["decision", "input", "prediction"]
GROUPS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("decision", "Decisions", DECISIONS),
    ("input", "What was asked for", INPUTS),
    ("prediction", "Predictions", PREDICTIONS),
)


@dataclass(frozen=True)
class Difference:
    """One field that differs; ``path`` reads like Python, absent values are None."""

    kind: Kind
    path: str
    first: Any
    second: Any


def diff(first: Plan, second: Plan) -> list[Difference]:
    """Every difference, decisions first. How long the solver took is no difference."""
    left, right = _fields(first), _fields(second)
    return [
        Difference(kind, path, before, after)
        for kind, _, names in GROUPS
        for name in names
        for path, before, after in _differences(name, left[name], right[name])
    ]


def _fields(plan: Plan) -> dict[str, Any]:
    """The plan as nested data, its layers by name: a moved stage border is then one change."""
    data = asdict(plan)
    data["layers"] = {layer.pop("name"): layer for layer in data["layers"]}
    data["baselines"] = {base.pop("name"): base for base in data["baselines"]}
    data["parameters"] = {name: f"{dtype}{list(shape)}" for name, shape, dtype in plan.parameters}
    # The stages' layers are told by the layers' stages; the program follows from the decisions.
    data["stages"] = [stage["prediction"] for stage in data["stages"]]
    data["program"] = "sha256 " + content_hash(plan.program)[:12]
    return data


def _differences(path: str, first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    if first == second:
        return
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys((*first, *second)):
            yield from _differences(_join(path, key), first.get(key), second.get(key))
    elif _long(first) and _long(second):
        for index in range(max(len(first), len(second))):
            yield from _differences(f"{path}[{index}]", _item(first, index), _item(second, index))
    else:
        yield path, first, second


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]"


def _long(value: Any) -> bool:
    """Whether a sequence is compared item by item: records are, short tuples of names are not."""
    return isinstance(value, (list, tuple)) and any(isinstance(i, (dict, tuple)) for i in value)


def _item(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else None


def diff_report(differences: list[Difference], names: tuple[str, str]) -> Report:
    """The differences as a report with one section for each kind."""
    sections = []
    for kind, title, _ in GROUPS:
        found = [item for item in differences if item.kind == kind]
        rows = tuple((item.path, _cell(item.first), _cell(item.second)) for item in found)
        if rows:
            sections.append(Section(title, (Table(("field", *names), rows),)))
    count = len(differences)
    verdict = "The plans are equal." if not count else f"The plans differ in {count} field(s)."
    return Report(" against ".join(names), verdict, tuple(sections))


def _cell(value: Any, limit: int = 80) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."
