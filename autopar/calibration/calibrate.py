"""Measures this host and writes its cost model."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autopar.calibration.fit import collective_curves, compute_curves, fit_errors
from autopar.calibration.fit_overheads import crowding, overheads
from autopar.calibration.kernels import Kernels
from autopar.calibration.points import COLLECTIVES, SWEEPS
from autopar.calibration.ranks import group_sizes, measure_collectives
from autopar.calibration.rows import Rows
from autopar.calibration.sampling import measure
from autopar.cluster import SCHEMA_VERSION, Cluster, known_clusters
from autopar.errors import CostModelError
from autopar.plan_file import layout, write_atomically

Progress = Callable[[str, int, int], None]

CPU_RANKS = 4
# Ranks of one host; the memory of a CPU host is shared out among those that are usual.
_MOST_CPU_RANKS = 64
# What the share of compute in the budget is; the rest goes to collectives.
_COMPUTE_SHARE = 0.55
_SAMPLED = "low percentile of interleaved samples; error on held-out points"
_DETAIL = {
    "collectives": "median of interleaved samples; error on held-out points",
    "contention": "median of interleaved samples",
    "overheads": "difference of toy steps on two ranks, less what other curves price",
    "crowding": "steps of a toy on two ranks at once over those on one",
}


@dataclass(frozen=True)
class Host:
    """What is measured: ``name`` is torch's name of the device, or that of the processor."""

    device: str
    name: str
    memory_bytes: int
    devices: int
    cores: int | None


def calibrate(
    output: Path,
    *,
    budget_seconds: float = 180.0,
    ranks: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measures the device of this host and writes its cost model to ``output``.

    Raw samples are appended to ``output`` with the suffix ``.csv``; where that file exists,
    the run continues it. The model gets the name of the file.

    Args:
        output: path of the JSON file; it is written whole or not at all.
        budget_seconds: when to stop sampling; every point is sampled twice even so.
        ranks: largest number of local ranks that talk to each other; default 4 on a CPU and
            every device on CUDA. Where fewer than 2 are there, collectives are those of the
            known model of the same device.
        progress: called with what is measured, and how much of it is done and to be done.

    Returns:
        ``output``.

    Raises:
        CostModelError: ranks failed, the CSV file is of another device, or collectives can
            neither be measured nor taken over.
        PlanFormatError: the output cannot be written.
    """
    started, report = time.monotonic(), progress or _silent
    host = this_host()
    ranks = min(ranks or (CPU_RANKS if host.device == "cpu" else host.devices), host.devices)
    rows = _compute(
        host, output.with_suffix(".csv"), started + _COMPUTE_SHARE * budget_seconds, report
    )
    rows = _collectives(host, rows, ranks, started + budget_seconds, report)
    model = _model(host, rows, ranks, output.stem)
    Cluster.from_dict(model, where=str(output))
    write_atomically(output, layout(model) + "\n")
    return output


def _silent(label: str, done: int, total: int) -> None:
    """Nobody watches."""


def this_host() -> Host:
    """The CUDA device of this host, else its processor."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return Host("cuda", torch.cuda.get_device_name(), memory, torch.cuda.device_count(), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // CPU_RANKS
    return Host("cpu", _processor(), memory, _MOST_CPU_RANKS, cores or 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# --- measuring ---


def _compute(host: Host, path: Path, deadline: float, report: Progress) -> Rows:
    rows = Rows(path, host.name)
    points = SWEEPS[host.device].compute_points()
    with _one_thread(host):
        sampler = Kernels(host.device).seconds
        measure(rows, points, sampler, deadline, partial(report, f"computing on {host.name}"))
    return rows


@contextmanager
def _one_thread(host: Host) -> Iterator[None]:
    """As torchrun sets it for each of several ranks; launching CUDA kernels needs no more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _collectives(host: Host, rows: Rows, ranks: int, deadline: float, report: Progress) -> Rows:
    """Every group size gets an equal part of what is left of the time."""
    sizes = group_sizes(ranks)
    worlds = [(2, 2)] * bool(sizes) + [(size, ranks) for size in sizes if ranks > 2]
    for done, (size, world) in enumerate(worlds):
        report(f"collectives of {size} ranks", done, len(worlds))
        share = max(1.0, deadline - time.monotonic()) / (len(worlds) - done)
        measure_collectives(rows.path, host.device, host.name, size, world, share)
    return Rows(rows.path, host.name)


# --- the model ---


def _model(host: Host, rows: Rows, ranks: int, name: str) -> dict[str, Any]:
    curves = compute_curves(rows)
    known = _same_device(host)
    measured = bool(group_sizes(ranks))
    curves["collectives"] = collective_curves(rows) if measured else _taken_over(host, known)
    if known is not None and measured and host.device == "cuda":
        for kind in COLLECTIVES:
            curves["collectives"][kind] += _across_nodes(known, kind)
    draft = _head(host, name, known, measured) | {"curves": curves}
    draft["provenance"] = _provenance(curves, {}, known, measured)
    if measured:
        curves["overheads"] = overheads(rows, Cluster.from_dict(draft))
        curves |= {"crowding": found} if (found := crowding(rows, host.cores)) else {}
    elif known is not None and "overheads" in known.curves:
        curves["overheads"] = known.curves["overheads"]
    errors = fit_errors(rows, Cluster.from_dict(draft))
    provenance = _provenance(curves, errors, known, measured)
    if host.device == "cuda":
        curves["reserve"], provenance["reserve"] = reserve_of(known)
    return draft | {"provenance": provenance}


def reserve_of(known: Cluster | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a device holds besides tensors, and the origin of these figures.

    They are not measured here: those of the known model of the device, or of an H100.
    """
    source = known or Cluster.load("h100-80g")
    origin = source.provenance["reserve"]
    detail = f"taken over from {source.name}: {origin['detail']}"
    return source.curves["reserve"], {**origin, "detail": detail}


def _head(host: Host, name: str, known: Cluster | None, measured: bool) -> dict[str, Any]:
    threads = "one thread per rank, " if host.device == "cpu" else ""
    cores = f"{host.cores} cores" if host.cores else f"{host.devices} devices"
    cuda = host.device == "cuda"
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "description": f"{host.name}, {cores}, {threads}torch {torch.__version__}",
        "device": host.device,
        "device_names": [host.name] if cuda else [],
        "backend": "nccl" if cuda else "gloo",
        "memory_bytes": host.memory_bytes,
        "devices_per_node": known.devices_per_node if known and cuda else host.devices,
        "cores_per_node": host.cores,
        "links_per_node": known.links_per_node if known and cuda else 1,
        "calibrated": measured,
        "created": _today(),
        "units": {"time": "s", "size": "B", "work": "FLOP"},
    }


def _provenance(
    curves: dict[str, Any], errors: dict[str, Any], known: Cluster | None, measured: bool
) -> dict[str, Any]:
    """Origin and error of each curve; curves that were taken over keep theirs."""
    names = [f"{curve}.{dtype}" for curve in ("gemm", "attention") for dtype in curves[curve]]
    names += ["elementwise", "optimizer", "host_link"]
    names += [f"collectives.{kind}" for kind in COLLECTIVES] if measured else []
    names += [f"overheads.{name}" for name in curves.get("overheads", ())] if measured else []
    names += ["crowding"] if measured and "crowding" in curves else []
    names += ["contention"] if "contention" in errors else []
    own = {
        name: {
            "source": "measured here",
            "date": _today(),
            "detail": _DETAIL.get(name.partition(".")[0], _SAMPLED),
            "fit_error": errors.get(name),
        }
        for name in names
    }
    return own if known is None else {**_taken_over_origins(known, measured), **own}


def _taken_over_origins(known: Cluster, measured: bool) -> dict[str, Any]:
    """Of the collectives, all or, where those of one node were measured, the rest."""
    kept = (
        ("collectives.across_nodes",) if measured else ("collectives.", "contention", "overheads.")
    )
    return {name: origin for name, origin in known.provenance.items() if name.startswith(kept)}


def _same_device(host: Host) -> Cluster | None:
    """The known model of this device; for a CPU host the model ``cpu``, if it has been shipped."""
    known = [Cluster.load(name) for name in known_clusters()]
    if host.device == "cpu":
        return next((cluster for cluster in known if cluster.name == "cpu"), None)
    return next((c for c in known if any(part in host.name for part in c.device_names)), None)


def _taken_over(host: Host, known: Cluster | None) -> dict[str, Any]:
    if known is not None:
        return dict(known.curves["collectives"])
    raise CostModelError(
        "fewer than 2 ranks, so no collective can be measured",
        expected="2 devices or more, or a device that a known model describes",
        where=f"calibration of {host.name}",
        hint="calibrate with --ranks 2 or more, on a host with as many devices",
    )


def _across_nodes(known: Cluster, kind: str) -> list[dict[str, Any]]:
    return [c for c in known.curves["collectives"][kind] if c["level"] == "nodes"]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
