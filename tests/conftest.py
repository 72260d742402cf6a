"""Fixtures that several test files share."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from autopar.plan import (
    Baseline,
    LayerPlan,
    Memory,
    Mesh,
    Passes,
    Plan,
    Prediction,
    Provenance,
    SolverReport,
    StagePlan,
    StagePrediction,
)

GIB = 1024**3
# How long an example takes says nothing on a shared host.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
RANKS = "tests/multiprocess/"


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """``pytest -n 2`` runs the tests of a file in one process, as they share fixtures and caches.

    Those that start ranks are one more group, so that no two of them share the cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return RANKS if file.startswith(RANKS) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Which process of several runs which tests."""
    return ByFile(config, log)


def _stage(layers: tuple[str, ...]) -> StagePlan:
    memory = Memory(4 * GIB, 2 * GIB, 8 * GIB, 3 * GIB, GIB // 2, GIB // 10)
    passes = Passes(0.11, 0.22, 0.1, 0.001, GIB, 0)
    prediction = StagePrediction(0.1, 0.2, 0.03, 0.001, 0.02, 0.004, memory, passes=passes)
    return StagePlan(layers, prediction)


def _block(index: int) -> LayerPlan:
    name = f"blocks.{index}"
    placements = {
        f"{name}.norm.weight": ("Replicate()",),
        f"{name}.up.weight": ("Shard(0)",),
        f"{name}.up.bias": ("Shard(0)",),
        f"{name}.down.weight": ("Shard(1)",),
    }
    return LayerPlan(name, index // 3, placements, 2, "selective", "tp2")


@pytest.fixture
def sample_plan() -> Plan:
    """A made-up plan of six blocks on two stages; its figures mean nothing."""
    layers = tuple(_block(index) for index in range(6))
    names = tuple(layer.name for layer in layers)
    breakdown = {
        "compute": 0.5,
        "tp_comm": 0.1,
        "dp_comm": 0.02,
        "pp_comm": 0.01,
        "bubble": 0.06,
        "optimizer": 0.01,
    }
    return Plan(
        model="Toy",
        world_size=16,
        global_batch_size=64,
        optimizer="adamw",
        precision="bf16",
        memory_limit_bytes=80 * GIB,
        mesh=Mesh(pp=2, dp=4, tp=2),
        microbatch_size=2,
        num_microbatches=8,
        schedule="1f1b",
        virtual_stages=1,
        stages=(_stage(names[:3]), _stage(names[3:])),
        layers=layers,
        prediction=Prediction(0.7, 18 * GIB, breakdown, 91.4, 0.41, {"all_reduce": 12}),
        solver=SolverReport("optimal", 0.004, 0.6972, 1.5, {"solved": 3, "pruned": 40}),
        baselines=(
            Baseline("ddp", "data parallel", None, 190 * GIB, "short by 110.0 GiB"),
            Baseline("megatron", "tp in the node", 0.91, 30 * GIB),
            Baseline("fsdp", "ZeRO-3 everywhere", 0.84, 20 * GIB),
        ),
        cluster=Provenance("h100-80g", "ab" * 32, False, "vendor and papers", {"gemm": 0.05}),
        pins={"tp": 2, "sequence_parallel": False},
        parameters=tuple((f"{name}.up.weight", (8, 4), "float32") for name in names),
        program={"classes": [{"ops": [1, 2.5, None, "x"], "empty": {}}]},
        notes=("2 ops could not be split: aten.cumsum",),
        workload="toy.py:workload",
    )
