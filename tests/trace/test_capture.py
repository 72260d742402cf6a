"""What cannot be traced is refused with the place and the reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopar.errors import TraceError
from autopar.graph import Size
from autopar.trace import trace
from autopar.trace.opaque import OPAQUE, OpaqueCall
from tests.trace.models import (
    WIDTH,
    Branches,
    Chain,
    Collects,
    HoldsTensor,
    InplaceView,
    Returning,
    Shifted,
    graph_of,
    targets,
)


def refused(model, **more):
    x = torch.ones(2, 8)
    with pytest.raises(TraceError) as caught:
        trace(model, (x,), {}, **{"target": x, "loss_fn": F.mse_loss, **more})
    return caught.value


def test_control_flow_on_values_names_module_and_line():
    error = refused(Chain(), loss_fn=lambda y, _: y.mean() if y.sum() > 0 else -y.mean())
    assert "data-dependent" in error.found
    assert "the loss function" in error.where
    assert "test_capture.py:" in error.where
    assert "torch.where" in error.hint


def test_control_flow_in_the_models_own_forward_leaves_the_whole_model():
    x = torch.ones(2, 8)
    graph = trace(Branches(), (x,), {}, target=x, loss_fn=F.mse_loss)
    call = OpaqueCall.of(graph.ops[0])
    assert (call.path, call.mixes) == ("", True)  # it branches on a sum over samples


def test_control_flow_in_a_block_is_left_to_the_block():
    graph = graph_of(Chain(Branches))
    blocks = [layer for layer in graph.layers if layer.kind == "block"]
    assert [[graph.ops[i].target for i in layer.ops] for layer in blocks] == [[OPAQUE]] * 2


def test_no_loss():
    error = refused(Chain(), loss_fn=None)
    assert error.found == "the model returned a tensor without a loss"
    assert error.where == "loss_fn"
    assert "loss_fn=" in error.hint


@pytest.mark.parametrize("form", [
    lambda loss, x: loss, lambda loss, x: (loss, x), lambda loss, x: {"x": x, "loss": loss},
])  # fmt: skip
def test_finds_the_loss_in_what_a_model_returns(form):
    graph = trace(Returning(form), (torch.ones(2, WIDTH),), {})
    assert graph.values[graph.loss].shape == ()


def test_makes_tensors_where_its_inputs_are():
    assert graph_of(Chain(Shifted)).ops


def test_a_cast_that_names_a_device_too():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            kept = torch.ones(WIDTH, dtype=torch.bool).to(x.device, torch.float32)
            return self.linear(x) * kept

    graph = trace(
        Masked(), (torch.ones(2, WIDTH),), {}, target=torch.ones(2, WIDTH), loss_fn=F.mse_loss
    )
    casts = [op for op in graph.ops if op.target.startswith("aten.to.")]
    assert [(op.target, op.args[1:]) for op in casts] == [("aten.to.dtype", ("torch.float32",))]


def test_a_number_of_samples_that_is_plain_in_the_trace():
    class Counting(Chain):
        def forward(self, x):
            y = super().forward(torch.cat([x, x.new_zeros(len(x), 0)], 1))
            return y * (len(x) * 2) / len(x)

    graph, plain = graph_of(Counting()), graph_of(Chain())
    assert [layer.kind for layer in graph.layers] == [layer.kind for layer in plain.layers]
    powers = {name: [s.power for s in v.shape] for name, v in graph.values.items() if v.shape}
    assert powers[graph.inputs["args.0"]] == [1, 0]
    factor = next(op for op in graph.ops if op.target.startswith("aten.mul"))
    assert factor.args[1] == Size(2, 1)


def test_a_loop_over_samples_is_refused():
    class Looping(Chain):
        def forward(self, x):
            return torch.stack([row * 2 for row in super().forward(x)])

    error = refused(Looping())
    assert "other operations for 2 samples than for 3" in error.found


def test_plain_tensor_attribute():
    error = refused(Chain(HoldsTensor))
    assert "'blocks.0.scale'" in error.found
    assert "register_buffer" in error.hint


def test_block_that_appends_to_an_argument():
    error = refused(Collects())
    assert error.found == "Appends.forward changes a list or dict that it is passed"
    assert error.where == "blocks.0"
    assert "[*items, x]" in error.hint


def test_mixed_precision_casts_floating_inputs_and_no_target():
    x = torch.ones(2, 8)
    graph = trace(Chain(), (x,), {}, target=x, loss_fn=F.mse_loss, precision="bf16")
    dtypes = {key: graph.values[name].dtype for key, name in graph.inputs.items()}
    assert dtypes == {"args.0": "bfloat16", "target": "float32"}


def test_loss_of_many_elements():
    error = refused(Chain(), loss_fn=lambda output, target: (output - target).sum(0))
    assert error.found == "the loss has shape [8]"
    assert "mean()" in error.hint


def test_loss_that_learns_nothing():
    error = refused(Chain(), loss_fn=lambda output, target: target.sum())
    assert "parameters" in error.found


def test_in_place_change_of_a_view():
    error = refused(Chain(InplaceView))
    assert "in place" in error.found
    assert "models.py" in error.where


def test_dim_that_is_no_multiple_of_the_batch():
    error = refused(Chain(), loss_fn=lambda y, _: (F.pad(y, (0, 0, 1, 0)) ** 2).mean())
    assert "multiple of the batch" in error.expected


def test_input_keys_follow_nests():
    class Nested(Chain):
        def forward(self, pair, *, options):
            return super().forward(pair[0] + pair[1] * options["scale"])

    x = torch.ones(2, 8)
    graph = trace(Nested(), ((x, x),), {"options": {"scale": x}}, target=x, loss_fn=F.mse_loss)
    assert set(graph.inputs) == {"args.0.0", "args.0.1", "kwargs.options.scale", "target"}


def test_sizes_are_multiples_of_the_batch():
    graph = graph_of(Chain())
    assert graph.values[graph.inputs["args.0"]].shape == (Size(1, 1), Size(8))
    assert targets(graph, "blocks.0") == ["linear", "add"]
    assert all(op.where for op in graph.ops if op.unit)


class Frozen(nn.Module):
    """Batch normalisation and dropout that stay in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.AlphaDropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.linear(x)))


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_in_evaluation_within_a_model_in_training_stays_there(frozen):
    model = Frozen()
    for module in (model.norm, model.drop) if frozen else (model,):
        module.eval()  # a model that is in evaluation as a whole is trained nevertheless
    x = torch.zeros(2, 4, device="meta")
    ops = trace(model, (x,), {}, target=x, loss_fn=F.mse_loss).ops
    (norm,) = (op for op in ops if "batch_norm" in op.target)
    assert norm.args[5] is not frozen
    assert any("dropout" in op.target for op in ops) is not frozen
    assert not model.norm.training


class Tied(nn.Module):
    """Logits by the transposed embedding, which the trace may know by either of its names."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.inner(self.table(tokens)))


@pytest.mark.parametrize("trained", [True, False])
def test_what_is_tied_and_frozen_has_no_gradient(trained):
    model = Tied()
    model.table.weight.requires_grad_(trained)
    tokens = torch.zeros(2, 4, dtype=torch.long)
    graph = trace(model, (tokens,), {}, target=tokens, loss_fn=lambda y, _: y.sum())
    held = {v.source: v.requires_grad for v in graph.values.values() if v.kind == "parameter"}
    assert held.pop("table.weight", None) is trained
    assert all(held.values())
    assert len(held) == 2
