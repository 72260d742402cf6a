"""Every entry of the sharding table, and every strategy of three models, checked by running it."""

from __future__ import annotations

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  registers an operator of experts

from autopar.graph import Op, Ref, Size
from autopar.strategies.choices import outer_factors, strategies
from autopar.strategies.rules import _BUILDERS, LINEAR, POINTWISE, REDUCTIONS, RULES
from autopar.strategies.spec import name_of
from autopar.strategies.special import SPECIAL
from autopar.strategies.states import P, R, V, shard
from autopar.strategies.views import RESHAPES, SPLITS
from tests.strategies.simulate import check_strategy, made, op_of, value
from tests.zoo import NAMES, traced

TP = 2
EMBEDDING = "aten.embedding.default"
CROSS_ENTROPY = "aten.cross_entropy_loss.default"
X, Y, W, B, COND, INDEX = (Ref(name) for name in ("x", "y", "w", "b", "cond", "index"))
SHAPES = {
    "x": (4, 6, 8), "y": (4, 6, 8), "w": (12, 8), "b": (8,), "m": (8, 12), "left": (6, 8),
    "v": (4, 8, 10), "q": (2, 4, 6, 8), "k": (2, 4, 10, 8), "mask": (1, 1, 6, 10),
    "one": (4, 1, 8), "logits": (6, 8), "scale": (4, 6, 1),
    "image": (4, 8, 6, 6), "signal": (4, 8, 6), "volume": (4, 4, 4, 6, 6), "channels": (8,),
    "kernel": (12, 8, 3, 3), "kernel1": (12, 8, 3), "kernel3": (6, 4, 3, 3, 3), "bias12": (12,),
    "depthwise": (8, 1, 3, 3), "grouped": (8, 2, 3, 3), "back": (8, 6, 2, 2), "back1": (8, 6, 2),
    "vector": (8,), "bias": (4, 12), "added": (4, 6, 10), "side": (6,),
    "hidden": (1, 4, 6), "wi": (24, 8), "wh": (24, 6), "wi3": (18, 8), "wh3": (18, 6),
}  # fmt: skip
INTEGERS = {
    "index": (4, 6),
    "target": (6,),
    "along": (4, 6, 8),
    "rows": (10,),
    "offsets": (4,),
    "shorter": (2, 6, 8),
    "square": (6, 6),
}
Q, K, MASK, LOGITS, TARGET = (Ref(n) for n in ("q", "k", "mask", "logits", "target"))

UNARY = [
    "neg", "exp", "log", "log1p", "tanh", "sigmoid", "relu", "gelu", "silu", "rsqrt", "sqrt",
    "reciprocal", "sin", "cos", "erf", "abs", "sign", "square", "leaky_relu", "elu", "softplus",
    "hardswish", "hardtanh", "mish", "relu6", "exp2", "expm1", "log2", "log10", "sinh", "cosh",
    "tan", "atan", "erfc", "sgn", "floor", "ceil", "round", "trunc", "frac", "isnan", "isinf",
    "isfinite", "nan_to_num", "selu", "celu", "hardsigmoid", "log_sigmoid", "hardshrink",
    "softshrink", "zeros_like", "ones_like", "detach",
]  # fmt: skip
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
LOGICAL = ["logical_and", "logical_or", "__and__", "__or__"]
BITS = ["bitwise_and", "bitwise_or", "bitwise_xor"]
IMAGE, SIGNAL, VOLUME, KERNEL = (Ref(n) for n in ("image", "signal", "volume", "kernel"))
CHANNELS, ALONG, STATE, SQUARE = (Ref(n) for n in ("channels", "along", "hidden", "square"))
LSTM = tuple(Ref(n) for n in ("wi", "wh"))
NONE = (None, None)
EXAMPLES = {
    **{n: op_of(f"aten.{n}.default", X) for n in UNARY},
    **{n: op_of(f"aten.{n}.Tensor", X, Y) for n in COMPARISONS},
    **{n: op_of(f"aten.{n}.default", COND, COND) for n in LOGICAL[:2]},
    **{n: op_of(f"aten.{n}.Tensor", COND, COND) for n in LOGICAL[2:]},
    **{n: op_of(f"aten.{n}.Tensor", COND, COND) for n in BITS},
    "logical_xor": op_of("aten.logical_xor.default", COND, COND),
    **{n: op_of(f"aten.{n}.Tensor", X, Ref("scale")) for n in ("add", "sub", "mul", "div")},
    **{n: op_of(f"aten.{n}.default", X, Y) for n in ("maximum", "minimum", "atan2", "logaddexp")},
    **{n: op_of(f"aten.{n}.Tensor", X, Y) for n in ("remainder", "fmod", "rsub", "xlogy")},
    "addcmul": op_of("aten.addcmul.default", X, Y, Ref("scale")),
    "addcdiv": op_of("aten.addcdiv.default", X, Y, Ref("scale")),
    "lerp": op_of("aten.lerp.Tensor", X, Y, Ref("scale")),
    "full_like": op_of("aten.full_like.default", X, 2.0),
    "floor_divide": op_of("aten.floor_divide.default", Ref("index"), 2),
    "threshold": op_of("aten.threshold.default", X, 1.0, 0.5),
    "clamp_max": op_of("aten.clamp_max.default", X, 1.0),
    "alpha_dropout": op_of("aten.alpha_dropout.default", X, 0.0, True),
    **{n: op_of(f"aten.{n}.default", COND) for n in ("logical_not", "bitwise_not")},
    "pow": op_of("aten.pow.Tensor_Scalar", X, 2),
    "to": op_of("aten.to.dtype", X, "torch.float64"),
    "_to_copy": op_of("aten._to_copy.default", X, dtype="torch.float64"),
    "type_as": op_of("aten.type_as.default", X, Y),
    "where": op_of("aten.where.self", COND, X, B),
    "clamp": op_of("aten.clamp.default", X, 0.7, 1.2),
    "clamp_min": op_of("aten.clamp_min.default", X, 1.0),
    "dropout": op_of("aten.dropout.default", X, 0.0, True),
    "masked_fill": op_of("aten.masked_fill.Scalar", X, COND, 0.0),
    "view": op_of("aten.view.default", X, (4, 6, 4, 2)),
    "reshape": op_of("aten.reshape.default", X, (24, 8)),
    "_unsafe_view": op_of("aten._unsafe_view.default", X, (4, 48)),
    "flatten": op_of("aten.flatten.using_ints", X, 0, 1),
    "unflatten": op_of("aten.unflatten.int", X, 2, (2, 4)),
    "split": op_of("aten.split.Tensor", X, 4, 2, outputs=2),
    "chunk": op_of("aten.chunk.default", X, 2, 2, outputs=2),
    "split_with_sizes": op_of("aten.split_with_sizes.default", X, (4, 4), 2, outputs=2),
    "transpose": op_of("aten.transpose.int", X, 1, -1),
    "t": op_of("aten.t.default", W),
    "permute": op_of("aten.permute.default", X, (2, 0, -2)),
    "unsqueeze": op_of("aten.unsqueeze.default", X, -2),
    "squeeze": op_of("aten.squeeze.dim", Ref("one"), 1),
    "select": op_of("aten.select.int", X, 1, 3),
    "slice": op_of("aten.slice.Tensor", X, 2, 2, 6),
    "cat": op_of("aten.cat.default", (X, Y), -1),
    "softmax": op_of("aten.softmax.int", X, -1),
    "log_softmax": op_of("aten.log_softmax.int", X, -1),
    "cumsum": op_of("aten.cumsum.default", X, 1),
    "pad": op_of("aten.pad.default", X, (0, 2)),
    "expand": op_of("aten.expand.default", Ref("one"), (4, 6, 8)),
    "sum": op_of("aten.sum.dim_IntList", X, (1,), True),
    "mean": op_of("aten.mean.dim", X, (-1,)),
    "amax": op_of("aten.amax.default", X, (1,)),
    "var": op_of("aten.var.correction", X, (2,), correction=0),
    "linear": op_of("aten.linear.default", X, W),
    "mm": op_of("aten.mm.default", Ref("left"), Ref("m")),
    "bmm": op_of("aten.bmm.default", X, Ref("v")),
    "matmul": op_of("aten.matmul.default", X, Ref("m")),
    "layer_norm": op_of("aten.layer_norm.default", X, (8,), B, B),
    "rms_norm": op_of("aten.rms_norm.default", X, (8,), B),
    "scaled_dot_product_attention": op_of(
        "aten.scaled_dot_product_attention.default", Q, K, K, MASK
    ),
    "embedding": op_of(EMBEDDING, W, INDEX),
    "cross_entropy_loss": op_of(CROSS_ENTROPY, LOGITS, TARGET),
    "mv": op_of("aten.mv.default", Ref("left"), Ref("vector")),
    "dot": op_of("aten.dot.default", Ref("vector"), Ref("channels")),
    "outer": op_of("aten.outer.default", Ref("vector"), Ref("side")),
    "addmm": op_of("aten.addmm.default", Ref("bias12"), Ref("left"), Ref("m"), beta=2),
    "baddbmm": op_of("aten.baddbmm.default", Ref("added"), X, Ref("v")),
    "conv1d": op_of("aten.conv1d.default", SIGNAL, Ref("kernel1"), Ref("bias12"), (1,), (1,)),
    "conv2d": op_of("aten.conv2d.default", IMAGE, KERNEL, None, (2, 2), (1, 1)),
    "conv3d": op_of("aten.conv3d.default", VOLUME, Ref("kernel3")),
    "conv_transpose1d": op_of("aten.conv_transpose1d.default", SIGNAL, Ref("back1")),
    "conv_transpose2d": op_of("aten.conv_transpose2d.input", IMAGE, Ref("back"), None, (2, 2)),
    "max_pool1d": op_of("aten.max_pool1d.default", SIGNAL, (2,)),
    "max_pool2d": op_of("aten.max_pool2d.default", IMAGE, (3, 3), (2, 2)),
    "max_pool2d_with_indices": op_of(
        "aten.max_pool2d_with_indices.default", IMAGE, (2, 2), outputs=2
    ),
    "max_pool3d": op_of("aten.max_pool3d.default", VOLUME, (2, 2, 2)),
    "avg_pool1d": op_of("aten.avg_pool1d.default", SIGNAL, (2,)),
    "avg_pool2d": op_of("aten.avg_pool2d.default", IMAGE, (2, 2)),
    "avg_pool3d": op_of("aten.avg_pool3d.default", VOLUME, (2, 2, 2)),
    "adaptive_avg_pool1d": op_of("aten.adaptive_avg_pool1d.default", SIGNAL, (2,)),
    "adaptive_avg_pool2d": op_of("aten.adaptive_avg_pool2d.default", IMAGE, (2, 3)),
    "adaptive_avg_pool3d": op_of("aten.adaptive_avg_pool3d.default", VOLUME, (2, 3, 3)),
    "adaptive_max_pool2d": op_of("aten.adaptive_max_pool2d.default", IMAGE, (2, 3), outputs=2),
    "upsample_nearest2d": op_of("aten.upsample_nearest2d.vec", IMAGE, None, (2.0, 2.0)),
    "upsample_bilinear2d": op_of("aten.upsample_bilinear2d.vec", IMAGE, (8, 8), False, None),
    "upsample_bicubic2d": op_of("aten.upsample_bicubic2d.vec", IMAGE, (8, 8), False, None),
    "pixel_shuffle": op_of("aten.pixel_shuffle.default", IMAGE, 2),
    "feature_dropout": op_of("aten.feature_dropout.default", IMAGE, 0.0, True),
    "tril": op_of("aten.tril.default", X),
    "triu": op_of("aten.triu.default", X, 1),
    "bucketize": op_of("aten.bucketize.Tensor", X, Ref("vector")),
    "batch_norm": op_of(
        "aten.batch_norm.default",
        IMAGE,
        CHANNELS,
        CHANNELS,
        Ref("mean"),
        Ref("variance"),
        True,
        0.1,
        1e-5,
        False,
    ),
    "group_norm": op_of("aten.group_norm.default", IMAGE, 4, CHANNELS, CHANNELS),
    "instance_norm": op_of(
        "aten.instance_norm.default", IMAGE, CHANNELS, CHANNELS, *NONE, True, 0.1, 1e-5, False
    ),
    "prelu": op_of("aten.prelu.default", IMAGE, CHANNELS),
    "movedim": op_of("aten.movedim.int", X, 0, 2),
    "stack": op_of("aten.stack.default", (X, Y), 1),
    "one_hot": op_of("aten.one_hot.default", Ref("index"), 3),
    "unbind": op_of("aten.unbind.int", X, 1, outputs=6),
    "repeat": op_of("aten.repeat.default", X, (2, 1, 3, 1)),
    "repeat_interleave": op_of("aten.repeat_interleave.self_int", X, 3, 1),
    "cumprod": op_of("aten.cumprod.default", X, 0),
    "logcumsumexp": op_of("aten.logcumsumexp.default", X, 2),
    "flip": op_of("aten.flip.default", X, (0, 2)),
    "sort": op_of("aten.sort.default", X, outputs=2),
    "argsort": op_of("aten.argsort.default", X, 1),
    "glu": op_of("aten.glu.default", X, 1),
    "topk": op_of("aten.topk.default", X, 3, outputs=2),
    "diff": op_of("aten.diff.default", X),
    "roll": op_of("aten.roll.default", X, (1,), (1,)),
    "constant_pad_nd": op_of("aten.constant_pad_nd.default", X, (0, 0, 1, 0)),
    "gather": op_of("aten.gather.default", X, 1, ALONG),
    "scatter": op_of("aten.scatter.value", X, 1, ALONG, 2.0),
    "scatter_add": op_of("aten.scatter_add.default", X, 2, ALONG, Y),
    "index_select": op_of("aten.index_select.default", X, 2, Ref("rows")),
    "index": op_of("aten.index.Tensor", X, (None, Ref("index"))),
    "embedding_bag": op_of(
        "aten.embedding_bag.default", W, Ref("rows"), Ref("offsets"), False, 1, outputs=4
    ),
    **{
        n: op_of(f"aten.{n}.default", X, Y)
        for n in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div")
    },
    "binary_cross_entropy": op_of(
        "aten.binary_cross_entropy.default", Ref("small"), Ref("small_too")
    ),
    "binary_cross_entropy_with_logits": op_of(
        "aten.binary_cross_entropy_with_logits.default", X, Ref("fixed")
    ),
    "einsum": op_of("aten.einsum.default", "bij,bjk->ki", (X, Ref("v"))),
    "lstm": op_of(
        "aten.lstm.input", X, (STATE, STATE), LSTM, False, 1, 0.0, True, False, True, outputs=3
    ),
    "gru": op_of(
        "aten.gru.input",
        X,
        STATE,
        (Ref("wi3"), Ref("wh3")),
        False,
        1,
        0.0,
        True,
        False,
        True,
        outputs=2,
    ),
    "amin": op_of("aten.amin.default", X, (0,), True),
    "std": op_of("aten.std.correction", X, (1,)),
    "prod": op_of("aten.prod.dim_int", X, 1),
    "any": op_of("aten.any.dim", COND, 1),
    "all": op_of("aten.all.dim", COND, -1, True),
    "logsumexp": op_of("aten.logsumexp.default", X, (1, 2)),
    "argmax": op_of("aten.argmax.default", X, 1),
    "argmin": op_of("aten.argmin.default", X, 1, True),
    "var_mean": op_of("aten.var_mean.correction", X, (2,), correction=1, outputs=2),
    "std_mean": op_of("aten.std_mean.correction", X, (0, 1), correction=1, outputs=2),
    "max": op_of("aten.max.dim", X, 1, outputs=2),
    "min": op_of("aten.min.other", X, Y),
    "linalg_vector_norm": op_of("aten.linalg_vector_norm.default", X, 2, (1,)),
    "_weight_norm": op_of("aten._weight_norm.default", X, Ref("along_last"), 2),
    "view_as_complex": op_of("aten.view_as_complex.default", Ref("pairs")),
    "view_as_real": op_of("aten.view_as_real.default", Ref("phases")),
    "polar": op_of("aten.polar.default", X, Y),
    "index_put": op_of("aten.index_put.default", X, (None, Ref("rows")), Ref("y_rows")),
    "grouped_mm_fallback": op_of(
        "transformers.grouped_mm_fallback.default", Ref("left"), Ref("experts"), Ref("ends")
    ),
}
SQUARED = Ref("squared")
# Further calls of the same operations, where the arguments change what may be split.
VARIANTS = {
    "add of a constant": op_of("aten.add.Tensor", X, Ref("fixed")),
    "sub of a constant": op_of("aten.sub.Tensor", Ref("fixed"), X),
    "add with alpha": op_of("aten.add.Tensor", X, Y, alpha=3),
    "layer_norm of two dims": op_of("aten.layer_norm.default", X, (6, 8)),
    "layer_norm of two dims, weighted": op_of("aten.layer_norm.default", X, (6, 8), Ref("wide")),
    "rms_norm of two dims": op_of("aten.rms_norm.default", X, (6, 8)),
    "squeeze of everything": op_of("aten.squeeze.default", Ref("one")),
    "squeeze of two dims": op_of("aten.squeeze.dims", Ref("one"), (0, 1)),
    "sum of everything": op_of("aten.sum.default", X),
    "mean of two dims": op_of("aten.mean.dim", X, (0, 1), True),
    "matmul of two batches": op_of("aten.matmul.default", Ref("q"), Ref("v8")),
    "unequal split": op_of("aten.split_with_sizes.default", X, (2, 6), 2, outputs=2),
    "unequal chunk": op_of("aten.split.Tensor", X, 4, 1, outputs=2),
    "strided slice": op_of("aten.slice.Tensor", X, 2, 0, 8, 2),
    "grouped queries": op_of(
        "aten.scaled_dot_product_attention.default", Q, Ref("kv"), Ref("kv"), enable_gqa=True
    ),
    "padded lookup": op_of(EMBEDDING, W, INDEX, 3),
    "scaled lookup": op_of(EMBEDDING, W, INDEX, -1, True),
    "summed loss": op_of(CROSS_ENTROPY, LOGITS, TARGET, None, 2),
    "smoothed loss": op_of(CROSS_ENTROPY, LOGITS, TARGET, None, 1, -100, 0.1),
    "ignored target": op_of(CROSS_ENTROPY, LOGITS, TARGET, None, 1, 3),
    "loss of probabilities": op_of(CROSS_ENTROPY, LOGITS, Ref("probabilities")),
    "loss of pixels": op_of(CROSS_ENTROPY, IMAGE, Ref("pixels"), None, 1, 1),
    "summed elementwise loss": op_of("aten.mse_loss.default", X, Ref("scale"), 2),
    "elementwise loss": op_of("aten.l1_loss.default", X, Y, 0),
    "linear with a bias": op_of("aten.linear.default", X, W, Ref("bias12")),
    "depthwise": op_of(
        "aten.conv2d.default", IMAGE, Ref("depthwise"), CHANNELS, (1, 1), (1, 1), (1, 1), 8
    ),
    "grouped": op_of("aten.conv2d.default", IMAGE, Ref("grouped"), None, (1, 1), (0, 0), (1, 1), 4),
    "same padding": op_of("aten.conv2d.padding", IMAGE, KERNEL, Ref("bias12"), (1, 1), "same"),
    "batch_norm of channels alone": op_of(
        "aten.batch_norm.default", IMAGE, *NONE, *NONE, True, 0.1, 1e-5, False
    ),
    "instance_norm with statistics": op_of(
        "aten.instance_norm.default",
        IMAGE,
        *NONE,
        Ref("mean"),
        Ref("variance"),
        True,
        0.1,
        1e-5,
        False,
    ),
    "one slope": op_of("aten.prelu.default", X, Ref("slope")),
    "uneven gather": op_of("aten.gather.default", X, 2, Ref("shorter")),
    "scatter of itself": op_of("aten.scatter_add.default", X, 2, ALONG, X),
    "index of two dims": op_of("aten.index.Tensor", X, (SQUARE, None, SQUARE)),
    "index of neighbours": op_of("aten.index.Tensor", X, (SQUARE, Ref("target"))),
    "product with itself": op_of("aten.matmul.default", SQUARED, SQUARED),
    "einsum with itself": op_of("aten.einsum.default", "bij,bkj->bik", (X, X)),
    "einsum without an arrow": op_of("aten.einsum.default", "ij,jk", (Ref("left"), Ref("m"))),
    "lookup of largest": op_of(
        "aten.embedding_bag.default", W, Ref("rows"), Ref("offsets"), False, 2, outputs=4
    ),
    "rolled flat": op_of("aten.roll.default", X, (1,)),
    "padding of nothing": op_of("aten.pad.default", X, (0, 0, 1, 1)),
    "mean of everything": op_of("aten.mean.default", X),
    "largest of everything": op_of("aten.max.default", X),
    "standard deviation of everything": op_of("aten.std.default", X, True),
    "norm of everything": op_of("aten.linalg_vector_norm.default", X),
    "movedim of two": op_of("aten.movedim.intlist", X, (0, 1), (1, 2)),
    "repeat of everything": op_of("aten.repeat.default", X, (2, 1, 1)),
}
MORE = {
    "wide": (6, 8),
    "v8": (4, 8, 6),
    "kv": (2, 2, 6, 8),
    "probabilities": (6, 8),
    "slope": (1,),
    "along_last": (1, 1, 8),
    "y_rows": (4, 10, 8),
    "pairs": (4, 6, 2),
    "experts": (4, 8, 10),
    "squared": (4, 6, 6),
    "small": (4, 6),
    "small_too": (4, 6),
}


def values_for(op: Op) -> dict:
    """The inputs of an example, and what it makes of them."""
    values = {name: value(name, shape) for name, shape in {**SHAPES, **MORE}.items()}
    values |= {name: value(name, shape, "int64") for name, shape in INTEGERS.items()}
    values["phases"] = value("phases", (4, 6), "complex64")
    values["ends"] = value("ends", (4,), "int32")
    values["pixels"] = value("pixels", (4, 6, 6), "int64")
    values |= {n: value(n, (8,), learned=False) for n in ("mean", "variance")}
    values["cond"] = value("cond", (4, 6, 8), "bool")
    values["fixed"] = value("fixed", (4, 6, 8), "float32", learned=False)
    made(op, values)
    return values


def check(op: Op, values: dict, outers: dict | None = None) -> int:
    found = strategies(op, values, TP, outers or outer_factors([op], values, TP))
    for strategy in found:
        check_strategy(op, strategy, values, TP)
    return len(found)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_every_entry_has_an_example():
    table = RULES.keys() | POINTWISE | LINEAR | REDUCTIONS.keys() | _BUILDERS.keys()
    table |= RESHAPES | SPLITS | SPECIAL.keys()
    # Of bfloat16 alone, which is too coarse to compare; the same entries as the fallback's.
    assert table - {"_grouped_mm"} == EXAMPLES.keys()
    for entries in (_BUILDERS, SPECIAL):
        assert entries["_grouped_mm"] is entries["grouped_mm_fallback"]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_entry(name):
    op = EXAMPLES[name]
    assert name_of(op) == name
    # Besides the replicated one there must be a strategy that does divide the work.
    assert check(op, values_for(op)) > 1


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant(name):
    check(VARIANTS[name], values_for(VARIANTS[name]))


@pytest.mark.parametrize("model", NAMES)
def test_every_strategy_of_a_model(model):
    graph = traced(model)
    outers = outer_factors(list(graph.ops), graph.values, TP)
    count, seen = 0, set()
    for op in graph.ops:
        tensors = [graph.values[n] for n in (*op.inputs(), *op.outputs)]
        described = [(v.shape, v.dtype, v.requires_grad) for v in tensors]
        dims = [(v.name, dim) for v in tensors for dim in range(len(v.shape))]
        factors = [sorted(outers.get(key, [])) for key in dims]
        plain = [a for a in op.args if not isinstance(a, Ref)]
        key = repr((op.target, described, factors, plain, op.kwargs))
        if key not in seen:
            seen.add(key)
            count += check(op, graph.values, outers)
    assert count > 80


def test_the_classic_strategies_are_there():
    """Column and row parallel products, vocabulary parallel lookup and loss."""
    expected = {
        "linear": [(("x", V), ("w", shard(0))), (("x", shard(2)), ("w", shard(1)))],
        "embedding": [(("w", shard(0)), ("index", R))],
        "cross_entropy_loss": [(("logits", shard(1)), ("target", R))],
    }
    results = {"linear": [(shard(2),), (P,)], "embedding": [(P,)], "cross_entropy_loss": [(R,)]}
    for name, wanted in expected.items():
        op = EXAMPLES[name]
        found = {s.inputs: s.outputs for s in strategies(op, values_for(op), TP, {})}
        assert [found[inputs] for inputs in wanted] == results[name]


def test_a_wrong_rule_is_noticed(monkeypatch):
    """The check is not vacuous: a softmax along a divided dim, or a bias in partial sums, fails."""
    wrong = {"softmax": "... k -> ... k", "exp": "m n k -> m n k"}
    for target, rule in wrong.items():
        monkeypatch.setitem(RULES, target, rule)
    softmax = EXAMPLES["softmax"]
    with pytest.raises(AssertionError):
        check(softmax, values_for(softmax))
    exp = EXAMPLES["exp"]
    assert check(exp, values_for(exp)) == 4


def test_the_batch_is_divided_too():
    op = op_of("aten.exp.default", X)
    values = values_for(op)
    for name in ("x", "y0"):
        shape = (Size(2, 1), *values[name].shape[1:])
        values[name] = value(name, (2, 6, 8)).__class__(name, shape, "float32", requires_grad=True)
    states = {s.outputs[0] for s in strategies(op, values, TP, {})}
    assert states == {R, shard(0), shard(1), shard(2)}
