"""Blocks that are called but not traced.

The model's own forward runs in full and calls every block. A block that is left out checks that
it is called as its template was, and puts one operation, ``autopar::stand_in``, into the exported
graph, which ``autopar.trace.expand`` replaces by the template's operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autopar.trace.model import Recorder, refer
from autopar.trace.private import tree_flatten, tree_unflatten
from autopar.trace.repeats import NotRepeatedError, Repeat, hide_counters

STAND_IN = "autopar.stand_in.default"


@torch.library.custom_op("autopar::stand_in", mutates_args=())
def stand_in(inputs: list[Tensor], like: list[Tensor], path: str) -> list[Tensor]:
    """The block at ``path``: reads ``inputs`` and makes tensors like its template's outputs."""
    return [torch.empty_like(tensor) for tensor in like]


@stand_in.register_fake
def _(inputs: list[Tensor], like: list[Tensor], path: str) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in like]


def attach_stand_ins(model: nn.Module, repeats: tuple[Repeat, ...], recorder: Recorder) -> None:
    """Prepares ``model``, a private copy, for a trace without the omitted blocks."""
    for repeat in repeats:
        recorder.watched |= {repeat.template}
        for path in (repeat.template, repeat.check):
            hide_counters(model.get_submodule(path), repeat.counters)
        for path in repeat.omitted:
            block: Any = model.get_submodule(path)
            block.forward = _forward(path, type(block).__name__, repeat, recorder)


def _forward(path: str, class_name: str, repeat: Repeat, recorder: Recorder) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if path in recorder.counts or repeat.template not in recorder.samples:
            raise NotRepeatedError(f"{path} is called twice, or before {repeat.template}")
        expected, output = recorder.samples[repeat.template]
        leaves, spec = tree_flatten((args, kwargs))
        if _describe(leaves, spec) != _describe(*tree_flatten(expected)):
            raise NotRepeatedError(f"{path} is not called as {repeat.template} is")
        recorder.counts[path] = 1
        recorder.parameters[path] = recorder.parameters[repeat.template]
        recorder.defaults[path] = recorder.defaults[repeat.template]
        result = _stand_in_output(leaves, output, path)
        recorder.calls[f"{path}#1"] = (
            class_name, refer((args, kwargs), f"{path}#1:in"), refer(output, f"{path}#1:out")
        )  # fmt: skip
        return result

    return forward


def _stand_in_output(leaves: list[Any], output: Any, path: str) -> Any:
    like, spec = tree_flatten(output)
    made = iter(stand_in(_tensors(leaves), _tensors(like), path))
    return tree_unflatten([next(made) if isinstance(x, Tensor) else x for x in like], spec)


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _describe(leaves: list[Any], spec: Any) -> Any:
    """What the operations of a block can depend on, of the arguments that it is called with."""
    return spec, [_describe_leaf(leaf) for leaf in leaves]


def _describe_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        sizes = [str(size) for size in (*leaf.shape, *leaf.stride())]
        return leaf.dtype, leaf.device, sizes
    if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return type(leaf), str(leaf)
    if leaf is None or isinstance(leaf, (bool, int, float, str, torch.dtype, torch.device)):
        return type(leaf), leaf
    raise NotRepeatedError(f"a block is called with a {type(leaf).__name__}")
