"""Replicas with micro-batches of different sizes, as devices of two kinds have: equal to the
single device, with the collectives and the memory that the plan foretells for each kind."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import pytest
import torch

import autopar
from autopar.cluster import Cluster
from autopar.heterogeneous import HeterogeneousCluster
from tests.multiprocess.models import SAMPLES, batch, build, loss_fn
from tests.multiprocess.programs import full_gradients, load_program
from tests.multiprocess.test_fidelity import (
    RATE,
    STEPS,
    compare_collectives,
    compare_training,
    single_device,
)

pytestmark = pytest.mark.multiprocess
PLANS = [
    ("gpt", 2, {"shares": [3, 1], "zero": 0}),
    ("llama", 2, {"shares": [6, 2], "zero": 2, "recompute": "full"}),
    ("gpt", 2, {"shares": [1, 3], "zero": 3}),
    ("llama", 4, {"shares": [3, 1], "zero": 2, "tp": 2, "sequence_parallel": True}),
    ("gpt", 4, {"shares": [3, 1], "zero": 0, "tp": 1}),
]


def train(path: str, name: str) -> dict[str, Any]:
    """Runs on every rank; collectives are counted in the second step."""
    from autopar.run.live import PeakBytes
    from tests.multiprocess.collectives import CountCollectives

    program = load_program(path)
    parallel = program.parallelize(build(name))
    optimizer = program.optimizer_for(parallel, RATE)
    losses, gradients, counter = [], {}, CountCollectives()
    memory = PeakBytes([*parallel.parameters(), *parallel.buffers()])
    for step in range(STEPS):
        inputs, target = program.share_of(equal_shares(name), step)
        with memory, counter if step == 1 else nullcontext():
            loss = parallel.forward_backward(inputs, target)
        if step == 0:
            gradients = full_gradients(parallel)
        with memory:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "losses": losses, "gradients": gradients, "parameters": parallel.full_state_dict(),
        "kinds": counter.kinds, "peak_bytes": memory.peak,
    }  # fmt: skip


def equal_shares(name: str) -> Any:
    """A data function, as ``--data`` names one."""

    def cut(value: Any, rank: int, size: int) -> Any:
        if isinstance(value, torch.Tensor):
            return value.chunk(size)[rank]
        if isinstance(value, dict):
            return {key: cut(item, rank, size) for key, item in value.items()}
        return tuple(cut(item, rank, size) for item in value) if value is not None else None

    def share(step: int, batch_size: int, rank: int, size: int) -> Any:
        assert batch_size * size == SAMPLES
        return cut(batch(name, step), rank, size)

    return share


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
