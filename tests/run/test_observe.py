"""What a rank notes of its own steps."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from autopar.run.observe import LIVE_STEPS, PROFILED_STEPS, observe

WIDTH = 256


class Program:
    """As much of an emitted program as is looked at: a product per step, then a pause."""

    SEED = 0

    def __init__(self):
        self.counts = []

    def load(self, name):
        assert name == "toy:make"
        return lambda: {"model": torch.nn.Linear(WIDTH, WIDTH, bias=False)}

    def parallelize(self, model):
        return model

    def optimizer_for(self, parallel, lr):
        assert lr == 0.0, "what is looked at must not change the model"
        return torch.optim.AdamW(parallel.parameters(), lr=lr)

    def example_batch(self, made):
        return lambda step, batch_size, rank, size: torch.ones(WIDTH, WIDTH)

    def train(self, parallel, optimizer, batches, args):
        self.counts.append(args.steps)
        start = time.perf_counter()
        for _ in range(args.steps):
            parallel(batches(0, 1, 0, 1)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(0.05)
        return [], [time.perf_counter() - start]


@pytest.fixture(scope="module")
def seen():
    program = Program()
    found = observe(program, "toy:make", None)
    assert program.counts == [LIVE_STEPS, PROFILED_STEPS]
    return SimpleNamespace(**found)


def test_live_bytes_hold_parameter_gradient_state_and_activations(seen):
    """Parameter, its gradient, two moments; the batch and the result of the product."""
    assert 5 * 4 * WIDTH**2 <= seen.live_bytes <= 9 * 4 * WIDTH**2


def test_the_pause_is_neither_computing_nor_communication(seen):
    assert seen.rest_seconds > 0.045
    assert seen.computing_seconds > 0
    assert seen.communicating_seconds == 0
