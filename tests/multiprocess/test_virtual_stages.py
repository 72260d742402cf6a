"""Several stages per rank, and backward in two parts: equal to the single device and the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import autopar
from autopar.cluster import Cluster
from autopar.cluster_variant import extend
from autopar.errors import UsageError
from tests.machine import HOST
from tests.multiprocess.case import SAMPLES
from tests.multiprocess.precision import compare_in_float64
from tests.multiprocess.test_fidelity import (
    batch,
    build,
    check,
    loss_fn,
    make_plan,
    single_device,
    train,
)
from tests.traces import traced_once

pytestmark = pytest.mark.multiprocess
Pins = dict[str, Any]

# Model with its number of blocks, (pp, dp, tp) and further pins.
INTERLEAVED: list[tuple[str, int, int, int, Pins]] = [
    ("gpt:4", 2, 1, 1, {"virtual_stages": 2, "microbatch_size": 2}),
    ("llama:4", 2, 1, 1, {"virtual_stages": 2, "microbatch_size": 1, "recompute": "full"}),
    ("gpt2:5", 2, 2, 1, {"virtual_stages": 2, "microbatch_size": 1, "zero": 3}),
    ("llama:6", 2, 2, 1, {"virtual_stages": 3, "microbatch_size": 2, "zero": 0}),
    ("gpt:4", 2, 1, 2, {"virtual_stages": 2, "microbatch_size": 2, "sequence_parallel": True}),
    ("gpt2:4", 2, 2, 2, {"virtual_stages": 2, "zero": 2, "sequence_parallel": False}),
    # torch frees and gathers parameters of more than three stages per rank by turns
    ("gpt:8", 2, 2, 1, {"virtual_stages": 4, "microbatch_size": 1, "zero": 2}),
    ("gpt:8", 2, 2, 1, {"virtual_stages": 4, "microbatch_size": 1, "zero": 3}),
]
ZERO_BUBBLE: list[tuple[str, int, int, int, Pins]] = [
    ("gpt", 2, 1, 1, {"virtual_stages": 1, "microbatch_size": 2}),
    ("llama:4", 2, 1, 1, {"virtual_stages": 2, "microbatch_size": 1}),
    ("gpt2", 2, 2, 1, {"virtual_stages": 1, "microbatch_size": 1, "zero": 2}),
    ("llama:4", 2, 2, 1, {"virtual_stages": 2, "microbatch_size": 2, "zero": 0}),
    # gradients of what a stage receives that are not contiguous
    ("turned", 2, 1, 1, {"virtual_stages": 1, "microbatch_size": 2}),
    # gradients of parameters that are not in their parameters' order in memory
    ("headed", 2, 1, 1, {"virtual_stages": 1, "microbatch_size": 2}),
    ("headed", 2, 2, 1, {"virtual_stages": 1, "microbatch_size": 1, "zero": 2}),
    # stages between two others: some send views, some hand on what they received
    ("autoencoder", 2, 1, 1, {"virtual_stages": 3, "microbatch_size": 2}),
    ("turned:4", 2, 1, 1, {"virtual_stages": 2, "microbatch_size": 2}),
    ("alternating", 2, 1, 1, {"virtual_stages": 2, "microbatch_size": 2}),
    ("alternating", 2, 2, 1, {"virtual_stages": 2, "microbatch_size": 1, "zero": 2}),
    # tensor parallel beside it
    ("gpt", 2, 1, 2, {"virtual_stages": 1, "microbatch_size": 2, "sequence_parallel": False}),
    ("gpt2:4", 2, 1, 2, {"virtual_stages": 2, "microbatch_size": 1, "sequence_parallel": False}),
    ("llama:4", 2, 1, 2, {"virtual_stages": 2, "microbatch_size": 1, "sequence_parallel": True}),
    ("gpt2", 2, 2, 2, {"virtual_stages": 1, "zero": 2, "sequence_parallel": True}),
    ("gpt:4", 2, 2, 2, {"virtual_stages": 2, "zero": 0, "sequence_parallel": False}),
]  # fmt: skip
PLANS = [
    *((*plan, "interleaved_1f1b") for plan in INTERLEAVED),
    *((*plan, "zero_bubble") for plan in ZERO_BUBBLE),
]


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Any]]:
    return {}


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins", "schedule"), PLANS)
def test_equals_single_device_and_plan(
    ranks, tmp_path, references, name, pp, dp, tp, pins, schedule
):
    plan = make_plan(name, pp, dp, tp, {**pins, "schedule": schedule})
    assert (plan.schedule, plan.virtual_stages) == (schedule, pins["virtual_stages"])
    assert len(plan.stages) == pp * plan.virtual_stages
    check(ranks, tmp_path, references, name, plan)


def test_says_why_a_rank_has_one_stage():
    """T5's trunks read one embedding and one position bias."""
    with pytest.raises(UsageError, match="two stages of a rank would share a parameter"):
        make_plan("t5", 2, 1, 1, {"schedule": "interleaved_1f1b", "microbatch_size": 2})


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zero_bubble"])
def test_bf16_follows_the_single_device(ranks, tmp_path, references, schedule):
    pins = {"schedule": schedule, "virtual_stages": 2, "microbatch_size": 2}
    plan = make_plan("gpt:4", 2, 1, 1, pins, precision="bf16")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(2).run(train, path, "gpt:4", timeout=120.0)
    reference = references.setdefault("gpt:4", single_device("gpt:4"))
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], rel=1e-2)


def test_in_float64(ranks, tmp_path):
    """What tells rounding from mistakes runs on pipelines, too."""
    pins = {"schedule": "interleaved_1f1b", "virtual_stages": 2, "microbatch_size": 2}
    plan = make_plan("gpt:4", 2, 1, 1, pins)
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(2).run(train, path, "gpt:4", exact=True, timeout=120.0)
    compare_in_float64(results, single_device("gpt:4", exact=True))


# Devices so slow that micro-batches pay, on links so slow that pipelines do.
SLOW = {
    "name": "slow", "source": "vendor", "detail": "made up",
    "rates": {"products": 0.01, "memory": 0.01, "node_links": 0.05},
}  # fmt: skip


@pytest.mark.parametrize(
    ("memory_limit", "schedule"), [(None, "zero_bubble"), (0.68e6, "interleaved_1f1b")]
)
def test_chosen_without_pins(ranks, tmp_path, references, memory_limit, schedule):
    """Zero bubble is the fastest where it fits: it holds more, and recomputes nothing."""
    cluster = Cluster.from_dict(extend(json.loads(Path(HOST).read_text()), SLOW))
    inputs, target = batch("llama:4", 0)
    with traced_once("llama:4"):
        plan = autopar.plan(
            build("llama:4"), 4, inputs, loss_fn("llama:4"), target, cluster=cluster,
            global_batch_size=SAMPLES, precision="fp32", memory_limit=memory_limit,
        )  # fmt: skip
    assert (plan.schedule, plan.virtual_stages, plan.mesh.pp) == (schedule, 2, 2)
    assert {layer.recompute for layer in plan.layers} > {"none"} or memory_limit is None
    check(ranks, tmp_path, references, "llama:4", plan)
