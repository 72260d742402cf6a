"""Names of the user's variables for what operations make."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from autopar.trace.capture import capture


class Inner(nn.Module):
    """Returns what it makes without a variable."""

    def forward(self, x):
        scaled = x * 2
        return scaled.exp() + x


class Outer(nn.Module):
    """Assigns to one, two and no variables, on one line and on several."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        gate: torch.Tensor = self.inner(x)
        left, right = gate.chunk(2, dim=-1)
        max = torch.relu(
            torch.cat(
                (left.sin(), right),
                dim=-1,
            )
        )
        first, _ = (part.tanh() for part in (max, x))
        max += self.linear(first)
        return max


def labels():
    raw = capture(Outer(), (torch.randn(2, 4),), {}, torch.randn(2, 4), F.mse_loss, torch.float32)
    return {op.target.split(".")[1]: op.labels for op in raw.ops if "mark" not in op.target}


def test_labels():
    found = labels()
    assert found["mul"] == ("scaled",)
    assert found["exp"] == ()
    assert found["chunk"] == ("left", "right")
    assert found["sin"] == found["cat"] == ()
    assert found["relu"] == (), "a builtin's name is not taken"
    assert found["linear"] == found["mse_loss"] == ()


def test_what_leaves_a_function_has_the_callers_variable():
    raw = capture(Outer(), (torch.randn(2, 4),), {}, torch.randn(2, 4), F.mse_loss, torch.float32)
    names = [op.labels for op in raw.ops]
    assert ("gate",) in names
