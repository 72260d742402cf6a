"""Writes the cost models of machines that were not measured, from ``published/*.csv``.

Run it from anywhere: ``python calibration/published.py``. Each figure of the CSV names its
source; what is derived from them is derived here, and the provenance in the model says so.
Figures of ``published/fitted.csv`` were fitted to published runs by ``fit_published.py``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopar.calibration.points import COLLECTIVES, TRAFFIC
from autopar.cluster import Cluster
from autopar.plan_file import layout, write_atomically

HERE = Path(__file__).resolve().parent
CREATED = "2026-11-24"
KIB, MIB = 1024, 1024**2
GRID = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
LENGTHS, HEAD_DIMS = (64, 256, 1024, 4096, 16384), (32, 64, 128)
TRAFFIC_BYTES = tuple(64 * KIB * 4**i for i in range(9))
PAYLOADS = tuple(32 * KIB * 4**i for i in range(9))
REFERENCE = "a100-80g"  # the machine whose collectives have been published by size


@dataclass(frozen=True)
class Machine:
    """What distinguishes the machines besides their figures."""

    name: str
    description: str
    device_names: tuple[str, ...]


MACHINES = (
    Machine(
        "a100-80g",
        "DGX A100: 8 x A100 SXM 80 GB on NVSwitch, 8 x 200 Gb/s InfiniBand per node",
        ("A100-SXM4-80GB", "A100-SXM-80GB"),
    ),
    Machine(
        "h100-80g",
        "DGX H100: 8 x H100 SXM 80 GB on NVSwitch, 8 x 400 Gb/s InfiniBand per node",
        ("H100 80GB HBM3", "H100-SXM"),
    ),
)


CLUSTERS = tuple(machine.name for machine in MACHINES)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class Figures:
    """The CSV files, by cluster, figure and size."""

    def __init__(
        self,
        path: Path = HERE / "published" / "figures.csv",
        fitted: Mapping[str, float] | None = None,
    ) -> None:
        self.rows = [
            row
            for file in (path.with_name("fitted.csv"), path)  # what is fitted comes first
            for row in (read_rows(file) if file.exists() else [])
        ]
        self.fitted = fitted or {}

    def value(self, cluster: str, figure: str, size: str | int | None = None) -> float:
        """The one value of a figure; values that are being fitted come first."""
        if figure in self.fitted and size is None:
            return self.fitted[figure]
        return float(self._row(cluster, figure, size)["value"])

    def has(self, cluster: str, figure: str) -> bool:
        """Whether a figure of this machine itself is there."""
        return any((r["cluster"], r["figure"]) == (cluster, figure) for r in self.rows)

    def best_gemm(self, cluster: str) -> tuple[tuple[int, int, int], float]:
        """Shape and FLOP/s of the fastest product."""
        row = self._row(cluster, "best_gemm", None)
        m, n, k = map(int, row["size"].split("x"))
        return (m, n, k), float(row["value"])

    def times(self, cluster: str, size: int) -> dict[int, float]:
        """Published seconds of an all-reduce by payload, for one group size."""
        chosen = (row for row in self.rows if row["figure"] == "all_reduce_time")
        return {
            int(row["bytes"]): float(row["value"])
            for row in chosen
            if (row["cluster"], row["size"]) == (cluster, str(size))
        }

    def _row(self, cluster: str, figure: str, size: str | int | None) -> dict[str, str]:
        wanted = None if size is None else str(size)
        ranked = sorted(self.rows, key=lambda row: row["cluster"] == "all")  # own figures first
        return next(
            row
            for row in ranked
            if row["cluster"] in (cluster, "all")
            and row["figure"] == figure
            and wanted in (None, row["size"])
        )


def rounded(value: float) -> float:
    """Four digits are more than any of these figures is worth."""
    return float(f"{value:.4g}")


# --- compute ---


def fill(shape: tuple[int, int, int], waste: float, depth: float = 128) -> float:
    """How well a product fills the device, up to a factor.

    Tiles of the result are dealt out to the multiprocessors in rounds, the last of which is
    partly empty: ``waste`` tiles' time is lost on average. An inner dimension that is not much
    longer than ``depth`` does not pay for filling and emptying the pipeline of a tile. Small
    results take smaller tiles, which reuse less of what they load.
    """
    m, n, k = shape
    kinds = ((128, 256, 1.0), (128, 128, 0.9), (64, 64, 0.6))
    tiles = ((math.ceil(m / a) * math.ceil(n / b), part) for a, b, part in kinds)
    return max(part * t / (t + waste) for t, part in tiles) * k / (k + depth)


def gemm(figures: Figures, name: str, dtype: str) -> dict[str, Any]:
    """Efficiency by shape: what the best published product reaches, less what others waste."""
    shape, flops = figures.best_gemm(name)
    top = flops / figures.value(name, "peak_bfloat16")  # no shape beats the best published one
    best = figures.value(name, "sustained_gemm") * top
    waste = figures.value(name, "multiprocessors") * figures.value(name, "rounds_wasted")
    depth = figures.value(name, "pipeline_depth")
    norm = fill(shape, waste, depth)
    efficiency = [
        [
            [rounded(min(top, best * fill((m, n, k), waste, depth) / norm)) for k in GRID]
            for n in GRID
        ]
        for m in GRID
    ]
    return {
        "peak_flops": figures.value(name, f"peak_{dtype}"),
        "launch_seconds": figures.value(name, "launch"),
        "gradient_share": figures.value(name, "gradient_share"),
        "alignment": {
            "elements": [4, 8], "efficiency": [figures.value(name, f"aligned_{n}") for n in (4, 8)]
        },
        "m": list(GRID), "n": list(GRID), "k": list(GRID), "efficiency": efficiency,
    }  # fmt: skip


def attention(figures: Figures, name: str) -> dict[str, Any]:
    """The published share of the peak at head dim 128, less for short rows and narrow heads."""
    parts = {}
    for part in ("causal_forward", "causal_backward", "full_forward", "full_backward"):
        top = figures.value(name, f"attention_{part.split('_')[1]}")
        power = figures.value(name, "attention_dim_power")
        # Half of the tiles on the diagonal of a causal mask are computed for nothing.
        half = figures.value(name, "attention_half") / (1 if part.startswith("causal") else 2)
        parts[part] = {
            "launch_seconds": figures.value(name, "launch"),
            "length": list(LENGTHS),
            "head_dim": list(HEAD_DIMS),
            "efficiency": [
                [
                    rounded(top * length / (length + half) * (dim / 128) ** power)
                    for dim in HEAD_DIMS
                ]
                for length in LENGTHS
            ],
        }
    return parts


def elementwise(figures: Figures, name: str) -> dict[str, Any]:
    """Every kind is bound by memory: its bandwidth, less what a short transfer cannot hide."""
    top = figures.value(name, "memory_efficiency") * figures.value(name, "memory_bandwidth")
    ramp = top * figures.value(name, "memory_latency")
    return {
        "launch_seconds": figures.value(name, "launch"),
        "bytes": list(TRAFFIC_BYTES),
        "bytes_per_second": [rounded(top * size / (size + ramp)) for size in TRAFFIC_BYTES],
    }


def optimizer(figures: Figures, name: str, floats: int) -> dict[str, Any]:
    """An update that reads and writes ``floats`` float32 per element."""
    curve = elementwise(figures, name)
    sizes = [size // (4 * floats) for size in curve["bytes"]]
    rates = [rounded(rate / (4 * floats)) for rate in curve["bytes_per_second"]]
    return {
        "launch_seconds": curve["launch_seconds"],
        "elements": sizes,
        "elements_per_second": rates,
    }


def host_link(figures: Figures, name: str) -> dict[str, Any]:
    """The raw rate of PCIe, less line code and the headers of its packets."""
    rate = figures.value(name, "host_link_bandwidth") * figures.value(name, "host_link_payload")
    return {
        "launch_seconds": figures.value(name, "launch"),
        "bytes": [MIB],
        "bytes_per_second": [rounded(rate)],
    }


def reserve(figures: Figures, name: str) -> dict[str, Any]:
    """What a rank's device holds besides live tensors."""
    return {
        "context_bytes": int(figures.value(name, "context")),
        "communicator_bytes": int(figures.value(name, "communicator")),
        "activation_share": figures.value(name, "reserve_share"),
        "margin_bytes": int(figures.value(name, "reserve_margin")),
    }


# --- collectives ---


def overhead(figures: Figures, size: int, payload: int) -> float:
    """What the published all-reduce of the reference takes beyond its bandwidth, in seconds."""
    times = figures.times(REFERENCE, size)
    if payload < MIB / 2:  # less than was published
        return times[MIB] * figures.value(REFERENCE, "small_to_1mib")
    largest = max(times)
    nearest = min(max(payload, MIB), largest)
    return max(0.0, times[nearest] - times[largest] * nearest / largest)


def bus_bandwidth(figures: Figures, name: str, kind: str, size: int) -> float:
    """Bytes per second per rank that large payloads reach in a node."""
    if name == REFERENCE:
        times = figures.times(name, size)
        return 2 * (size - 1) / size * max(times) / times[max(times)]
    # The switch adds up all-reduces of more than 4 ranks itself.
    figure = "all_reduce_bandwidth" if kind == "all_reduce" and size == 8 else "ring_bandwidth"
    return figures.value(name, figure, size)


def traffic(kind: str, size: int) -> float:
    """Bytes that pass each rank's link per byte of payload, by the ring algorithms."""
    if kind in ("broadcast", "send_recv"):
        return 1.0
    return (2 if kind == "all_reduce" else 1) * (size - 1) / size


def in_node(figures: Figures, name: str, kind: str, size: int) -> dict[str, Any]:
    """Seconds by payload: the reference's overhead, and the transfer at the own bandwidth."""
    bandwidth = bus_bandwidth(figures, name, kind, size)
    share = figures.value(name, "node_share")
    steps = 1.0 if kind == "all_reduce" else 0.5
    seconds, least = [], 0.0
    for payload in PAYLOADS:
        transfer = traffic(kind, size) * payload / (share * bandwidth)
        least = max(least, steps * overhead(figures, size, payload) + transfer)
        seconds.append(rounded(least))
    return {"level": "node", "size": size, "bytes": list(PAYLOADS), "seconds": seconds}


def across(figures: Figures, name: str, kind: str) -> dict[str, Any]:
    """Two nodes with one rank each, on one link."""
    latency = figures.value(name, "network_latency")
    bandwidth = figures.value(name, "network_share") * figures.value(name, "link_bandwidth")
    seconds = [rounded(latency + traffic(kind, 2) * p / bandwidth) for p in PAYLOADS]
    return {"level": "nodes", "size": 2, "bytes": list(PAYLOADS), "seconds": seconds}


def collectives(figures: Figures, name: str) -> dict[str, Any]:
    """Every kind, for 2, 4 and 8 ranks of a node and for 2 nodes."""
    sizes = {kind: (2,) if kind == "send_recv" else (2, 4, 8) for kind in COLLECTIVES}
    return {
        kind: [
            *(in_node(figures, name, kind, size) for size in sizes[kind]),
            across(figures, name, kind),
        ]
        for kind in COLLECTIVES
    }


# --- the models ---

DETAILS = {
    "gemm": ("fitted to published runs", "a share of the best published bfloat16 product; by how "
             "well tiles fill the device for other shapes, and for float32 as for bfloat16"),
    "attention": ("published", "share of the peak that FlashAttention-2 reaches; how it grows with "
                  "the length is fitted to published runs"),
    "elementwise": ("fitted to published runs", "a share of the data sheet's bandwidth"),
    "optimizer": ("fitted to published runs", "28 bytes (fused AdamW) and 12 bytes (SGD) per "
                  "element at the bandwidth of element-wise operations"),
    "host_link": ("vendor", "PCIe of 16 lanes by the data sheet, 128b/130b, packets of 256 bytes "
                  "with 24 of headers"),
    "reserve": ("fitted to published runs", "context and NCCL's buffers as reported; share of the "
                "activations: the largest under which all runs of llm-foundry's FSDP fit; margin: "
                "90th percentile of nanotron's peaks less the live tensors predicted for them"),
    "collectives.in_node": ("published", "A100 all-reduce by size, H100 bus bandwidth; "
                            "other kinds by the traffic of the ring algorithms"),
    "collectives.across_nodes": ("fitted to published runs", "a share of the published bus "
                                 "bandwidth per network link, latency assumed"),
    "overlap": ("fitted to published runs", "share of the shorter of computing and communication "
                "that shows when both run at once"),
    "dispatch": ("published", "an assumption: eager PyTorch, one operation"),
}  # fmt: skip


def origin(source: str, detail: str) -> dict[str, Any]:
    """Provenance of a curve that nobody measured: it has no fit error."""
    where = "; sources in calibration/published/"
    return {"source": source, "date": CREATED, "detail": detail + where, "fit_error": None}


def provenance(figures: Figures, name: str) -> dict[str, Any]:
    """Where each curve is from, and how wrong step times are that it was not fitted to."""
    found = {curve: origin(*text) for curve, text in DETAILS.items()}
    if figures.has(name, "step_error_points"):
        found["step_time"] = {
            **origin("fitted to published runs", "published step times that were held out"),
            "step_error": {
                "p10": figures.value(name, "step_error_p10"),
                "p90": figures.value(name, "step_error_p90"),
                "points": int(figures.value(name, "step_error_points")),
            },
        }
    return found


def model(figures: Figures, machine: Machine) -> dict[str, Any]:
    """The content of one cost model file."""
    name = machine.name
    dtypes = ("bfloat16", "float32")
    return {
        "schema_version": 1,
        "name": name,
        "description": machine.description,
        "device": "cuda",
        "device_names": list(machine.device_names),
        "backend": "nccl",
        "memory_bytes": int(figures.value(name, "memory")),
        "devices_per_node": 8,
        "cores_per_node": None,
        "links_per_node": 8,
        "calibrated": False,
        "created": CREATED,
        "units": {"time": "s", "size": "B", "work": "FLOP"},
        "provenance": provenance(figures, name),
        "curves": {
            "gemm": {dtype: gemm(figures, name, dtype) for dtype in dtypes},
            "attention": {dtype: attention(figures, name) for dtype in dtypes},
            "elementwise": {kind: elementwise(figures, name) for kind in TRAFFIC},
            "optimizer": {
                "sgd": optimizer(figures, name, floats=3),
                "adamw": optimizer(figures, name, floats=7),
            },
            "host_link": host_link(figures, name),
            "reserve": reserve(figures, name),
            "collectives": collectives(figures, name),
            "overlap": {"slowdown": figures.value(name, "overlap_slowdown")},
            "dispatch": {"op_seconds": figures.value(name, "dispatch")},
        },
    }


def main(folder: Path = HERE.parent / "cost_models") -> None:
    """Writes the models into ``folder``."""
    for machine in MACHINES:
        data = model(Figures(), machine)
        path = folder / f"{machine.name}.json"
        Cluster.from_dict(data, where=str(path))
        write_atomically(path, layout(data) + "\n")


if __name__ == "__main__":
    main()
