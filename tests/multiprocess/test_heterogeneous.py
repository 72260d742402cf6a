"""Devices of two kinds: replicas with micro-batches of different sizes, and pipelines with stages
of different depths. Equal to the single device, with the collectives and the memory that the plan
foretells for each kind."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest

import autopar
from autopar.cluster import Cluster
from autopar.heterogeneous import HeterogeneousCluster
from tests.multiprocess import test_fidelity as fidelity
from tests.multiprocess.models import SAMPLES, batch, build, loss_fn
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_training,
    single_device,
    train,
)
from tests.traces import traced_once

pytestmark = pytest.mark.multiprocess
REPLICAS = [
    ("gpt", 2, {"shares": [3, 1], "zero": 0}),
    ("llama", 2, {"shares": [6, 2], "zero": 2, "recompute": "full"}),
    ("gpt", 2, {"shares": [1, 3], "zero": 3}),
    ("llama", 4, {"shares": [3, 1], "zero": 2, "tp": 2, "sequence_parallel": True}),
    ("gpt", 4, {"shares": [3, 1], "zero": 0, "tp": 1}),
]
# The kind of the first devices, and pins.
FAST, SLOW = "a100-80g", "slow"
PIPELINES = [
    ("gpt", 2, FAST, {"schedule": "1f1b", "microbatch_size": 2, "stages": [2, 1]}),
    ("llama", 2, SLOW, {"schedule": "gpipe", "recompute": "full", "stages": [1, 2]}),
    ("llama", 2, FAST, {"pp": 2, "schedule": "zero_bubble", "microbatch_size": 2}),
    ("gpt", 4, SLOW, {"pp": 2, "dp": 2, "zero": 2, "schedule": "1f1b", "microbatch_size": 2}),
    ("llama", 4, FAST, {"pp": 2, "tp": 2, "sequence_parallel": True, "stages": [3, 0]}),
    ("gpt", 4, FAST, {"dp": 2, "schedule": "gpipe", "zero": 0, "stages": [2, 1]}),
]


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return {}


def plan_on_two_kinds(
    name: str, devices: int, pins: dict[str, Any], first: str = FAST
) -> autopar.Plan:
    """Half of the devices are slow, the first or the others."""
    fast = Cluster.load("a100-80g")
    # Ranks of a CPU hold tensors alone, and these are what is measured.
    curves = {name: curve for name, curve in fast.curves.items() if name != "reserve"}
    fast = replace(fast, curves=curves)
    slow = fast.varied(name="slow", rates={"products": 0.3, "memory": 0.3})
    kinds = (fast, slow) if first == FAST else (slow, fast)
    cluster = HeterogeneousCluster("unequal", kinds, (devices // 2, devices // 2))
    inputs, target = batch(name, 0)
    with traced_once(name):
        return autopar.plan(
            build(name), devices, inputs, loss_fn(name), target, cluster=cluster,
            global_batch_size=SAMPLES, precision="fp32", pin=pins,
        )  # fmt: skip


@pytest.mark.parametrize(("name", "devices", "pins"), REPLICAS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, devices, pins):
    plan = plan_on_two_kinds(name, devices, pins)
    assert list(dict.fromkeys(plan.shares)) == pins["shares"]
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(devices).run(train, path, name, timeout=120.0)
    # The order of samples makes no difference to these models: one reference does for all shares.
    compare_training(results, references.setdefault(name, single_device(name)))
    compare_collectives(plan, results)
    compare_memory(plan, results)


@pytest.mark.parametrize(("name", "devices", "first", "pins"), PIPELINES)
def test_pipelines_equal_single_device_and_plan(
    ranks, tmp_path, references, name, devices, first, pins
):
    plan = plan_on_two_kinds(name, devices, pins, first)
    assert plan.kinds[0].cluster == first
    assert [s for kind in plan.kinds for s in kind.stages] == list(range(plan.mesh.pp))
    fidelity.check(ranks, tmp_path, references, name, plan)
    for kind in plan.kinds:  # what is compared above is what is said of each kind
        assert kind.memory_bytes == max(plan.rank_memory(s).total for s in kind.stages)


def compare_memory(plan: autopar.Plan, results: list[dict[str, Any]]) -> None:
    """Of each kind never short by more than 5 %."""
    ends = list(accumulate(kind.devices for kind in plan.kinds))
    for rank, result in enumerate(results):
        kind = plan.kinds[next(k for k, end in enumerate(ends) if rank < end)]
        measured = result["peak_bytes"]
        assert 0.95 * measured <= kind.memory_bytes <= 1.5 * measured, (rank, kind)
