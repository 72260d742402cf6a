"""From raw samples to the curves of a cost model, and how far these miss held-out points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from autopar.calibration.points import (
    ATTENTION,
    ATTENTION_LAUNCH,
    COLLECTIVES,
    GEMM_LAUNCH,
    LAYOUTS,
    OPTIMIZERS,
    TRAFFIC,
    TRAFFIC_LAUNCH,
    UPDATE_LAUNCH,
    Point,
)
from autopar.calibration.rows import Rows
from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.compute import (
    attention_seconds,
    elementwise_seconds,
    gemm_seconds,
    optimizer_seconds,
)
from autopar.cost.offload import copy_seconds

Times = dict[tuple[int, ...], float]


# --- curves ---


def compute_curves(rows: Rows) -> dict[str, Any]:
    """All curves of one device; times of launching are taken off before rates are formed."""
    dtypes = sorted({p.variant.split("/")[0] for p in rows.points() if p.curve == "gemm"})
    gemm = {dtype: _products(rows, dtype) for dtype in dtypes}
    return {
        "gemm": gemm,
        "attention": {dtype: _attention(rows, dtype, gemm[dtype]["peak_flops"]) for dtype in gemm},
        "elementwise": {
            kind: _rates(_times(rows, "elementwise", kind), TRAFFIC_LAUNCH, "bytes")
            for kind in TRAFFIC
        },
        "optimizer": {
            kind: _rates(_times(rows, "optimizer", kind), UPDATE_LAUNCH, "elements")
            for kind in OPTIMIZERS
        },
        "host_link": _rates(_times(rows, "host_link", "copy"), TRAFFIC_LAUNCH, "bytes"),
    }


def collective_curves(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Seconds by payload for each kind and measured group size."""
    return {kind: _sizes(_times(rows, "collectives", kind)) for kind in COLLECTIVES}


def _times(rows: Rows, curve: str, variant: str) -> Times:
    """Seconds by shape of the points that shape a curve."""
    chosen = (
        p for p in rows.points() if (p.curve, p.variant, p.held_out) == (curve, variant, False)
    )
    return {point.shape: rows.seconds(point) for point in chosen}


def _net(seconds: float, launch: float) -> float:
    """Seconds of the work itself; noise must not make it vanish."""
    return max(seconds - launch, 0.1 * seconds)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _products(rows: Rows, dtype: str) -> dict[str, Any]:
    """Products of a layer's forward, and of both gradients, of which a layer has one each."""
    forward, *backward = (_times(rows, "gemm", f"{dtype}/{layout}") for layout in LAYOUTS)
    shapes = set(backward[0]).intersection(*backward[1:])
    both = {shape: _mean([times[shape] for times in backward]) for shape in shapes}
    return _gemm(forward) | ({"gradient": _gemm(both)} if GEMM_LAUNCH in both else {})


def _gemm(times: Times) -> dict[str, Any]:
    launch = times[GEMM_LAUNCH]
    rates: Times = {
        (m, n, k): 2 * m * n * k / _net(seconds, launch)
        for (m, n, k), seconds in times.items()
        if (m, n, k) != GEMM_LAUNCH
    }
    peak = max(rates.values())
    axes = [sorted({shape[i] for shape in rates}) for i in range(3)]
    efficiency = [
        [[_rounded(_nearest(rates, (m, n, k), axes) / peak) for k in axes[2]] for n in axes[1]]
        for m in axes[0]
    ]
    return {
        "peak_flops": _rounded(peak), "launch_seconds": _rounded(launch),
        "m": axes[0], "n": axes[1], "k": axes[2], "efficiency": efficiency,
    }  # fmt: skip


def _nearest(rates: Times, shape: tuple[int, ...], axes: list[list[int]]) -> float:
    """The rate at ``shape``; a product too large to measure takes that of a smaller one."""
    while shape not in rates:
        longest = max(range(3), key=lambda i: shape[i])
        axis = axes[longest]
        smaller = axis[axis.index(shape[longest]) - 1]
        shape = (*shape[:longest], smaller, *shape[longest + 1 :])
    return rates[shape]


def _attention(rows: Rows, dtype: str, peak: float) -> dict[str, Any]:
    return {
        part: _scores(_times(rows, "attention", f"{dtype}/{part}"), part, peak)
        for part in ATTENTION
    }


def _scores(times: Times, part: str, peak: float) -> dict[str, Any]:
    launch = times.pop(ATTENTION_LAUNCH)
    products = (5 if part.endswith("backward") else 2) / (2 if part.startswith("causal") else 1)
    rates = {
        (length, dim): products * 2 * heads * length**2 * dim / _net(seconds, launch)
        for (heads, length, dim), seconds in times.items()
    }
    lengths, dims = (sorted({shape[i] for shape in rates}) for i in range(2))
    return {
        "launch_seconds": _rounded(launch), "length": lengths, "head_dim": dims,
        "efficiency": [[_rounded(min(1.0, rates[s, d] / peak)) for d in dims] for s in lengths],
    }  # fmt: skip


def _rates(times: Times, launch_shape: tuple[int, ...], unit: str) -> dict[str, Any]:
    launch = times.pop(launch_shape)
    sizes = sorted(times)
    rates = [_rounded(size[0] / _net(times[size], launch)) for size in sizes]
    return {
        "launch_seconds": _rounded(launch), unit: [size[0] for size in sizes],
        f"{unit}_per_second": rates,
    }  # fmt: skip


def _sizes(times: Times) -> list[dict[str, Any]]:
    """Seconds by payload, one curve per group size."""
    curves = []
    for size in sorted({shape[1] for shape in times}):
        payloads = sorted(shape[0] for shape in times if shape[1] == size)
        seconds = [_rounded(v) for v in _rising([times[b, size, 1] for b in payloads])]
        curves.append({"level": "node", "size": size, "bytes": payloads, "seconds": seconds})
    return curves


def _rising(values: list[float]) -> list[float]:
    """The nearest series that never falls: more payload takes no less time, the rest is noise.

    Neighbours in the wrong order share their geometric mean, until none are left (pool
    adjacent violators; Barlow et al., 1972).
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([math.log(value)])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [math.exp(_mean(pool)) for pool in pools for _ in pool]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- errors on held-out points ---


def fit_errors(rows: Rows, cluster: Cluster) -> dict[str, dict[str, float | int]]:
    """Median and 90th percentile of the relative error by curve, as provenance names them."""
    errors: dict[str, list[float]] = {}
    for point in rows.points():
        if point.held_out:
            missed = abs(_price(cluster, point) / rows.seconds(point) - 1)
            errors.setdefault(curve_name(point), []).append(missed)
    return {name: _summary(values) for name, values in errors.items()}


def curve_name(point: Point) -> str:
    """The key under which the provenance of a point's curve stands."""
    if point.curve == "collectives" and point.shape[2] > 1:
        return "contention"
    if point.curve in ("gemm", "attention", "collectives"):
        return f"{point.curve}.{point.variant.split('/')[0]}"
    return point.curve


def _summary(values: Iterable[float]) -> dict[str, float | int]:
    ordered = sorted(values)
    count = len(ordered)
    median, p90 = (_rounded(ordered[int(part * (count - 1) + 0.5)]) for part in (0.5, 0.9))
    return {"median": median, "p90": p90, "points": count}


def _price(cluster: Cluster, point: Point) -> float:
    return _PRICES[point.curve](cluster, point.variant, point.shape)


def _gemm_price(cluster: Cluster, variant: str, shape: tuple[int, ...]) -> float:
    dtype, layout = variant.split("/")
    return gemm_seconds(cluster, *shape, dtype, gradient=layout != "linear")


def _attention_price(cluster: Cluster, variant: str, shape: tuple[int, ...]) -> float:
    heads, length, head_dim = shape
    dtype, part = variant.split("/")
    return attention_seconds(
        cluster, batch=1, heads=heads, query_length=length, key_length=length, head_dim=head_dim,
        dtype=dtype, causal=part.startswith("causal"), backward=part.endswith("backward"),
    )  # fmt: skip


def _collective_price(cluster: Cluster, variant: str, shape: tuple[int, ...]) -> float:
    payload, size, groups = shape
    seconds = collective_seconds(cluster, variant, payload, Group(size, size))
    return seconds * cluster.contention(size, size * groups)


_PRICES: dict[str, Callable[[Cluster, str, tuple[int, ...]], float]] = {
    "gemm": _gemm_price,
    "attention": _attention_price,
    "elementwise": lambda cluster, kind, shape: elementwise_seconds(cluster, shape[0], kind),
    "optimizer": lambda cluster, kind, shape: optimizer_seconds(cluster, shape[0], kind),
    "host_link": lambda cluster, _, shape: copy_seconds(cluster, shape[0], 1),
    "collectives": _collective_price,
}
