"""Blocks of one class and one stage that are sharded in two ways: what plans short of memory do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import autopar
from tests.multiprocess.models import SAMPLES, batch, build, loss_fn
from tests.multiprocess.test_fidelity import check

pytestmark = pytest.mark.multiprocess
# In one layout between layers: dividing all layers in the other can beat dividing a few.
PINS = {
    "pp": 1, "dp": 1, "tp": 2, "recompute": "none", "microbatch_size": 1, "sequence_parallel": True,
}  # fmt: skip
TRIES = 6


def ways(plan: autopar.Plan) -> set[tuple[Any, ...]]:
    """The different placements of the blocks, which come between the two ends."""
    return {tuple(layer.placements.values()) for layer in plan.layers[1:-1]}


def first_mixed(name: str) -> autopar.Plan:
    """Takes the memory away that the last plan needed, until the blocks differ."""
    inputs, target = batch(name, 0)
    make = partial(
        autopar.plan, build(name), 2, inputs, loss_fn(name), target, cluster="h100-80g",
        global_batch_size=SAMPLES, precision="fp32", pin=PINS,
    )  # fmt: skip
    plan = make()
    for _ in range(TRIES):
        if len(ways(plan)) > 1:
            return plan
        plan = make(memory_limit=plan.prediction.memory_bytes - 1)
    pytest.fail(f"no plan of {name} mixes two shardings")


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_two_shardings_of_one_class_in_a_stage(ranks, tmp_path, name):
    plan = first_mixed(name)
    assert len(plan.stages) == 1
    check(ranks, tmp_path, {}, name, plan)
