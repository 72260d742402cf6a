"""The stages of emitted programs, run one after the other in this process.

What a stage returns is what the next one takes, gradients go back the same way, and the sum over
the stages is the gradient of the whole model. Real ranks: tests/multiprocess/test_structures.py.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from tests.multiprocess.models import SAMPLES, batch, build, loss_of
from tests.multiprocess.programs import load_program
from tests.multiprocess.test_fidelity import make_plan

RUNS = [
    ("gpt2", 2), ("t5", 4), ("whisper", 2), ("bert", 2), ("vit", 3), ("alternating", 4), ("mlp", 3),
    ("convolutions", 2), ("gated", 2), ("gan", 2),
]  # fmt: skip


def run_stages(program: Any, name: str, pp: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by first name, of one micro-batch that is the whole batch."""
    inputs, target = batch(name, 0)
    (row,) = program.microbatches(inputs, target)
    received: tuple[torch.Tensor, ...] = ()
    calls, models = [], []
    for index in range(pp):
        model = build(name)
        program.drop_other_stages(model, index)
        if hasattr(program, "tie"):
            program.tie(model)
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        stage = program.Stage(model, index)
        stage.feed = iter([row])
        taken = tuple(x.detach().requires_grad_() for x in received)
        output = stage(*taken)
        received = output if isinstance(output, tuple) else (output,)
        calls.append((taken, received))
        models.append(model)
    gradients: tuple[torch.Tensor | None, ...] = (None,)
    for taken, sent in reversed(calls):
        torch.autograd.backward(sent, gradients)
        gradients = tuple(x.grad for x in taken)
    found: dict[str, torch.Tensor] = {}
    for model in models:
        for key, parameter in model.named_parameters():
            first = program.canonical(key) if hasattr(program, "canonical") else key
            if parameter.grad is not None:
                found[first] = found.get(first, torch.zeros(())) + parameter.grad
    return received[0].item(), found


@pytest.mark.parametrize(("name", "pp"), RUNS)
def test_stages_in_turn_equal_the_model(name, pp, tmp_path):
    plan = make_plan(name, pp, 1, 1, {"microbatch_size": SAMPLES, "schedule": "gpipe"})
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    loss, gradients = run_stages(load_program(path), name, pp)
    model = build(name)
    expected = loss_of(name, model, *batch(name, 0))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            assert key not in gradients
        else:
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["alternating", "turned:4"])
def test_a_stage_between_others_sends_tensors_of_its_own(name, tmp_path, monkeypatch):
    """Under zero bubble torch detaches them in place: no views, nor what it receives into again.

    Gradients are contiguous, as they are sent as they lie.
    """
    pins = {"microbatch_size": 2, "schedule": "zero_bubble", "virtual_stages": 2}
    make_plan(name, 2, 1, 1, pins).emit(str(tmp_path / "program.py"), model="tests:none")
    program, model = load_program(str(tmp_path / "program.py")), build(name)
    program.drop_other_stages(model, 1)
    stage = program.Stage(model, 1)
    received = [torch.zeros(shape, dtype=d).requires_grad_() for shape, d in program.HIDDEN[0]]
    monkeypatch.delattr(torch.Tensor, "register_hook")  # there would be one more in every step
    for row in program.microbatches(*batch(name, 0))[:2]:
        stage.feed = iter([row])
        sent = stage(*received)
        gradients = torch.autograd.grad(sent, received, [torch.ones_like(x) for x in sent])
        assert all(gradient.is_contiguous() for gradient in gradients)
        for value in sent:
            value.detach_()


@pytest.mark.parametrize(("name", "stops"), [("gated", True), ("alternating", False)])
def test_all_that_a_stage_receives_has_a_gradient(name, stops, tmp_path):
    """torch 2.11 wants it; a program says so only where gradients of what crosses a cut stop."""
    pins = {"microbatch_size": SAMPLES, "schedule": "gpipe"}
    make_plan(name, 2, 1, 1, pins).emit(str(tmp_path / "program.py"), model="tests:none")
    program, model = load_program(str(tmp_path / "program.py")), build(name)
    assert hasattr(program, "Crossing") == stops
    program.drop_other_stages(model, 1)
    stage = program.Stage(model, 1)
    stage.feed = iter(program.microbatches(*batch(name, 0)))
    received = [torch.ones(shape, dtype=d).requires_grad_() for shape, d in program.HIDDEN[0]]
    stage(*received).backward()
    assert all(x.grad is not None for x in received)


def test_a_loss_in_bf16_is_returned_as_declared(tmp_path):
    """In float32: torch 2.11 compares what a stage returns with the dtype that it was told."""
    pins = {"microbatch_size": SAMPLES, "schedule": "gpipe"}
    make_plan("gpt", 2, 1, 1, pins, "bf16").emit(str(tmp_path / "program.py"), model="tests:none")
    program, model = load_program(str(tmp_path / "program.py")), build("gpt").bfloat16()
    program.drop_other_stages(model, 1)
    stage = program.Stage(model, 1)
    stage.feed = iter(program.microbatches(*batch("gpt", 0)))
    ((shape, dtype),) = program.HIDDEN[0]
    assert stage(torch.zeros(shape, dtype=dtype)).dtype == torch.float32


def test_no_batch_is_held_when_a_step_is_over(tmp_path):
    """The next one would be beside it otherwise."""
    path = str(tmp_path / "program.py")
    make_plan("mlp", 1, 1, 1, {"microbatch_size": 2}).emit(path, model="tests:none")
    parallel = load_program(path).parallelize(build("mlp"))
    inputs, target = batch("mlp", 0)
    memory = weakref.ref(inputs[0].untyped_storage())
    parallel.forward_backward(inputs, target)
    del inputs
    assert memory() is None
