"""How ``torch.nn.functional`` takes the arguments of ATen operators."""

from __future__ import annotations

from typing import Any

_CONV = ("input", "weight", "bias", "stride=", "padding=", "dilation=", "groups=")
_CONV_TRANSPOSE = (
    "input", "weight", "bias", "stride=", "padding=", "output_padding=", "groups=", "dilation=",
)  # fmt: skip
_MAX_POOL = ("input", "kernel_size", "strides", "padding=", "dilation=", "ceil_mode=")
_AVG_POOL = (
    "input", "kernel_size", "strides", "padding=", "ceil_mode=", "count_include_pad=",
    "divisor_override=",
)  # fmt: skip
_NORM = (
    "input", "weight=", "bias=", "running_mean=", "running_var=", "training=", "momentum=", "eps=",
    None,
)  # fmt: skip
_LOSS = ("input", "target", "reduction=")
# Parameters in the operator's order: those with "=" are passed by name, None not at all.
FUNCTIONAL: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "_grouped_mm": ("grouped_mm", ("input", "mat2", "offs=")),
    "linear": ("linear", ("input", "weight", "bias")),
    "layer_norm": ("layer_norm", ("input", "normalized_shape", "weight", "bias", "epsilon", None)),
    "rms_norm": ("rms_norm", ("input", "normalized_shape", "weight", "epsilon")),
    "group_norm": ("group_norm", ("input", "num_groups", "weight", "bias", "eps=", None)),
    "batch_norm": ("batch_norm", _NORM),
    "instance_norm": (
        "instance_norm", (*_NORM[:5], "use_input_stats=", "momentum=", "eps=", None),
    ),
    "dropout": ("dropout", ("input", "p", None)),
    "alpha_dropout": ("alpha_dropout", ("input", "p", None)),
    "feature_dropout": ("dropout2d", ("input", "p", None)),
    "gelu": ("gelu", ("input",)),
    "silu": ("silu", ("input",)),
    "relu": ("relu", ("input",)),
    "elu": ("elu", ("input", "alpha")),
    "selu": ("selu", ("input",)),
    "celu": ("celu", ("input", "alpha")),
    "glu": ("glu", ("input", "dim")),
    "prelu": ("prelu", ("input", "weight")),
    "softplus": ("softplus", ("input", "beta", "threshold")),
    "hardswish": ("hardswish", ("input",)),
    "hardshrink": ("hardshrink", ("input", "lambd")),
    "softshrink": ("softshrink", ("input", "lambd")),
    "hardsigmoid": ("hardsigmoid", ("input",)),
    "hardtanh": ("hardtanh", ("input", "min_val", "max_val")),
    "threshold": ("threshold", ("input", "threshold", "value")),
    "log_sigmoid": ("logsigmoid", ("input",)),
    "mish": ("mish", ("input",)),
    "relu6": ("relu6", ("input",)),
    "softmax": ("softmax", ("input", "dim", "dtype=")),
    "log_softmax": ("log_softmax", ("input", "dim", "dtype=")),
    "pad": ("pad", ("input", "pad", "mode=", "value=")),
    "constant_pad_nd": ("pad", ("input", "pad", "value=")),
    "leaky_relu": ("leaky_relu", ("input", "negative_slope")),
    "one_hot": ("one_hot", ("input", "num_classes")),
    "pixel_shuffle": ("pixel_shuffle", ("input", "upscale_factor")),
    **{f"conv{n}d": (f"conv{n}d", _CONV) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (f"conv_transpose{n}d", _CONV_TRANSPOSE) for n in (1, 2, 3)},
    **{f"max_pool{n}d": (f"max_pool{n}d", _MAX_POOL) for n in (1, 2, 3)},
    "max_pool2d_with_indices": ("max_pool2d_with_indices", _MAX_POOL),
    **{f"avg_pool{n}d": (f"avg_pool{n}d", _AVG_POOL) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": (f"adaptive_avg_pool{n}d", ("input", "output_size"))
       for n in (1, 2, 3)},
    "adaptive_max_pool2d": ("adaptive_max_pool2d_with_indices", ("input", "output_size")),
    **{name: (name, _LOSS) for name in ("mse_loss", "l1_loss", "kl_div")},
    "smooth_l1_loss": ("smooth_l1_loss", (*_LOSS, "beta=")),
    "huber_loss": ("huber_loss", (*_LOSS, "delta=")),
    # Called as torch.* these four take no mean unless told so, other than their operators.
    "cosine_embedding_loss": (
        "cosine_embedding_loss", ("input1", "input2", "target", "margin", "reduction="),
    ),
    "hinge_embedding_loss": ("hinge_embedding_loss", ("input", "target", "margin", "reduction=")),
    "margin_ranking_loss": (
        "margin_ranking_loss", ("input1", "input2", "target", "margin", "reduction="),
    ),
    "triplet_margin_loss": (
        "triplet_margin_loss",
        ("anchor", "positive", "negative", "margin", "p", "epsilon", "swap", "reduction="),
    ),
    "binary_cross_entropy": ("binary_cross_entropy", ("input", "target", "weight", "reduction=")),
    "binary_cross_entropy_with_logits": (
        "binary_cross_entropy_with_logits",
        ("input", "target", "weight=", "pos_weight=", "reduction="),
    ),
}  # fmt: skip
DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_dropout"})
FACTORIES = frozenset({"arange", "ones", "zeros", "full", "empty", "eye", "scalar_tensor"})
REDUCTION = ("none", "mean", "sum")
DEFAULTS: dict[str, Any] = {
    "approximate": "none", "bias": None, "dtype": None, "mode": "constant", "weight": None,
    "pos_weight": None, "reduction": "mean", "stride": 1, "strides": (), "padding": 0,
    "output_padding": 0, "dilation": 1, "groups": 1, "ceil_mode": False, "count_include_pad": True,
    "divisor_override": None, "beta": 1.0, "delta": 1.0, "log_target": False, "eps": 1e-5,
    "momentum": 0.1, "running_mean": None, "running_var": None, "use_input_stats": True,
}  # fmt: skip
