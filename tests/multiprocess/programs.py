"""Runs an emitted program inside a worker of the pool, beside the single device."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from autopar.run.load import import_program
from examples.gpt import GPT, loss_fn
from tests.emit.gpt_program import CONFIG
from tests.multiprocess.collectives import CountCollectives

SAMPLES, TOKENS, STEPS = 8, 16, 3


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step."""
    tokens = torch.randint(64, (SAMPLES, TOKENS + 1), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1], tokens[:, 1:]


def build(seed: int = 7) -> GPT:
    """The same model on every rank. Norms and biases are off their start, so that they count."""
    torch.manual_seed(seed)
    model = GPT(CONFIG)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def single_device(steps: int = STEPS) -> dict[str, Any]:
    """Losses, first gradients, norms and last parameters on one device."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, norms, gradients = [], [], {}
    for step in range(steps):
        inputs, target = batch(step)
        loss = loss_fn(model(inputs), target)
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "losses": losses,
        "norms": norms,
        "gradients": gradients,
        "parameters": {n: p.detach() for n, p in model.state_dict().items()},
    }


def load_program(path: str) -> ModuleType:
    """The program at ``path`` as a module; it is an error if that calls what torch deprecated."""
    program = import_program(path)
    warnings.filterwarnings("error", category=FutureWarning, module=program.__name__)
    return program


def share(tensor: Tensor, parallel: Any) -> Tensor:
    """The part of a global batch that this rank reads."""
    return tensor.chunk(parallel.dp_size)[parallel.dp_rank]


def full_gradients(parallel: Any) -> dict[str, Tensor]:
    """All gradients as whole CPU tensors on rank 0, nothing on other ranks."""
    named = parallel.named_parameters()
    return parallel.full_state_dict({n: p.grad for n, p in named if p.grad is not None})  # type: ignore[no-any-return]


def train(path: str, steps: int = STEPS, model: GPT | None = None) -> dict[str, Any]:
    """The same under an emitted program; collectives are counted in the second step."""
    parallel = load_program(path).parallelize(model or build())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    losses, norms, gradients, counter = [], [], {}, CountCollectives()
    for step in range(steps):
        inputs, target = (share(t, parallel) for t in batch(step))
        if step == 1:
            with counter:
                loss = parallel.forward_backward((inputs,), target)
        else:
            loss = parallel.forward_backward((inputs,), target)
        if step == 0:
            gradients = full_gradients(parallel)
        norms.append(parallel.clip_grad_norm_(0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "losses": losses,
        "norms": norms,
        "gradients": gradients,
        "parameters": parallel.full_state_dict(),
        "kinds": counter.kinds,
        "calls": counter.calls,
    }
