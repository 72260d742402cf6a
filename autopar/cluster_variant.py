"""Hardware that differs from a known machine in a few figures: a small file that extends it.

    {"schema_version": 1, "extends": "a100-80g", "name": "a100-40g", "created": "2026-11-24",
     "description": "...", "memory_bytes": 40000000000,
     "rates": {"memory": 0.763}, "source": "vendor", "detail": "HBM2 of 1,555 GB/s, data sheet"}

``rates`` are speeds relative to the machine that is extended; those of attention come on top of
``products``. Latencies stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

# Fields that a variant may replace as they stand.
FIELDS = (
    "name", "description", "device_names", "memory_bytes", "devices_per_node", "links_per_node",
    "created",
)  # fmt: skip
Curves = dict[str, Any]


def _products(curves: Curves, rate: float) -> None:
    """Attention is given as a share of the same peak."""
    for curve in curves["gemm"].values():
        curve["peak_flops"] *= rate
        if "gradient" in curve:
            curve["gradient"]["peak_flops"] *= rate


def _attention(direction: str) -> Callable[[Curves, float], None]:
    """Another kernel: a share of the same peak, of which there is no more than all."""

    def scale(curves: Curves, rate: float) -> None:
        for parts in curves["attention"].values():
            for name, curve in parts.items():
                if name.endswith(direction):
                    curve["efficiency"] = [
                        [min(1.0, value * rate) for value in row] for row in curve["efficiency"]
                    ]

    return scale


def _memory(curves: Curves, rate: float) -> None:
    for kind, name in (("elementwise", "bytes_per_second"), ("optimizer", "elements_per_second")):
        for curve in curves[kind].values():
            curve[name] = [value * rate for value in curve[name]]


def _transfers(level: str) -> Callable[[Curves, float], None]:
    """Seconds beyond the latency, which is the time of the smallest payload."""

    def scale(curves: Curves, rate: float) -> None:
        for curve in (c for kind in curves["collectives"].values() for c in kind):
            if curve["level"] == level:
                first = curve["seconds"][0]
                curve["seconds"] = [first + (s - first) / rate for s in curve["seconds"]]

    return scale


# What each rate scales, and the provenance that it touches.
RATES: dict[str, tuple[Callable[[Curves, float], None], tuple[str, ...]]] = {
    "products": (_products, ("gemm", "attention")),
    "attention_forward": (_attention("forward"), ("attention",)),
    "attention_backward": (_attention("backward"), ("attention",)),
    "memory": (_memory, ("elementwise", "optimizer")),
    "node_links": (_transfers("node"), ("collectives.in_node",)),
    "network": (_transfers("nodes"), ("collectives.across_nodes",)),
}


# Figures that a variant may set, and where they stand among the curves.
_FIGURES = {
    "dispatch_seconds": ("dispatch", "op_seconds"),
    "dispatch_whole_node": ("dispatch", "whole_node"),
    "overlap_slowdown": ("overlap", "slowdown"),
}


def extend(base: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a full cost model: ``base`` with what ``variant`` changes.

    Curves that a rate touches are no longer measured: their provenance names the base, the
    rate and the variant's own source, and has no fit error.
    """
    data = deepcopy(dict(base))
    data.update({name: variant[name] for name in FIELDS if name in variant})
    for name, rate in variant.get("rates", {}).items():
        scale, touched = RATES[name]
        scale(data["curves"], rate)
        for curve in touched:
            origin = data["provenance"].get(curve)
            if origin is not None:
                detail = f"{variant['detail']}; {rate:g} times the {name} of {base['name']}"
                data["provenance"][curve] = {
                    "source": variant["source"], "date": data["created"],
                    "detail": f"{detail} ({origin['detail']})", "fit_error": None,
                }  # fmt: skip
    if variant.get("rates"):
        data["provenance"].pop("step_time", None)  # measured steps were those of the base
    for name, (curve, figure) in _FIGURES.items():
        if name in variant:
            data["curves"].setdefault(curve, {})[figure] = variant[name]
    data["calibrated"] = base["calibrated"] and not variant.get("rates")
    return data
