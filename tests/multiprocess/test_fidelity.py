"""Every choice of the search space, planned by pins, emitted and run: equal to the single device,
with the collectives that the plan foretells."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import autopar
from autopar.cluster import Cluster
from tests.multiprocess.models import SAMPLES, batch, build, loss_fn, loss_of
from tests.multiprocess.precision import (
    compare_training,
    computing_in_float64,
    in_float64,
    load_in_float64,
    nudged,
    unchanged,
)
from tests.multiprocess.programs import full_gradients, load_program
from tests.traces import traced_once

pytestmark = pytest.mark.multiprocess
STEPS, RATE = 3, 3e-4

# (pp, dp, tp) and further pins; between them each zero mode, recompute, schedule and layout.
PLANS = [
    (1, 1, 2, {"sequence_parallel": False}),
    (1, 1, 2, {"sequence_parallel": True, "recompute": "full"}),
    (1, 2, 1, {"zero": 0, "microbatch_size": 2}),
    (1, 2, 1, {"zero": 1, "microbatch_size": 2}),
    (1, 2, 1, {"zero": 2, "microbatch_size": 2}),
    (1, 2, 1, {"zero": 3, "microbatch_size": 2, "recompute": "full"}),
    (2, 1, 1, {"schedule": "1f1b", "microbatch_size": 2}),
    (2, 1, 1, {"schedule": "gpipe", "microbatch_size": 2, "recompute": "full"}),
    (2, 2, 1, {"zero": 3, "schedule": "1f1b", "microbatch_size": 1}),
    (1, 2, 2, {"zero": 2, "sequence_parallel": True, "microbatch_size": 2}),
    (2, 1, 2, {"sequence_parallel": True, "microbatch_size": 2}),
    (2, 2, 2, {"zero": 0, "sequence_parallel": False, "recompute": "full"}),
    (1, 2, 1, {"zero": 3, "microbatch_size": 2, "recompute": "selective"}),
    (1, 1, 2, {"sequence_parallel": True, "recompute": "selective"}),
    (2, 1, 2, {"sequence_parallel": False, "microbatch_size": 2, "recompute": "selective"}),
    (2, 2, 2, {"zero": 3, "sequence_parallel": True, "schedule": "gpipe", "microbatch_size": 1}),
]


@pytest.fixture(scope="session")
def references() -> dict[str, dict[str, Any]]:
    return {}


def single_device(
    name: str, microbatch: int = 0, dp: int = 1, *, exact: bool = False, nudge: int = 0,
    samples: int = SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """Losses, first gradients and last parameters; micro-batches run one after the other.

    A step has ``samples`` of them, in one micro-batch unless told otherwise. They are global ones:
    what ``dp`` ranks with ``microbatch`` samples each run at a time. ``exact`` computes in float64,
    ``nudge`` is the seed of another start (``nudged``).
    """
    cast, microbatch = in_float64 if exact else unchanged, microbatch or samples
    precise = computing_in_float64 if exact else nullcontext
    model = cast(nudged(build(name), nudge))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses, gradients, unused = [], {}, []
    for step in range(STEPS):
        total = 0.0
        for inputs, target in split(cast(batch(name, step, samples)), microbatch, dp, samples):
            with precise():
                loss = loss_of(name, model, inputs, target) * (dp * microbatch / samples)
                loss.backward()
            total += loss.item()
        if step == 0:
            found = {n: p.grad for n, p in model.named_parameters()}
            gradients = {n: grad.clone() for n, grad in found.items() if grad is not None}
            unused = [n for n, grad in found.items() if grad is None]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return {
        "losses": losses, "gradients": gradients, "unused": unused,
        "parameters": model.state_dict(),
    }  # fmt: skip


def split(value: Any, size: int, dp: int = 1, samples: int = SAMPLES) -> list[Any]:
    """The global micro-batches of a nest of tensors; what is no tensor belongs to each.

    Each of ``dp`` ranks has a contiguous share, of which a micro-batch takes ``size`` samples.
    """
    if isinstance(value, torch.Tensor):
        return list(value.unflatten(0, (dp, -1, size)).transpose(0, 1).flatten(1, 2))
    parts = samples // (size * dp)
    if isinstance(value, dict):
        columns = [split(item, size, dp, samples) for item in value.values()]
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(value, tuple):
        columns = [split(item, size, dp, samples) for item in value]
        return list(zip(*columns, strict=True)) or [()] * parts
    return [value] * parts


def share(value: Any, parallel: Any) -> Any:
    """The part of a nest of global tensors that this rank reads, without the others' memory."""
    if isinstance(value, dict):
        return {key: share(item, parallel) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(share(item, parallel) for item in value)
    tensor = isinstance(value, torch.Tensor)
    return value.chunk(parallel.dp_size)[parallel.dp_rank].clone() if tensor else value


def read(program: Any, parallel: Any, whole: Any) -> Any:
    """This rank's part of a global batch: one share, or several where ranks have unequal ones."""
    if not hasattr(program, "share_of"):
        return share(whole, parallel)

    def equal(step: int, batch_size: int, rank: int, size: int) -> Any:
        return share(whole, SimpleNamespace(dp_rank=rank, dp_size=size))

    return program.share_of(equal, step=0)


def train(path: str, name: str, *, exact: bool = False, samples: int = SAMPLES) -> dict[str, Any]:
    """Runs on every rank; collectives are counted in the second step.

    ``exact`` computes in float64.
    """
    from autopar.run.live import PeakBytes
    from tests.multiprocess.collectives import CountCollectives

    cast = in_float64 if exact else unchanged
    precise = computing_in_float64 if exact else nullcontext
    program = load_in_float64(path) if exact else load_program(path)
    parallel = program.parallelize(cast(build(name)))
    optimizer = program.optimizer_for(parallel, RATE)
    losses, gradients, size, counter = [], {}, 0.0, CountCollectives()
    memory = PeakBytes([*parallel.parameters(), *parallel.buffers()])
    if hasattr(program, "host_like"):
        program.host_like = memory.elsewhere(program.host_like)
    for step in range(STEPS):
        inputs, target = read(program, parallel, cast(batch(name, step, samples)))
        with precise(), memory, counter if step == 1 else nullcontext():
            loss = parallel.forward_backward(inputs, target)
        if step == 0:
            gradients = full_gradients(parallel)
            # Nothing is clipped, so only the norm that all ranks agree on is computed.
            size = parallel.clip_grad_norm_(math.inf).item()
        with memory:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    state = parallel.full_state_dict()
    return {
        "losses": losses, "gradients": gradients, "parameters": state, "kinds": counter.kinds,
        "peak_bytes": memory.peak, "host_bytes": memory.away_peak, "norm": size,
    }  # fmt: skip


def make_plan(
    name: str, pp: int, dp: int, tp: int, pins: dict[str, Any], precision: str = "fp32",
    cluster: str | Cluster = "h100-80g",
) -> autopar.Plan:  # fmt: skip
    degrees = {"pp": pp, "dp": dp, "tp": tp}
    return plan_freely(name, pp * dp * tp, degrees | pins, precision, cluster)


def plan_freely(
    name: str, devices: int, pins: dict[str, Any], precision: str = "fp32",
    cluster: str | Cluster = "h100-80g", samples: int = SAMPLES,
) -> autopar.Plan:  # fmt: skip
    inputs, target = batch(name, 0)
    with traced_once(name):
        return autopar.plan(
            build(name), devices, inputs, loss_fn(name), target, cluster=cluster,
            global_batch_size=samples, precision=precision, pin=pins,
        )  # fmt: skip


def these_cpus() -> Cluster:
    """What the ranks run on, for models whose kernels on CPUs keep more than those of GPUs.

    Its host memory is as far away as a GPU's, so that plans with it have a price.
    """
    data = Cluster.load("cpu").to_dict()
    curves = {**data["curves"], "host_link": Cluster.load("h100-80g").curves["host_link"]}
    return Cluster.from_dict({**data, "name": "cpu-and-host", "curves": curves})


@pytest.mark.parametrize("name", ["gpt", "gpt2", "llama"])
@pytest.mark.parametrize(("pp", "dp", "tp", "pins"), PLANS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    check(ranks, tmp_path, references, name, make_plan(name, pp, dp, tp, pins))


def check(
    ranks: Any, tmp_path: Path, references: dict[str, Any], name: str, plan: autopar.Plan
) -> None:
    """Runs a plan; loss, gradients, parameters, collectives and memory are as they should be."""
    pp, dp, tp = plan.mesh.pp, plan.mesh.dp, plan.mesh.tp
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(pp * dp * tp).run(train, path, name, timeout=120.0)
    compare(plan, results, references.setdefault(name, single_device(name)))


def compare(plan: autopar.Plan, results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Losses, gradients and parameters of the single device; collectives and memory of the plan."""
    compare_training(results, reference)
    compare_collectives(plan, results)
    compare_memory(plan, results)


def compare_collectives(plan: autopar.Plan, results: list[dict[str, Any]]) -> None:
    """Each rank issues as many of each kind as its stages were priced with."""
    for rank, result in enumerate(results):
        along = rank // (plan.mesh.dp * plan.mesh.tp)
        foretold: Counter[str] = Counter()
        for stage in plan.stages[along :: plan.mesh.pp]:
            foretold.update(stage.prediction.collectives)
        assert result["kinds"] == foretold, f"rank {rank}"


def compare_memory(plan: autopar.Plan, results: list[dict[str, Any]]) -> None:
    """No rank holds 5 % more than planned, the fullest of a stage no less than two thirds.

    What is largest need not be there at the same moment, and others may hold less: a dim of 4 is
    2, 2 and 0 rows on three ranks.
    """
    stage = plan.mesh.dp * plan.mesh.tp
    for first in range(0, len(results), stage):
        along = first // stage
        foretold = plan.rank_memory(along).live, plan.host_bytes(along)
        for kind, predicted in zip(("peak_bytes", "host_bytes"), foretold, strict=True):
            seen = [result[kind] for result in results[first : first + stage]]
            message = f"{kind} of ranks {first} to {first + stage - 1}: {seen}, not {predicted}"
            assert 0.95 * max(seen) <= predicted <= 1.5 * max(seen), message


@pytest.mark.parametrize("name", ["gpt", "gpt2", "llama"])
def test_bf16_follows_the_single_device(ranks, tmp_path, references, name):
    pins = {"zero": 3, "sequence_parallel": True, "recompute": "full"}
    plan = make_plan(name, 1, 2, 2, pins, precision="bf16")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(4).run(train, path, name, timeout=120.0)
    reference = references.setdefault(name, single_device(name))
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], rel=1e-2)
        assert result["kinds"] == plan.stages[0].prediction.collectives


@pytest.mark.parametrize("name", ["vit", "convolutions"])
def test_bf16_casts_images(ranks, tmp_path, references, name):
    """Inputs that are no tokens: parameters and images have one dtype."""
    plan = make_plan(name, 1, 2, 1, {"zero": 2, "microbatch_size": 2}, precision="bf16")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    reference = references.setdefault(name, single_device(name))
    for result in ranks(2).run(train, path, name, timeout=120.0):
        assert result["losses"] == pytest.approx(reference["losses"], rel=1e-2)
