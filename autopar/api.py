"""The two verbs: ``plan`` decides, ``parallelize`` runs what was decided."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from autopar.cluster import Cluster
from autopar.errors import UsageError
from autopar.garbage import spare_what_exists
from autopar.heterogeneous import HeterogeneousCluster, load_cluster
from autopar.planner import Request, make_plan
from autopar.public_plan import Plan
from autopar.solve.pins import plain
from autopar.workload import Workload, as_workload, check_planned, load_workload

__all__ = ["Workload", "as_workload", "load_workload", "parallelize", "plan"]

Progress = Callable[[int, int, float | None, float], None]


def plan(
    model: nn.Module,
    world_size: int,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    example_target: Any = None,
    cluster: str | os.PathLike[str] | Cluster | HeterogeneousCluster | None = None,
    global_batch_size: int | None = None,
    optimizer: str | int = "adamw",
    precision: str = "bf16",
    memory_limit: float | None = None,
    pin: dict[str, Any] | None = None,
    gap: float = 0.01,
    time_limit: float = 60.0,
    progress: Progress | None = None,
    *,
    solver: str = "highs",
    workload: str = "",
) -> Plan:
    """Finds the fastest way to train ``model`` on ``world_size`` devices.

    Args:
        model: any module; it may be on ``meta``, and it is neither run nor changed.
        world_size: number of devices.
        example_inputs: tuple of positional or dict of keyword inputs; dim 0 of every tensor
            is the batch. Default: the model's ``dummy_inputs`` or ``example_input_array``.
        loss_fn: ``(output, target) -> scalar``; default: the ``loss`` of the model's output.
        example_target: second argument of ``loss_fn``.
        cluster: name or path of a cost model, or a ``Cluster``; for devices of two kinds a
            ``HeterogeneousCluster`` or its file; default: this host.
        global_batch_size: samples per optimizer step; default: batch of the example times
            ``world_size``.
        optimizer: "sgd", "adamw", or bytes of state per parameter.
        precision: "fp32", or "bf16" (bf16 compute, fp32 master state).
        memory_limit: bytes per device, or a fraction of the device's memory up to 1.
        pin: decisions to fix, e.g. ``{"tp": 4, "recompute": "full", "stages": [13, 13, 6]}``; the
            rest is completed. ``zero`` and ``recompute`` also by layer, ``stage`` by layer and
            ``placement`` by parameter: ``{"recompute": {"model.layers.0": "full"}, "stage":
            {"model.layers.7": 1}, "placement": {"*.up_proj.weight": "Shard(0)"}}``.
        gap: relative distance from the optimum that is good enough.
        time_limit: seconds after which the best plan so far is returned.
        progress: called with (done, total, best step seconds or None, bound in seconds).
        solver: "highs" or "cbc".
        workload: "module:function" that made the model, kept for ``emit`` and ``run``.

    Raises:
        UsageError: an argument or a pin that no plan could honour.
        TraceError: the model cannot be captured.
        CostModelError: the cost model is unknown or unusable.
        InfeasiblePlanError: nothing fits; the message says by how much and what would.
    """
    work = Workload(model, example_inputs, loss_fn, example_target, global_batch_size)
    request = Request(
        work, world_size, _machines(cluster), optimizer, precision, memory_limit,
        plain(pin or {}), gap, time_limit, progress, solver, workload,
    )  # fmt: skip
    with spare_what_exists():
        return Plan.of(make_plan(request))


def _machines(
    cluster: str | os.PathLike[str] | Cluster | HeterogeneousCluster | None,
) -> Cluster | HeterogeneousCluster:
    if isinstance(cluster, (Cluster, HeterogeneousCluster)):
        return cluster
    return Cluster.default() if cluster is None else load_cluster(cluster)


def parallelize(model: nn.Module, plan: Plan) -> Any:
    """This rank's part of ``model`` under ``plan``; called on every rank under torchrun.

    Imports the same program that ``plan.emit`` writes. Returns its ``ParallelModel``. A loop that
    calls its ``seed(step)`` before each step draws the same dropout again when it is resumed. Where
    the plan has optimizer state in host memory, ``.optimizer(torch.optim.AdamW, lr=...)`` of it
    makes the optimizer that keeps it there.

    Raises:
        UsageError: the number of ranks is not the plan's, or the model is not the planned one.
    """
    from autopar.run.load import load_program

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != plan.world_size:
        raise UsageError(
            f"{world} ranks", expected=f"{plan.world_size}, as planned", where="WORLD_SIZE",
            hint=f"torchrun --nproc-per-node {plan.world_size} ..., or plan for {world}",
        )  # fmt: skip
    check_planned(model, plan.parameters)
    return load_program(plan).parallelize(model)
