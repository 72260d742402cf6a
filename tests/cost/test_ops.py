"""Single ops on local shapes: backward from its own arithmetic, views for nothing."""

from __future__ import annotations

import pytest

from autopar.cluster import Cluster
from autopar.cost.compute import attention_seconds, elementwise_seconds, gemm_seconds
from autopar.cost.ops import ALONE, FREE, Use, op_cost
from autopar.graph import Ref, Size, Value
from autopar.trace.aliases import ALIASES
from tests.strategies.simulate import op_of

CLUSTER = Cluster.load("h100-80g")
SDPA = "aten.scaled_dot_product_attention.default"


def cost(op, shapes, *, frozen=(), dtype="bfloat16", use=ALONE):
    values = {
        name: Value(name, tuple(map(Size, shape)), dtype, requires_grad=name not in frozen)
        for name, shape in shapes.items()
    }
    return op_cost(CLUSTER, op, values, shapes, use)


LINEAR = op_of("aten.linear.default", Ref("x"), Ref("w"))
SHAPES = {"x": (4, 128, 256), "w": (512, 256), "y0": (4, 128, 512)}


def test_product():
    found = cost(LINEAR, SHAPES)
    m, n, k = 512, 512, 256
    assert found.flops == 2 * m * n * k
    assert found.forward_seconds == gemm_seconds(CLUSTER, m, n, k, "bfloat16")
    left = gemm_seconds(CLUSTER, m, k, n, "bfloat16")
    right = gemm_seconds(CLUSTER, k, n, m, "bfloat16")
    assert found.backward_seconds == pytest.approx(left + right)


def test_no_backward_for_what_is_frozen():
    both = cost(LINEAR, SHAPES)
    weight_only = cost(LINEAR, SHAPES, frozen=("x",))
    input_only = cost(LINEAR, SHAPES, frozen=("w",))
    assert weight_only.backward_seconds + input_only.backward_seconds == pytest.approx(
        both.backward_seconds
    )
    assert cost(LINEAR, SHAPES, frozen=("x", "w", "y0")).backward_seconds == 0


def test_batched_product():
    op = op_of("aten.bmm.default", Ref("x"), Ref("w"))
    found = cost(op, {"x": (6, 32, 64), "w": (6, 64, 16), "y0": (6, 32, 16)})
    assert found.flops == 2 * 6 * 32 * 16 * 64
    assert found.forward_seconds == gemm_seconds(CLUSTER, 32, 16, 64, "bfloat16", 6)


def test_attention():
    shapes = {"q": (2, 8, 256, 64), "y0": (2, 8, 256, 64)}
    whole, causal = (
        cost(op_of(SDPA, Ref("q"), Ref("q"), Ref("q"), is_causal=causal), shapes)
        for causal in (False, True)
    )
    assert whole.flops == 4 * 2 * 8 * 256 * 256 * 64 == 2 * causal.flops
    expected = attention_seconds(
        CLUSTER, batch=2, heads=8, query_length=256, key_length=256, head_dim=64,
        dtype="bfloat16", causal=True, backward=True,
    )  # fmt: skip
    assert causal.backward_seconds == expected
    assert causal.forward_seconds <= whole.forward_seconds
    assert causal.backward_seconds < whole.backward_seconds
    positional = op_of(SDPA, Ref("q"), Ref("q"), Ref("q"), None, 0.0, True)
    assert cost(positional, shapes) == causal


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_views_are_free(name):
    op = op_of(f"aten.{name}.default", Ref("x"), 1, 2)
    assert cost(op, {"x": (4, 4), "y0": (4, 4)}) == FREE


def moved(size):
    return elementwise_seconds(CLUSTER, size)


def test_gradients_of_parts_are_put_into_a_whole():
    part = cost(op_of("aten.slice.Tensor", Ref("x"), 0, 0, 1), {"x": (4, 64), "y0": (1, 64)})
    assert part.forward_seconds == 0
    assert part.backward_seconds == moved(2 * (256 + 2 * 64))  # zeros, and a copy into them
    halves = op_of("aten.split.Tensor", Ref("x"), 2, outputs=2)
    found = cost(halves, {"x": (4, 64), "y0": (2, 64), "y1": (2, 64)})
    assert found.backward_seconds == moved(2 * (256 + 256))
    constant = {"x": (4, 64), "y0": (1, 64)}
    assert cost(op_of("aten.slice.Tensor", Ref("x"), 0), constant, frozen=("x", "y0")) == FREE


def test_what_was_expanded_is_summed():
    found = cost(op_of("aten.expand.default", Ref("x"), (4, 64)), {"x": (1, 64), "y0": (4, 64)})
    assert found.forward_seconds == 0
    assert found.backward_seconds == moved(2 * (64 + 256))


def test_a_sum_passes_its_gradient_on():
    plus = op_of("aten.add.Tensor", Ref("x"), Ref("w"))
    assert cost(plus, {"x": (8, 64), "w": (8, 64), "y0": (8, 64)}).backward_seconds == 0
    bias = cost(plus, {"x": (8, 64), "w": (64,), "y0": (8, 64)})
    assert bias.backward_seconds == moved(2 * (8 * 64 + 64))
    times = op_of("aten.mul.Tensor", Ref("x"), Ref("w"))
    assert cost(times, {"x": (8, 64), "w": (64,), "y0": (8, 64)}).backward_seconds > 0


def test_a_bias_that_the_product_adds_along_costs_no_forward():
    plus = op_of("aten.add.Tensor", Ref("x"), Ref("w"))
    shapes = {"x": (8, 64), "w": (64,), "y0": (8, 64)}
    apart, joined = cost(plus, shapes), cost(plus, shapes, use=Use(joined=True))
    assert apart.forward_seconds > joined.forward_seconds == 0
    assert apart.backward_seconds == joined.backward_seconds


def test_gradients_of_a_value_that_is_read_again_are_added_up():
    view = op_of("aten.view.default", Ref("x"), (64,))
    found = cost(view, {"x": (8, 8), "y0": (64,)}, use=Use(frozenset({"x"})))
    assert found.backward_seconds == found.input_seconds == moved(2 * 3 * 64)
    assert found.forward_seconds == 0


@pytest.mark.parametrize(
    "name", ["gelu", "layer_norm", "softmax", "mul", "embedding", "cross_entropy_loss"]
)
def test_memory_bound_ops_grow_with_their_tensors(name):
    op = op_of(f"aten.{name}.default", Ref("x"), Ref("w"))
    small, large = (
        cost(op, {"x": (n, 1024), "w": (n, 1024), "y0": (n, 1024)}) for n in (2**12, 2**14)
    )
    for field in ("forward_seconds", "backward_seconds"):
        assert 2 < getattr(large, field) / getattr(small, field) < 6, field
    assert large.flops == 0


def test_constants_have_no_backward():
    op = op_of("aten.exp.default", Ref("x"))
    assert cost(op, {"x": (8,), "y0": (8,)}, frozen=("x", "y0")).backward_seconds == 0


def parts(op, shapes, parameters):
    """The same op with some inputs being parameters."""
    values = {
        name: Value(
            name, tuple(map(Size, shape)), "bfloat16",
            kind="parameter" if name in parameters else "activation", requires_grad=True,
        )
        for name, shape in shapes.items()
    }  # fmt: skip
    return op_cost(CLUSTER, op, values, shapes)


def test_a_product_with_a_parameter_makes_one_gradient_of_each_kind():
    found = parts(LINEAR, SHAPES, ("w",))
    m, n, k = 512, 512, 256
    assert found.input_seconds == gemm_seconds(CLUSTER, m, k, n, "bfloat16")
    assert found.weight_seconds == gemm_seconds(CLUSTER, k, n, m, "bfloat16")
    assert found.backward_seconds == found.input_seconds + found.weight_seconds


def test_a_product_of_activations_has_no_gradient_of_parameters():
    found = parts(op_of("aten.matmul.default", Ref("x"), Ref("w")), SHAPES | {"w": (256, 512)}, ())
    assert found.weight_seconds == 0
    assert found.input_seconds == found.backward_seconds > 0


def test_a_normalization_reads_its_gradient_twice_when_split():
    op = op_of("aten.layer_norm.default", Ref("x"), (256,), Ref("w"), Ref("b"))
    shapes = {"x": (64, 128, 256), "w": (256,), "b": (256,), "y0": (64, 128, 256)}
    found = parts(op, shapes, ("w", "b"))
    assert found.input_seconds > 0
    assert found.weight_seconds > 0
    assert found.backward_seconds < found.input_seconds + found.weight_seconds


def test_a_lookup_has_a_gradient_of_parameters_alone():
    op = op_of("aten.embedding.default", Ref("w"), Ref("x"))
    found = parts(op, {"x": (4, 8), "w": (100, 16), "y0": (4, 8, 16)}, ("w",))
    assert found.input_seconds == 0
    assert found.weight_seconds == found.backward_seconds > 0


CONV = op_of("aten.conv2d.default", Ref("x"), Ref("w"))


def test_convolution_is_a_product_over_its_windows():
    shapes = {"x": (4, 16, 32, 32), "w": (64, 16, 3, 3), "y0": (4, 64, 30, 30)}
    found = cost(CONV, shapes)
    m, n, k = 4 * 30 * 30, 64, 16 * 9
    assert found.flops == 2 * m * n * k
    assert found.forward_seconds == gemm_seconds(CLUSTER, m, n, k, "bfloat16")
    back = gemm_seconds(CLUSTER, m, k, n, "bfloat16", gradient=True)
    back += gemm_seconds(CLUSTER, k, n, m, "bfloat16", gradient=True)
    assert found.backward_seconds == pytest.approx(back)
    assert cost(CONV, shapes, frozen=("x",)).backward_seconds < found.backward_seconds


def test_grouped_convolution():
    shapes = {"x": (4, 16, 32, 32), "w": (64, 4, 3, 3), "y0": (4, 64, 30, 30)}
    found = cost(CONV, shapes)
    assert found.forward_seconds == gemm_seconds(CLUSTER, 4 * 900, 16, 36, "bfloat16", 4)


def test_transposed_convolution_does_the_work_of_the_one_that_it_reverses():
    back = op_of("aten.conv_transpose2d.input", Ref("x"), Ref("w"))
    shapes = {"x": (4, 64, 30, 30), "w": (64, 16, 3, 3), "y0": (4, 16, 32, 32)}
    there = cost(CONV, {"x": (4, 16, 32, 32), "w": (64, 16, 3, 3), "y0": (4, 64, 30, 30)})
    assert cost(back, shapes).flops == there.flops


def test_einsum_is_a_batched_product():
    op = op_of("aten.einsum.default", "bhtd,bhsd->bhts", (Ref("x"), Ref("w")))
    shapes = {"x": (2, 4, 32, 16), "w": (2, 4, 64, 16), "y0": (2, 4, 32, 64)}
    found = cost(op, shapes)
    assert found.forward_seconds == gemm_seconds(CLUSTER, 32, 64, 16, "bfloat16", 8)


def test_recurrent_steps_follow_each_other():
    op = op_of("aten.lstm.input", Ref("x"), (Ref("h"), Ref("h")), (Ref("wi"), Ref("wh")), False,
               1, 0.0, True, False, True, outputs=1)  # fmt: skip
    shapes = {"x": (4, 32, 8), "h": (1, 4, 8), "wi": (32, 8), "wh": (32, 8), "y0": (4, 32, 8)}
    values = {
        n: Value(n, tuple(map(Size, s)), "bfloat16", "parameter", source, True)
        for (n, s), source in zip(
            shapes.items(), ("", "", "weight_ih_l0", "weight_hh_l0", ""), strict=True
        )
    }
    found = op_cost(CLUSTER, op, values, shapes)
    whole = gemm_seconds(CLUSTER, 4 * 32, 32, 8, "bfloat16")
    step = gemm_seconds(CLUSTER, 4, 32, 8, "bfloat16")
    assert found.forward_seconds == pytest.approx(whole + 32 * step)
    assert found.flops == 4 * 4 * 32 * 32 * 8
