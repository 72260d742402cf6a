"""Optimizer state and activations in host memory: off the device, equal to the single device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.multiprocess.models import batch, build
from tests.multiprocess.precision import compare_in_float64
from tests.multiprocess.programs import load_program
from tests.multiprocess.test_fidelity import (
    check,
    compare_collectives,
    compare_memory,
    make_plan,
    references,
    share,
    single_device,
    these_cpus,
    train,
)

__all__ = ["references"]
pytestmark = pytest.mark.multiprocess

# Model, (pp, dp, tp) and further pins: every way in which parameters are laid out and saved.
PLANS = [
    ("gpt", 1, 1, 1, {"offload": "all", "microbatch_size": 4}),
    ("llama", 1, 2, 1, {"offload": "all", "zero": 2, "microbatch_size": 2}),
    ("gpt2", 1, 2, 1, {"offload": "optimizer", "zero": 0, "microbatch_size": 2}),
    ("alternating", 1, 2, 1, {"offload": "activations", "zero": 3, "microbatch_size": 2}),
    # each block is called with what the code behind it reads too
    ("lora", 1, 2, 1, {"offload": "activations", "zero": 3, "microbatch_size": 2}),
    ("llama", 2, 1, 1, {"offload": "all", "schedule": "1f1b", "microbatch_size": 2}),
    ("llama", 1, 2, 2, {"offload": "all", "zero": 3, "sequence_parallel": False,
                        "microbatch_size": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins"), PLANS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    plan = make_plan(name, pp, dp, tp, pins)
    assert plan.offload == pins["offload"]
    check(ranks, tmp_path, references, name, plan)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_parts_that_change_after_others_were_saved(ranks, tmp_path, name):
    """On CPUs the gates of a cell are one storage, changed in place part by part."""
    pins = {"offload": "activations", "zero": 3, "microbatch_size": 2}
    plan = make_plan(name, 1, 2, 1, pins, cluster=these_cpus())
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(2).run(train, path, name, exact=True, timeout=120.0)
    compare_in_float64(results, single_device(name, exact=True))
    compare_collectives(plan, results)
    compare_memory(plan, ranks(2).run(train, path, name, timeout=120.0))


def resume(paths: dict[str, str], folder: str) -> dict[str, Any]:
    """Three steps with state on the host; and the third again from a checkpoint, by program."""
    programs = {name: load_program(path) for name, path in paths.items()}
    found, whole = {}, start(programs["host"])
    for number in range(3):
        if number == 2:
            whole[0].save(folder, whole[1])
        step(*whole, number)
    found["undisturbed"] = whole[0].full_state_dict()
    for name, program in programs.items():
        parallel, optimizer = start(program)
        parallel.load(folder, optimizer)
        step(parallel, optimizer, 2)
        found[name] = parallel.full_state_dict()
    return found


def start(program: Any) -> tuple[Any, Any]:
    parallel = program.parallelize(build("gpt"))
    return parallel, program.optimizer_for(parallel, 1e-2)


def step(parallel: Any, optimizer: Any, number: int) -> None:
    parallel.forward_backward(*share(batch("gpt", number), parallel))
    optimizer.step()
    optimizer.zero_grad()


def test_checkpoints_hold_the_state_that_is_on_the_host(ranks, tmp_path):
    """Resumed bit for bit, and under a plan with the state on the device."""
    pins = {"host": {"offload": "optimizer", "zero": 2}, "device": {"zero": 3}}
    paths = {name: str(tmp_path / f"{name}.py") for name in pins}
    for name, own in pins.items():
        plan = make_plan("gpt", 1, 2, 1, own | {"microbatch_size": 4})
        plan.emit(paths[name], model="tests:none")
    found = ranks(2).run(resume, paths, str(tmp_path / "saved"), timeout=120.0)[0]
    for name, wanted in found["undisturbed"].items():
        assert torch.equal(found["host"][name], wanted), name
        assert torch.allclose(found["device"][name], wanted, rtol=1e-5, atol=1e-6), name
