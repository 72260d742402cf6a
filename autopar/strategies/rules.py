"""The sharding table: which dims of an operation may be split over the tp axis.

A rule names dims as einops does. A name that appears in an output may be sharded there;
one that appears in inputs only is contracted, and the output is a partial sum. ``!`` marks
a dim that the operation must see whole. ``...`` is any number of further dims, matched from
the right. Where arguments decide, a function of ``builders.py`` makes the names. What is in
none of these tables is looked for by running it (``discovery.py``).
"""

from __future__ import annotations

from autopar.graph import Op
from autopar.strategies import builders as b
from autopar.strategies.spec import Spec, Values, from_rule, name_of

RULES = {
    "mm": "m k, k n -> m n",
    "bmm": "b m k, b k n -> b m n",
    "mv": "m k, k -> m",
    "dot": "k, k ->",
    "outer": "m, n -> m n",
    "addmm": "m n, m !k, !k n -> m n",
    "baddbmm": "b m n, b m !k, b !k n -> b m n",
    "scaled_dot_product_attention": "b h !t !d, b h !s !d, b h !s !e, b h !t !s -> b h !t !e",
    "max_pool1d": "... !x -> ... !u",
    "max_pool2d": "... !y !x -> ... !v !u",
    "max_pool3d": "... !z !y !x -> ... !w !v !u",
    "avg_pool1d": "... !x -> ... !u",
    "avg_pool2d": "... !y !x -> ... !v !u",
    "avg_pool3d": "... !z !y !x -> ... !w !v !u",
    "adaptive_avg_pool1d": "... !x -> ... !u",
    "adaptive_avg_pool2d": "... !y !x -> ... !v !u",
    "adaptive_avg_pool3d": "... !z !y !x -> ... !w !v !u",
    "adaptive_max_pool2d": "... !y !x -> ... !v !u, ... !v !u",
    "max_pool2d_with_indices": "... !y !x -> ... !v !u, ... !v !u",
    "upsample_nearest2d": "... !y !x -> ... !v !u",
    "upsample_bilinear2d": "... !y !x -> ... !v !u",
    "upsample_bicubic2d": "... !y !x -> ... !v !u",
    "pixel_shuffle": "... !c !y !x -> ... !n !v !u",
    "feature_dropout": "b c ... -> b c ...",
    "tril": "... !y !x -> ... !y !x",
    "triu": "... !y !x -> ... !y !x",
    "bucketize": "..., !k -> ...",
    "view_as_complex": "... !parts -> ...",
    "view_as_real": "... -> ... !parts",
}
POINTWISE = frozenset({
    "add", "sub", "mul", "div", "neg", "pow", "exp", "exp2", "expm1", "log", "log1p", "log2",
    "log10", "tanh", "sinh", "cosh", "sigmoid", "relu", "gelu", "silu", "rsqrt", "sqrt",
    "reciprocal", "sin", "cos", "tan", "atan", "atan2", "erf", "erfc", "abs", "sign", "sgn",
    "square", "floor", "ceil", "round", "trunc", "frac", "remainder", "fmod", "floor_divide",
    "to", "_to_copy", "type_as", "where", "eq", "ne", "lt", "le", "gt", "ge", "maximum",
    "minimum", "clamp", "clamp_min", "clamp_max", "dropout", "alpha_dropout", "masked_fill",
    "logical_and", "logical_or", "logical_xor", "logical_not", "__and__", "__or__",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "isnan", "isinf", "isfinite",
    "nan_to_num", "leaky_relu", "elu", "selu", "celu", "softplus", "hardswish", "hardsigmoid",
    "hardtanh", "mish", "relu6", "log_sigmoid", "threshold", "hardshrink", "softshrink",
    "rsub", "addcmul", "addcdiv", "lerp", "logaddexp", "xlogy", "zeros_like", "ones_like",
    "full_like", "detach", "polar",
})  # fmt: skip
# Linear in their only input: partial sums and partial gradients pass through unreduced.
LINEAR = frozenset({
    "neg", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "t",
    "unsqueeze", "squeeze", "movedim", "unbind", "select", "repeat", "repeat_interleave", "flip",
    "roll",
})  # fmt: skip
# Linear in their first input, the only one that may be a partial sum; the others choose elements.
SELECTING = frozenset({"index", "index_select", "gather", "sum"})
# Zero for zeros, so that each rank may run them on the rows that it holds.
KEEPS_ZEROS = frozenset({
    "neg", "silu", "gelu", "relu", "relu6", "tanh", "abs", "square", "leaky_relu", "elu", "selu",
    "mish", "hardswish", "to", "_to_copy", "slice",
})  # fmt: skip
REDUCTIONS = {
    "sum": b.reduction(summed=True),
    "mean": b.reduction(mean=True),
    **dict.fromkeys(
        ("amax", "amin", "var", "std", "prod", "any", "all", "logsumexp", "argmax", "argmin",
         "var_mean", "std_mean"),
        b.reduction(),
    ),
    **dict.fromkeys(("max", "min"), b.extremum),
    "linalg_vector_norm": b.norm,
}  # fmt: skip
RANDOM = frozenset({
    "dropout", "alpha_dropout", "feature_dropout", "scaled_dot_product_attention", "lstm", "gru",
})  # fmt: skip
_BUILDERS: dict[str, b.Builder] = {
    "linear": b.linear,
    "matmul": b.matmul,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), b.convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), b.convolution),
    "einsum": b.einsum,
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), b.grouped_mm),
    **dict.fromkeys(("lstm", "gru"), b.recurrent),
    "batch_norm": b.batch_norm,
    "group_norm": b.group_norm,
    "instance_norm": b.instance_norm,
    "layer_norm": b.normalization,
    "rms_norm": b.normalization,
    "prelu": b.prelu,
    "_weight_norm": b.weight_norm,
    "transpose": b.permuted(b.exchanged),
    "t": b.permuted(b.exchanged),
    "permute": b.permuted(lambda op, rank: [d % rank for d in op.args[1]]),
    "movedim": b.permuted(b.moved),
    "unsqueeze": b.unsqueeze,
    "squeeze": b.squeeze,
    "stack": b.stack,
    "one_hot": b.one_hot,
    "select": b.without,
    "unbind": b.without,
    "expand": b.expand,
    "repeat": b.repeat,
    "repeat_interleave": b.repeat_interleave,
    **dict.fromkeys(("slice", "cat", "softmax", "log_softmax", "cumsum", "cumprod",
                     "logcumsumexp", "flip"), b.along(1)),
    **dict.fromkeys(("sort", "argsort", "glu"), b.along(1, -1)),
    **dict.fromkeys(("topk", "diff"), b.along(2, -1)),
    "roll": b.rolled,
    "pad": b.padded,
    "constant_pad_nd": b.padded,
    "gather": b.gather,
    **dict.fromkeys(("scatter", "scatter_add"), b.gather),
    "index_select": b.index_select,
    "index": b.index,
    "index_put": b.index_put,
    "embedding_bag": b.embedding_bag,
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"), b.loss(2)),
    "binary_cross_entropy": b.loss(3),
    "binary_cross_entropy_with_logits": b.loss(4),
    **REDUCTIONS,
}  # fmt: skip


def spec(op: Op, values: Values) -> Spec | None:
    """The named dims of ``op``, or None if it has no rule."""
    name = name_of(op)
    if name in RULES:
        return from_rule(RULES[name], op, values)
    if name in POINTWISE:
        return b.pointwise(op, values)
    builder = _BUILDERS.get(name)
    return builder(op, values) if builder else None
