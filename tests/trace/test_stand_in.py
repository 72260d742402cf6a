"""Blocks that are called and not traced."""

from __future__ import annotations

import pytest
import torch

from autopar.graph import Ref
from autopar.trace import capture as capturing
from autopar.trace.model import Recorder
from autopar.trace.repeats import NotRepeatedError, Repeat, Unreadable
from autopar.trace.stand_in import STAND_IN, attach_stand_ins
from tests.trace.deep import Counted, Deep
from tests.trace.models import WIDTH

REPEAT = Repeat("blocks.1", "blocks.8", tuple(f"blocks.{i}" for i in range(2, 8)), ("layer_idx",))


def prepared():
    model, recorder = Deep(Counted), Recorder()
    recorder.attach(model, ("blocks.0", "blocks.1", "blocks.8"))
    attach_stand_ins(model, (REPEAT,), recorder)
    return model, recorder


def test_calls_are_recorded_and_counters_hidden():
    model, recorder = prepared()
    x = torch.ones(2, WIDTH)
    model.blocks[1](x)
    assert model.blocks[2](x).shape == x.shape
    assert recorder.counts["blocks.2"] == 1
    name, (args, kwargs), output = recorder.calls["blocks.2#1"]
    assert (name, args, kwargs) == ("Counted", (Ref("blocks.2#1:in:0"),), {})
    assert output == Ref("blocks.2#1:out:0")
    assert isinstance(model.blocks[1].layer_idx, Unreadable)
    assert model.blocks[2].layer_idx == 2


def test_other_calls_are_refused():
    model, _ = prepared()
    x = torch.ones(2, WIDTH)
    with pytest.raises(NotRepeatedError, match=r"before blocks\.1"):
        model.blocks[2](x)
    model.blocks[1](x)
    for other in (x.double(), x[:1], x.t().contiguous().t(), None, object()):
        with pytest.raises(NotRepeatedError):
            model.blocks[2](other)
    model.blocks[2](x)
    with pytest.raises(NotRepeatedError, match="twice"):
        model.blocks[2](x)


def test_depth_adds_one_operation_per_block(monkeypatch):
    """Only the stand-ins grow with depth, so the time of the trace hardly does."""
    exported = []
    original = capturing.expand
    monkeypatch.setattr(capturing, "expand", lambda ops, *a: exported.append(ops) or original(
        ops, *a))  # fmt: skip
    x = torch.ones(2, WIDTH)
    for depth in (9, 36):
        model = Deep(Counted)
        model.blocks = torch.nn.ModuleList([Counted(i) for i in range(depth)])
        capturing.capture(model, (x,), {}, x, torch.nn.functional.mse_loss, torch.float32)
    shallow, deep = exported
    assert len(deep) - len(shallow) == 27
    assert sum(op.target == STAND_IN for op in deep) == 33
