"""Operations whose result shares the memory of their first argument, by what their backward makes.

``tests/trace/test_aliases.py`` has every name from torch itself.
"""

from __future__ import annotations

# Every element once: the gradient of what they read is that of their result, in another shape.
RESHAPED = frozenset({
    "view", "reshape", "_unsafe_view", "view_as", "flatten", "unflatten", "transpose", "swapaxes",
    "swapdims", "permute", "movedim", "moveaxis", "t", "numpy_T", "mT", "mH", "adjoint",
    "unsqueeze", "squeeze", "alias", "detach", "view_as_real", "view_as_complex",
})  # fmt: skip
# Elements several times: their gradients are summed.
EXPANDED = frozenset({"expand", "expand_as", "broadcast_to"})
# Some of the elements: gradients are put together in a new tensor of the whole's size.
PARTS = frozenset({
    "slice", "narrow", "select", "split", "chunk", "split_with_sizes", "tensor_split", "hsplit",
    "vsplit", "dsplit", "unbind", "diagonal", "unfold", "real", "imag",
})  # fmt: skip
# Of these the ones whose gradient is new memory.
COPIED_BACK = EXPANDED | PARTS
ALIASES = RESHAPED | COPIED_BACK
