"""What is suggested where nothing fits, on a real model: each suggestion, typed in, has a plan."""

from __future__ import annotations

import re

import pytest

import autopar
from autopar.errors import InfeasiblePlanError
from autopar.solve.problem import Configuration, Option, Problem, Solution
from autopar.solve.relaxations import _worlds, chosen
from examples.gpt import loss_fn
from tests.traces import traced_once
from tests.zoo import gpt, tokens


def make(world_size=2, **more):
    arguments = {"global_batch_size": 12, "precision": "fp32", **more}
    with traced_once("the zoo's gpt"):
        return autopar.plan(gpt(), world_size, (tokens(),), loss_fn, tokens(), cluster="h100-80g",
                            **arguments)  # fmt: skip


def refused(**arguments):
    with pytest.raises(InfeasiblePlanError) as caught:
        make(**arguments)
    return caught.value


def leanest_bytes(**arguments):
    """The smallest limit under which there is a plan, as the error states it."""
    found = re.search(r"memory_limit=(\d+)", refused(memory_limit=1000, **arguments).hint)
    return int(found[1])


def test_a_pin_is_named_with_the_value_that_fits():
    limit = leanest_bytes(pin={"recompute": "full", "tp": 1})
    pin = {"recompute": "none", "tp": 1}
    error = refused(memory_limit=limit, pin=pin)
    assert re.search(r"fits with recompute=.*full.* \(pinned: recompute=none\)", error.hint)
    assert "gradients" in str(error)
    assert "optimizer" in str(error)
    plan = make(memory_limit=limit, pin={"tp": 1})
    assert "full" in {layer.recompute for layer in plan.layers}


def test_the_smallest_limit_is_stated():
    limit = leanest_bytes()
    assert make(memory_limit=limit).prediction.memory_bytes <= limit
    assert f"(memory_limit={limit})" in refused(memory_limit=limit - 1).hint


def test_the_fewest_devices_are_stated():
    pin = {"pp": 1, "tp": 1, "zero": 3, "recompute": "full", "microbatch_size": 1}
    limit = leanest_bytes(world_size=3, pin=pin)
    error = refused(world_size=2, memory_limit=limit, pin=pin)
    assert "fits on 3 devices" in error.hint, "which is no power of two"
    assert make(3, memory_limit=limit, pin=pin)


def test_a_batch_that_fits_is_stated():
    pin = {"pp": 2, "tp": 1, "schedule": "gpipe"}
    limit = leanest_bytes(pin=pin, global_batch_size=6)
    found = re.search(r"global batch of (\d+)", refused(memory_limit=limit, pin=pin).hint)
    assert int(found[1]) == 6, "the nearest that fits"
    assert make(memory_limit=limit, pin=pin, global_batch_size=6)


def test_host_memory_is_offered():
    """Least first: optimizer state alone is enough here, at the price of its copies."""
    pin = {"dp": 2, "pp": 1, "tp": 1, "zero": 0, "recompute": "full", "microbatch_size": 1}
    limit = leanest_bytes(pin=pin) - 1
    assert "fits with offload=optimizer" in refused(memory_limit=limit, pin=pin).hint
    plan = make(memory_limit=limit, pin=pin | {"offload": "optimizer"})
    assert plan.prediction.memory_bytes <= limit
    assert plan.host_bytes(0) > 0
    assert plan.prediction.step_seconds > make(pin=pin).prediction.step_seconds


def test_many_devices_grow_by_nodes():
    assert list(_worlds(2, 8)) == [3, 4, 5, 6, 7, 8]
    assert list(_worlds(1000, 8))[:3] == [1008, 1016, 1024]
    assert list(_worlds(30, 8)) == [31, 32, *range(40, 121, 8)]


def test_what_a_plan_has_where_a_pin_was():
    options = [Option("", 0, 0, mode, 1.0, 1.0, 0.0, 0, 0, 0) for mode in ("none", "full", "none")]
    problem = Problem(Configuration(1, 2, 4, 1, 1, "1f1b", "sequence"), (0,) * 3, (), 0)
    solution = Solution(problem, (0,), tuple(options), 1, 1, 0, "", 0, {}, "")
    blocks = (False, True, True)
    assert chosen("recompute", solution, blocks) == "recompute=full in 1 layer and none in 1 layer"
    assert chosen("recompute", solution, (False, True, False)) == "recompute=full"
    assert chosen("zero", solution, blocks) == "zero=0"
    assert chosen("tp", solution, blocks) == "tp=4"
    assert chosen("stages", solution, blocks) == chosen("stage", solution, blocks) == "stages=[2]"
    assert chosen("placement", solution, blocks) == "another placement"
    assert chosen("sequence_parallel", solution, blocks) == "sequence_parallel=True"
