"""From timed toys to the overheads of a cost model: differences, less what is priced elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autopar.calibration.points import OVERHEAD_PARAMETERS, OVERHEAD_UNITS
from autopar.calibration.rows import Rows
from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.simulator import simulate

Curve = dict[int, float]
# Operations of a toy block that have a kernel: a norm, two products, an activation and a sum.
_OPS = 5
# Kernels that their backward launches: two per product, one for each of the rest.
_BACKWARD_OPS = 7
# Modules of a toy block with parameters, and what it sends: 8 rows of 16 numbers.
_MODULES, _SENT_BYTES = 3, 8 * 16 * 4
_HALVINGS = 50


def overheads(rows: Rows, draft: Cluster) -> dict[str, dict[str, float]]:
    """Seconds, and bytes per second where the size shows, of each overhead that was timed.

    Args:
        rows: raw samples.
        draft: a cluster with the other curves: what these price is taken off.
    """
    times = _times(rows)
    if not times:
        return {}
    per_unit = {name: _each(curve, OVERHEAD_UNITS) for name, curve in times.items()}
    hooks = _less(per_unit["unreduced"], per_unit["both"])
    gather = _less(per_unit["zero3"], per_unit["zero2"])
    reduce = _less(_less(per_unit["zero0"], per_unit["both"]), hooks)
    smallest = min(times["both"])
    forward, both = per_unit["forward"][smallest], per_unit["both"][smallest]
    found = {
        "op_forward": {"seconds": _own(forward / _OPS - _launch(draft))},
        "op_backward": {"seconds": _own((both - forward) / _BACKWARD_OPS - _launch(draft))},
        "checkpoint": {"seconds": _own(per_unit["checkpoint"][smallest] - both - forward)},
        "shard_forward": {"seconds": _own(hooks[smallest])},
        "shard_gather": _line(_net(gather, draft, "all_gather")),
        "shard_reduce": _line(_net(reduce, draft, "all_reduce")),
    }
    found |= _pipelines(times, per_unit, draft)
    for name, (split, plain) in _PER_PARAMETER.items():
        rest = times[plain] if plain else {}
        seconds = times[split][smallest] - rest.get(smallest, 0.0)
        found[name] = {"seconds": _own(seconds / OVERHEAD_PARAMETERS)}
    return found


_PER_PARAMETER = {
    "tp_parameter": ("read_split", "read_plain"),
    "shard_parameter": ("update_split", "update_plain"),
    "clip_parameter": ("clip", ""),
}


def crowding(rows: Rows, cores: int | None) -> dict[str, float]:
    """By what share two ranks that compute at once are slower than one.

    Empty on CUDA, where two ranks share a core, and where it was not measured.
    """
    times = _times(rows)
    if (cores or 1) < 2 or not {"alone", "together"} <= times.keys():
        return {}
    alone, together = (min(times[toy].values()) for toy in ("alone", "together"))
    return {"slowdown": _own(together / alone - 1.0)}


def _times(rows: Rows) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for point in rows.points():
        if point.curve == "overheads":
            found.setdefault(point.variant, {})[point.shape[0]] = rows.seconds(point)
    return found


def _each(curve: Curve, count: int) -> Curve:
    return {size: seconds / count for size, seconds in curve.items()}


def _less(curve: Mapping[int, float], other: Mapping[int, float]) -> Curve:
    return {size: curve[size] - other[size] for size in curve if size in other}


def _net(curve: Curve, draft: Cluster, kind: str) -> Curve:
    pair = Group(2, 2)
    return {b: s - collective_seconds(draft, kind, b, pair) for b, s in curve.items()}


def _launch(draft: Cluster) -> float:
    """Mean launch of the kernels of a toy block."""
    traffic, gemm = draft.curves["elementwise"], draft.curves["gemm"]["float32"]
    kinds = [traffic[kind]["launch_seconds"] for kind in ("elementwise", "activation")]
    kinds.append(traffic["normalization"]["launch_seconds"])
    return float(sum(kinds) + 2 * gemm["launch_seconds"]) / _OPS


def _pipelines(
    times: dict[str, Curve], per_unit: dict[str, Curve], draft: Cluster
) -> dict[str, dict[str, float]]:
    """What the simulated toys lack: for every action, and for every module whose W is apart."""
    size = min(times["both"])
    forward, both = (per_unit[toy][size] for toy in ("forward", "both"))
    wire = collective_seconds(draft, "send_recv", _SENT_BYTES, Group(2, 2))

    def plain(action: float) -> float:
        passes = [forward + action] * 2, [both - forward + action] * 2
        return simulate("1f1b", *passes, wire, wire, OVERHEAD_UNITS).makespan

    action = _where(plain, times["pipeline"][size])

    def split(module: float) -> float:
        half = (both - forward) / 2 + action
        weight = half + _MODULES * module  # torch does not divide the first stage's backward
        return simulate(
            "zero_bubble", [forward + action] * 2, [both - forward + action, half + weight],
            wire, wire, OVERHEAD_UNITS, weight_seconds=[0.0, weight],
        ).makespan  # fmt: skip

    module = _where(split, times.get("pipeline_split", {}).get(size, 0.0))
    return {"pipeline_action": {"seconds": action}, "split_module": {"seconds": module}}


def _where(step: Callable[[float], float], seconds: float) -> float:
    """The overhead at which a step, which grows with it, takes so long; none is negative."""
    low, high = 0.0, seconds
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if step(middle) < seconds else (low, middle)
    return _own(low)


def _line(curve: Curve) -> dict[str, float]:
    """A fixed part and a rate through the smallest and the largest size."""
    small, large = min(curve), max(curve)
    fixed = _own(curve[small])
    slope = (curve[large] - fixed) / large
    line = {"seconds": fixed}
    return line | {"bytes_per_second": float(f"{1 / slope:.4g}")} if slope > 1e-12 else line


def _own(seconds: float) -> float:
    """Noise must not make an overhead negative."""
    return float(f"{max(0.0, seconds):.4g}")
