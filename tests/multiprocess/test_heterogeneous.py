"""Replicas with micro-batches of different sizes, as devices of two kinds have: equal to the
single device, with the collectives and the memory that the plan foretells for each kind."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest

import autopar
from autopar.cluster import Cluster
from autopar.heterogeneous import HeterogeneousCluster
from tests.multiprocess.models import SAMPLES, batch, build, loss_fn
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_training,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess
PLANS = [
    ("gpt", 2, {"shares": [3, 1], "zero": 0}),
    ("llama", 2, {"shares": [6, 2], "zero": 2, "recompute": "full"}),
    ("gpt", 2, {"shares": [1, 3], "zero": 3}),
    ("llama", 4, {"shares": [3, 1], "zero": 2, "tp": 2, "sequence_parallel": True}),
    ("gpt", 4, {"shares": [3, 1], "zero": 0, "tp": 1}),
]


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(("name", "devices", "pins"), PLANS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, devices, pins):
    fast = Cluster.load("a100-80g")
    slow = fast.varied(name="slow", rates={"products": 0.3, "memory": 0.3})
    cluster = HeterogeneousCluster("unequal", (fast, slow), (devices // 2, devices // 2))
    inputs, target = batch(name, 0)
    plan = autopar.plan(
        build(name), devices, inputs, loss_fn(name), target, cluster=cluster,
        global_batch_size=SAMPLES, precision="fp32", pin=pins,
    )  # fmt: skip
    assert list(dict.fromkeys(plan.shares)) == pins["shares"]
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(devices).run(train, path, name, timeout=120.0)
    # The order of samples makes no difference to these models: one reference does for all shares.
    compare_training(results, references.setdefault(name, single_device(name)))
    compare_collectives(plan, results)
    compare_memory(plan, results)


def compare_memory(plan: autopar.Plan, results: list[dict[str, Any]]) -> None:
    """Of each kind never short by more than 5 %."""
    ends = list(accumulate(kind.devices for kind in plan.kinds))
    for rank, result in enumerate(results):
        kind = plan.kinds[next(k for k, end in enumerate(ends) if rank < end)]
        measured = result["peak_bytes"]
        assert 0.95 * measured <= kind.memory_bytes <= 1.5 * measured, (rank, kind)
