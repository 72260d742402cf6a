"""The choices per layer, with neighbours that were treated alike folded into one row."""

from __future__ import annotations

from itertools import groupby

from autopar.plan import LayerPlan, Plan
from autopar.show.parts import Section, Table


def choices(layer: LayerPlan) -> tuple[object, ...]:
    """All that was decided for a layer, apart from its name; equal for layers treated alike."""
    return (layer.stage, layer.zero, layer.recompute, layer.option, split_parameters(layer))


def split_parameters(layer: LayerPlan) -> str:
    """The split modules of a layer by placement: "Shard(0): q, k, v; Shard(1): out"."""
    groups: dict[str, dict[str, None]] = {}
    for name, placements in layer.placements.items():
        module = name.removeprefix(layer.name + ".").rpartition(".")[0] or name
        for placement in placements:
            if placement != "Replicate()":
                groups.setdefault(placement, {})[module] = None
    return "; ".join(f"{placement}: {', '.join(names)}" for placement, names in groups.items())


def layer_table(plan: Plan) -> Section:
    """One row for each run of neighbouring layers with equal choices."""
    rows = []
    for _, group in groupby(plan.layers, key=choices):
        run = tuple(group)
        first = run[0]
        cells = (str(first.stage), _run_name(run), str(first.zero), first.recompute)
        rows.append((*cells, split_parameters(first) or "nothing"))
    columns = ("stage", "layers", "ZeRO", "recompute", "split over tp")
    return Section("Layers", (Table(columns, tuple(rows)),))


def _run_name(run: tuple[LayerPlan, ...]) -> str:
    if len(run) == 1:
        return run[0].name
    return f"{run[0].name} .. {run[-1].name} ({len(run)})"
