"""Rounding is let through where float64 agrees; nothing else is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.multiprocess.precision import (
    compare_in_float64,
    compare_rounded,
    compare_training,
    computing_in_float64,
    in_float64,
    nudged,
)

GRADIENT, ROUNDING = torch.tensor([1.0, 2.0]), torch.tensor([3e-9, -4e-9])


def training(sign: float = 1.0) -> dict[str, Any]:
    """A weight, and a bias that moves by whole steps because of its gradient's sign."""
    step = 0.01 * sign * ROUNDING.sign()
    return {
        "losses": [1.0],
        "gradients": {"weight": GRADIENT.clone(), "bias": sign * ROUNDING},
        "parameters": {"weight": 5 * GRADIENT, "bias": step},
    }


def exact() -> dict[str, Any]:
    found = {**training(), "losses": [1.0 + 1e-8]}
    found["gradients"]["bias"] = found["parameters"]["bias"] = torch.zeros(2)
    return {k: in_float64(v) for k, v in found.items()}


def test_rounding_errors_are_told_from_the_single_device_itself():
    with pytest.raises(AssertionError):
        compare_training([training(-1.0)], training())
    assert compare_rounded([training(-1.0)], exact(), [training()]) == ["parameters: bias"]


@pytest.mark.parametrize(
    ("kind", "key", "error"),
    [("gradients", "weight", 1e-3), ("parameters", "weight", 1e-2), ("parameters", "bias", 0.1)],
)
def test_a_mistake_is_no_rounding(kind, key, error):
    wrong = training(-1.0)
    wrong[kind][key] += error
    with pytest.raises(AssertionError):
        compare_rounded([wrong], exact(), [training()])


def test_float64_has_to_agree_better():
    found = copy.deepcopy(exact())
    compare_in_float64([found], exact())
    found["gradients"]["weight"] *= 1 + 1e-5
    with pytest.raises(AssertionError):
        compare_in_float64([found], exact())


def test_other_starts_are_a_millionth_away():
    model = torch.nn.Linear(64, 64)
    start = copy.deepcopy(model)
    moved = (nudged(model, 1).weight - start.weight).norm() / start.weight.norm()
    assert 0.5e-6 < moved.item() < 2e-6
    assert torch.equal(nudged(copy.deepcopy(start), 0).weight, start.weight)


def test_nothing_is_rounded_to_float32_in_float64():
    x = torch.rand(8, dtype=torch.float64)
    with computing_in_float64():
        casts = (x.float(), x.to(torch.float32), x.softmax(0, dtype=torch.float32))
        made = torch.zeros(2), torch.zeros(2, dtype=torch.float32)
    assert torch.equal(casts[0], x)
    assert torch.equal(casts[1], x)
    assert {tensor.dtype for tensor in (*casts, *made)} == {torch.float64}
    assert x.float().dtype == torch.zeros(2).dtype == torch.float32
