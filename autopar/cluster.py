"""A kind of machine and what its operations cost: curves in SI units, each with its origin.

A cost model is one JSON file, described by ``cluster_schema.json``. Models that come with
autopar are known by name; ``autopar calibrate`` writes further ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from autopar.cluster_variant import extend
from autopar.errors import CostModelError

SCHEMA_VERSION = 1
PRECISION_DTYPE = {"fp32": "float32", "bf16": "bfloat16"}
# What a step pays beyond kernels and wire, each in seconds of one rank; see docs/cost_model.md.
OVERHEADS = {
    "op_forward": "Python and autograd of one operation in forward, beyond its launch",
    "op_backward": "the autograd engine's work for one operation, beyond its launch",
    "tp_parameter": "reading a DTensor parameter on shards, and its gradient, per micro-batch",
    "checkpoint": "recomputing one block, beyond its operations",
    "shard_forward": "the hooks of one fully_shard unit around a forward and its backward",
    "shard_gather": "one gather of a fully_shard unit, beyond the collective",
    "shard_reduce": "one reduction of a fully_shard unit, beyond the collective",
    "shard_parameter": "a step of the optimizer on one DTensor parameter, beyond a plain one",
    "clip_parameter": "norm and scaling of one parameter's gradient",
    "pipeline_action": "one forward or backward of torch's pipeline stage, beyond the block",
    "split_module": "gradients of one module's parameters in a backward pass of their own",
}
_HERE = Path(__file__).parent
_AGAIN = "write it again with `autopar calibrate -o MODEL.json`"


@dataclass(frozen=True, eq=False)
class Cluster:
    """One kind of machine; any number of nodes of it may be planned for.

    Attributes:
        device_names: parts of the names by which torch calls the device.
        memory_bytes: memory of one device; on a CPU host the share of one rank.
        devices_per_node: ranks that one node can hold.
        cores_per_node: cores that the ranks of a CPU host share, None on CUDA.
        links_per_node: network links of a node; each carries what the curves of level
            "nodes" give for one rank per node.
        calibrated: whether every curve within a node was measured on the machine itself.
        created: date of the file, ``YYYY-MM-DD``.
        provenance: for each curve its source ("measured here", "published" or "vendor"), date,
            detail, and ``fit_error`` with median and p90 of the relative error on held-out
            points, or None where nothing was measured.
        curves: efficiencies, bandwidths and seconds as in the file.

    Two clusters are equal when their files hold the same data.
    """

    name: str
    description: str
    device: Literal["cpu", "cuda"]
    device_names: tuple[str, ...]
    backend: Literal["gloo", "nccl"]
    memory_bytes: int
    devices_per_node: int
    cores_per_node: int | None
    links_per_node: int
    calibrated: bool
    created: str
    provenance: dict[str, dict[str, Any]] = field(repr=False)
    curves: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """The model known by a name, or the one in a JSON file.

        Raises:
            CostModelError: no such model or file, or its content is not a valid model.
        """
        text = os.fspath(name_or_path)
        path = _folder() / f"{text}.json" if text in known_clusters() else Path(text)
        data = read_model(path)
        if "extends" in data:
            return cls._extended(data, str(path))
        return cls.from_dict(data, where=str(path))

    @classmethod
    def _extended(cls, variant: dict[str, Any], where: str) -> Self:
        """The machine of a variant file; what it extends is known by name and no variant itself."""
        check_schema(variant, where, part="variant")
        base, names = variant["extends"], known_clusters()
        plain = base in names and "extends" not in read_model(_folder() / f"{base}.json")
        if not plain:
            raise CostModelError(
                f"extends {base!r}", expected=f"a full cost model among {', '.join(names)}",
                where=where, hint="name the machine that the variant is closest to",
            )  # fmt: skip
        return cls.from_dict(extend(cls.load(base).to_dict(), variant), where=where)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "cost model") -> Self:
        """The model that ``data``, the content of a file, describes; ``where`` names it in errors.

        Raises:
            CostModelError: another schema version, missing curves, wrong units or types,
                negative, non-monotone or ragged data.
        """
        _check(data, where)
        values = {each.name: data[each.name] for each in fields(cls)}
        return cls(**{**values, "device_names": tuple(data["device_names"])})

    @classmethod
    def default(cls) -> Self:
        """What this host has: the model of its CUDA device, or ``cpu`` where there is none.

        Raises:
            CostModelError: there is a CUDA device that no known model describes.
        """
        device = _cuda_device_name()
        if device is None:
            return cls.load("cpu")
        for cluster in map(cls.load, known_clusters()):
            if any(part in device for part in cluster.device_names):
                return cluster
        raise CostModelError(
            f"no cost model for the device {device}",
            expected=f"one of {', '.join(known_clusters())}",
            where="the default of `cluster`",
            hint="measure it with `autopar calibrate -o MODEL.json` and pass cluster=MODEL.json",
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of the file, as plain JSON data."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        units = {"time": "s", "size": "B", "work": "FLOP"}
        names = list(self.device_names)
        return {"schema_version": SCHEMA_VERSION, "units": units, **own, "device_names": names}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON (sorted keys, no spaces), as 64 hex digits."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def peak_flops(self, precision: str) -> float:
        """Highest rate of matrix products in FLOP/s, for a precision or the name of a dtype.

        Raises:
            CostModelError: the model has no curve for it.
        """
        return float(self.of_dtype("gemm", PRECISION_DTYPE.get(precision, precision))["peak_flops"])

    def of_dtype(self, curve: str, dtype: str) -> dict[str, Any]:
        """The part of ``curves[curve]`` for ``dtype``.

        Raises:
            CostModelError: the model has none.
        """
        found: dict[str, Any] | None = self.curves[curve].get(dtype)
        if found is None:
            raise CostModelError(
                f"no {curve} curve for {dtype}",
                expected=f"one of {', '.join(self.curves[curve])}",
                where=f"cost model {self.name}",
                hint="choose another precision, or " + _AGAIN.replace("write it again", "measure"),
            )
        return found

    def overhead_seconds(self, name: str, moved_bytes: float = 0.0) -> float:
        """Seconds of one overhead of the runtime: a fixed part, and ``moved_bytes`` copied.

        Args:
            name: one of ``OVERHEADS``.
            moved_bytes: size of what it copies; without effect where that was not measured.

        Returns:
            0.0 for an overhead that the model has no figure for: its provenance then names none.

        Raises:
            KeyError: no such overhead.
        """
        OVERHEADS[name]  # an unknown name would be free of charge
        found = self.curves.get("overheads", {}).get(name)
        if found is None:
            return 0.0
        rate = found.get("bytes_per_second")
        return float(found["seconds"]) + (moved_bytes / rate if rate else 0.0)

    def varied(self, **variant: Any) -> Self:
        """A machine that differs in the fields of a variant file, e.g. ``links_per_node=4``."""
        given = {"source": "vendor", "detail": "as published", **variant}
        return self.from_dict(extend(self.to_dict(), given), where=f"variant of {self.name}")

    def fit_error(self) -> dict[str, float]:
        """Median relative error on held-out points, by curve; without those never measured."""
        errors = {name: origin["fit_error"] for name, origin in self.provenance.items()}
        return {name: error["median"] for name, error in errors.items() if error is not None}

    def step_error(self) -> dict[str, float]:
        """Relative error of predicted step times on rows that no figure was fitted to.

        ``p10`` and ``p90``, and the number of ``points``; empty where none were compared.
        """
        found = self.provenance.get("step_time", {}).get("step_error", {})
        return {name: float(value) for name, value in found.items()}

    def oversubscription(self, world_size: int) -> float:
        """How many ranks take turns on a core, at least 1; 1 on CUDA.

        Example: 4 ranks on 2 cores compute at half speed each, so the result is 2.
        """
        if self.cores_per_node is None:
            return 1.0
        return max(1.0, min(world_size, self.devices_per_node) / self.cores_per_node)

    def computing_slowdown(self, world_size: int) -> float:
        """By how much longer a rank computes while all others do, over one on an idle host.

        Ranks that share a core take turns; those on cores of their own still share caches and
        memory. The curve ``crowding`` has that for two ranks; more are priced like two. 1 on CUDA.
        """
        turns = self.oversubscription(world_size)
        alone = min(world_size, self.devices_per_node, self.cores_per_node or 1) == 1
        slowdown = 0.0 if alone else float(self.curves.get("crowding", {"slowdown": 0})["slowdown"])
        return turns * (1.0 + slowdown)

    @property
    def overlap_slowdown(self) -> float:
        """Share of the shorter of computing and communication that shows when both run at once.

        0 is a perfect overlap, 1 is none: what a model without a curve assumes for CUDA and
        for the CPU, where the threads of both take turns on the cores.
        """
        assumed = 0.0 if self.device == "cuda" else 1.0
        return float(self.curves.get("overlap", {"slowdown": assumed})["slowdown"])

    def dispatch_seconds(self, group_size: int = 1) -> float:
        """Seconds in which the host issues one operation: devices wait for a slow host.

        Processes of a tp group wait for the slowest of them: ``whole_node`` is the factor for a
        group that takes all devices of a node. 0 where the model has no such curve.
        """
        curve = self.curves.get("dispatch", {"op_seconds": 0.0})
        whole = group_size >= self.devices_per_node > 1
        return float(curve["op_seconds"] * (curve.get("whole_node", 1.0) if whole else 1.0))

    def contention(self, group_size: int, world_size: int) -> float:
        """Slow-down of a collective when every rank of the world takes part in one like it.

        The curves hold the time of one group on an otherwise idle host; on a CPU host the
        other groups run on the same cores. 1 on CUDA.
        """
        group_size = min(group_size, world_size)
        return self.oversubscription(world_size) / self.oversubscription(group_size)


def known_clusters() -> tuple[str, ...]:
    """Names of the models that come with autopar, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.json")))


def _folder() -> Path:
    """``cost_models``: inside the package in an installed wheel, beside it in a checkout."""
    installed = _HERE / "cost_models"
    return installed if installed.is_dir() else _HERE.parent / "cost_models"


def _cuda_device_name() -> str | None:
    try:
        import torch  # here: a plan and its cluster are read where torch is not installed
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


# --- validation ---


def read_model(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises CostModelError if there is none."""
    names = ", ".join(known_clusters())
    try:
        data = json.loads(path.read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise CostModelError(
            f"no cost model {str(path)!r} ({error.strerror})",
            expected=f"a name ({names}) or the path of a JSON file",
            where="cluster",
            hint="`autopar clusters` lists the names; `autopar calibrate -o FILE` adds one",
        ) from error
    except ValueError as error:
        raise _invalid(f"not JSON: {error}", "one JSON object", str(path)) from error
    if not isinstance(data, dict):
        raise _invalid(f"a JSON {type(data).__name__}", "one JSON object", str(path))
    return data


def _no_number(name: str) -> float:
    """NaN would pass every comparison with a bound."""
    raise ValueError(f"{name} is no number")


def _check(data: dict[str, Any], where: str) -> None:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise _invalid(f"schema_version {version!r}", f"schema_version {SCHEMA_VERSION}", where)
    check_schema(data, where)
    if data["device"] == "cpu" and data["cores_per_node"] is None:
        expected = "cores_per_node, by which ranks on a CPU share cores"
        raise _invalid("cores_per_node null", expected, where)
    for path, table in _tables(data["curves"], "$.curves"):
        _check_table(table, f"{where}, at {path}")
    for kind, curves in data["curves"]["collectives"].items():
        groups = Counter((curve["level"], curve["size"]) for curve in curves)
        for (level, size), count in groups.items():
            if count > 1:
                raise _invalid(
                    f"{count} curves of {kind} for groups of {size}, level {level}",
                    "one per group size and level", f"{where}, at $.curves.collectives.{kind}",
                )  # fmt: skip


def check_schema(data: dict[str, Any], where: str, part: str | None = None) -> None:
    """Checks against the schema of a whole file, or against one of its ``$defs``."""
    import jsonschema  # here: it takes longer to import than all of this file's work

    schema = json.loads((_HERE / "cluster_schema.json").read_text(encoding="utf-8"))
    if part:
        schema = {"$defs": schema["$defs"], **schema["$defs"][part]}
    validator = jsonschema.Draft202012Validator(schema)
    for problem in validator.iter_errors(data):
        rule = f"{problem.validator} {json.dumps(problem.validator_value)[:120]}, in SI units"
        found = f"{problem.instance}" if problem.validator == "const" else problem.message
        raise _invalid(found[:200], rule, f"{where}, at {problem.json_path}")


def _tables(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every innermost table of the curves: the dicts that hold lists of numbers."""
    if isinstance(node, dict) and any(_numbers(value) for value in node.values()):
        yield path, node
        if "alignment" in node:
            yield f"{path}.alignment", node["alignment"]
        return
    if not isinstance(node, (dict, list)):
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield from _tables(value, f"{path}.{key}" if isinstance(key, str) else f"{path}[{key}]")


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], (int, float))


# Values of each kind of table and the axes that they run over, outermost first.
_SHAPES = (
    ("bytes_per_second", ("bytes",)),
    ("elements_per_second", ("elements",)),
    ("seconds", ("bytes",)),
    ("efficiency", ("m", "n", "k")),
    ("efficiency", ("elements",)),
    ("efficiency", ("length", "head_dim")),
)


def _check_table(table: dict[str, Any], where: str) -> None:
    values, axes = next(kind for kind in _SHAPES if {kind[0], *kind[1]} <= table.keys())
    for name in axes:
        _check_increasing(table[name], strictly=True, what=name, where=where)
    if values == "seconds":
        _check_increasing(table[values], strictly=False, what=values, where=where)
    shape = tuple(len(table[name]) for name in axes)
    found = _shape(table[values])
    if found != shape:
        raise _invalid(f"{values} of shape {found}", f"shape {shape}, from {axes}", where)


def _check_increasing(row: list[float], *, strictly: bool, what: str, where: str) -> None:
    for before, after in pairwise(row):
        if after < before or (strictly and after == before):
            rising = "increasing" if strictly else "non-decreasing"
            raise _invalid(f"{what} goes from {before} to {after}", f"{rising} {what}", where)


def _shape(nest: Any) -> tuple[int, ...] | None:
    """The shape of nested lists, None if they are ragged."""
    if not isinstance(nest, list):
        return ()
    inner = {_shape(item) for item in nest}
    if len(inner) != 1 or None in inner:
        return None
    return (len(nest), *next(shape for shape in inner if shape is not None))


def _invalid(found: str, expected: str, where: str) -> CostModelError:
    return CostModelError(found, expected=expected, where=where, hint=_AGAIN)
