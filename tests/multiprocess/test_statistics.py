"""Batch normalisation has the single device's statistics; what is refused for its sake."""

from __future__ import annotations

import pytest
import torch

from autopar.errors import UsageError
from tests.multiprocess.models import SAMPLES, batch, build, loss_of
from tests.multiprocess.test_fidelity import RATE, STEPS, compare, make_plan, train

MICROBATCH = 2


def single_device(name):
    """Runs the micro-batches of each step one after the other, as their statistics demand."""
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses, gradients = [], {}
    for step in range(STEPS):
        (images,), labels = batch(name, step)
        total = 0.0
        for x, y in zip(images.split(MICROBATCH), labels.split(MICROBATCH), strict=True):
            loss = loss_of(name, model, (x,), y) * MICROBATCH / SAMPLES
            loss.backward()
            total += loss.item()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return {"losses": losses, "gradients": gradients, "parameters": model.state_dict()}


@pytest.mark.multiprocess
@pytest.mark.parametrize(("pp", "tp"), [(2, 1), (1, 2)])
def test_equals_single_device_and_plan(ranks, tmp_path, pp, tp):
    plan = make_plan("normalized", pp, 1, tp, {"microbatch_size": MICROBATCH}, cluster="cpu")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    reference = single_device("normalized")
    results = ranks(2).run(train, path, "normalized", timeout=120.0)
    compare(plan, results, reference)
    counts = {n: b for n, b in results[0]["parameters"].items() if n.endswith("tracked")}
    assert len(counts) == 5
    assert set(map(int, counts.values())) == {STEPS * SAMPLES // MICROBATCH}
    assert any("statistics over the samples" in note for note in plan.notes)
    assert {layer.recompute for layer in plan.layers} == {"none"}


def refused(pp, dp, tp, pins, **more):
    with pytest.raises(UsageError) as caught:
        make_plan("normalized", pp, dp, tp, pins, **more)
    return caught.value


def test_data_parallelism_is_refused():
    error = refused(1, 2, 1, {})
    assert error.found == "pin dp=2"
    assert "blocks.0" in error.where
    assert "GroupNorm" in error.hint


def test_recomputation_is_refused():
    error = refused(2, 1, 1, {"recompute": {"blocks.1": "full"}})
    assert error.found == "pin recompute=full for blocks.1"
    assert "twice" in error.expected


def test_mixed_precision_is_refused():
    error = refused(2, 1, 1, {}, precision="bf16")
    assert "fp32" in error.hint
