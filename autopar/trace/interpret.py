"""Runs single graph operations with torch, to observe what they compute and what they keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autopar.graph import Op, Ref, Size

# The graph drops ``contiguous``, without which a view may need a copy.
_RUN_AS = {"aten.view.default": "aten.reshape.default"}
_FACTORIES = ("arange", "ones", "zeros", "full", "empty", "scalar_tensor", "eye", "constant")


def function(target: str) -> Any:
    """The torch operator called ``target``, e.g. ``aten.linear.default``."""
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def exists(target: str) -> bool:
    """Whether torch has the operator called ``target``."""
    namespace, name, overload = target.split(".")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return packet is not None and overload in packet.overloads()


def concrete(tree: Any, env: Mapping[str, Tensor], batch: int) -> Any:
    """Replaces ``Ref``, ``Size`` and dtype names in a nest of arguments by what they stand for."""
    if isinstance(tree, Ref):
        return env[tree.name]
    if isinstance(tree, Size):
        return tree.at(batch)
    if isinstance(tree, tuple):
        return [concrete(item, env, batch) for item in tree]
    if isinstance(tree, str) and tree.startswith("torch."):
        return getattr(torch, tree.removeprefix("torch."))
    return tree


def run(op: Op, env: Mapping[str, Tensor], batch: int, device: str) -> tuple[Any, ...]:
    """Runs one op on the tensors of ``env``; returns its outputs in order."""
    args = [concrete(a, env, batch) for a in op.args]
    kwargs = {key: concrete(value, env, batch) for key, value in op.kwargs.items()}
    if op.target.split(".")[1] in _FACTORIES:
        kwargs["device"] = device
    result = function(_RUN_AS.get(op.target, op.target))(*args, **kwargs)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
