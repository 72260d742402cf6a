"""Gradients over a ring of ranks, or to a server and back: equal to the single device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.multiprocess.models import batch, build
from tests.multiprocess.programs import load_program
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_memory,
    compare_training,
    make_plan,
    share,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize("exchange", ["ring", "server"])
def test_equals_single_device_and_plan(ranks, tmp_path, exchange):
    plan = make_plan("mlp", 1, 4, 1, {"exchange": exchange, "microbatch_size": 1})
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(4).run(train, path, "mlp", timeout=120.0)
    compare_training(results, single_device("mlp"))
    compare_collectives(plan, results)
    # The plan's figure is that of the fullest rank, and only a server has optimizer state.
    compare_memory(plan, results if exchange == "ring" else results[:1])
    if exchange == "server":
        saved = plan.rank_memory(0).optimizer
        for result in results[1:]:
            assert result["peak_bytes"] <= results[0]["peak_bytes"] - 0.9 * saved


def both(path: str, folder: str) -> dict[str, Any]:
    """Clipped steps, gradients that add up over two calls, a checkpoint between them."""
    program = load_program(path)
    parallel = program.parallelize(build("mlp"))
    optimizer = program.optimizer_for(parallel, 1e-2)
    norms = []
    for number in range(3):
        for _ in range(2):
            parallel.forward_backward(*share(batch("mlp", number), parallel))
        norms.append(parallel.clip_grad_norm_(0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        if number == 1:
            parallel.save(folder, optimizer)
            parallel = program.parallelize(build("mlp"))
            optimizer = program.optimizer_for(parallel, 1e-2)
            parallel.load(folder, optimizer)
    state = sum(1 for entry in optimizer.state.values() if entry)
    return {"norms": norms, "parameters": dict(parallel.state_dict()), "state": state}


def alone() -> dict[str, Any]:
    model = build("mlp")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    norms = []
    for number in range(3):
        inputs, target = batch("mlp", number)
        (2 * torch.nn.functional.cross_entropy(model(*inputs), target)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return {"norms": norms, "parameters": model.state_dict()}


@pytest.mark.parametrize("exchange", ["ring", "server"])
def test_clips_accumulates_and_resumes(ranks, tmp_path, exchange):
    plan = make_plan("mlp", 1, 2, 1, {"exchange": exchange, "microbatch_size": 4})
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results, wanted = ranks(2).run(both, path, str(tmp_path / "saved"), timeout=120.0), alone()
    for rank, result in enumerate(results):
        assert result["norms"] == pytest.approx(wanted["norms"], rel=1e-5)
        assert bool(result["state"]) == (exchange == "ring" or rank == 0)
        for name, tensor in wanted["parameters"].items():
            assert torch.allclose(result["parameters"][name], tensor, rtol=1e-4, atol=1e-5), name
