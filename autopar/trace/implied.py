"""Leaves causal masks out of the calls of blocks that attend causally without one.

A program calls blocks that tp does not divide as the trace saw them called. Hugging Face's decoders
are passed a mask while they are traced, but none when they run: then they ask attention to be
causal, for which it has faster kernels. Whether a block does so is seen from the torch functions
that it calls on ``meta``, once with the mask and once with None: the results have to be the same
expressions of the block's inputs, but for the way in which attention is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autopar.graph import Call, Op, Ref, Value, refs
from autopar.trace.capture import Raw
from autopar.trace.model import meta_copy, set_training
from autopar.trace.private import tree_flatten, tree_map
from autopar.trace.repeats import NotRepeatedError, Repeat, hide_counters

BATCH = 2
_ARGUMENTS = {
    "query": None, "key": None, "value": None, "attn_mask": None, "dropout_p": 0.0,
    "is_causal": False, "scale": None, "enable_gqa": False,
}  # fmt: skip
_WHOLE = slice(None)
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.memory_format, torch.layout)


def without_causal_masks(
    model: nn.Module, calls: Mapping[str, Call], repeats: Iterable[Repeat], causal: set[str],
    ops: Iterable[Op], raw: Raw, dtype: torch.dtype,
) -> dict[str, Call]:  # fmt: skip
    """``calls`` with None for causal masks that a block's operations do not read.

    ``causal`` are the names of the masks: attention that used one has been written with
    ``is_causal``. Of equal blocks (``repeats``) that are called alike one is looked at.
    """
    read: dict[str, set[str]] = {}
    for op in ops:
        read.setdefault(op.unit, set()).update(op.inputs())
    like = {path: repeat for repeat in repeats for path in (*repeat.omitted, repeat.check)}
    known: dict[Any, bool] = {}
    found = dict(calls)
    for path in raw.blocks:
        masks = causal.intersection(_passed(calls.get(path))) - read.get(path, set())
        if not masks:
            continue
        repeat, call = like.get(path), calls[path]
        key = repeat.template if repeat else path, _form(call, masks, raw.values)
        if key not in known:
            known[key] = _implies(model, call, repeat, masks, raw.values, dtype)
        if known[key]:
            found[path] = _dropped(call, masks)
    return found


def _passed(call: Call | None) -> set[str]:
    return set(refs((call.args, call.kwargs))) if call else set()


def _form(call: Call, masks: set[str], values: Mapping[str, Value]) -> str:
    """The arguments with shapes for tensors."""

    def form(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        return leaf.name in masks, values[leaf.name].shape, values[leaf.name].dtype

    return repr((tree_map(form, call.args), tree_map(form, call.kwargs)))


def _dropped(call: Call, masks: set[str]) -> Call:
    """The call with None for the masks."""

    def drop(leaf: Any) -> Any:
        return None if isinstance(leaf, Ref) and leaf.name in masks else leaf

    return dataclasses.replace(
        call, args=tree_map(drop, call.args), kwargs=tree_map(drop, call.kwargs)
    )


def _implies(
    model: nn.Module, call: Call, repeat: Repeat | None, masks: set[str],
    values: Mapping[str, Value], dtype: torch.dtype,
) -> bool:  # fmt: skip
    """Whether the block computes the same without the masks; if that cannot be told, no."""
    block = set_training(meta_copy(model.get_submodule(call.path), dtype), model)
    hide_counters(block, repeat.counters if repeat else ())
    terms: dict[Any, int] = {}
    try:
        given, implied = (
            _Expressions(block, masks, terms).of(each, values)
            for each in (call, _dropped(call, masks))
        )
    except (NotRepeatedError, UntoldError, AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return bool(given == implied)


class UntoldError(Exception):
    """What a block does cannot be written as an expression of its inputs."""


class _Expressions(TorchFunctionMode):
    """Runs a block on ``meta`` and numbers the expression that makes each tensor.

    Equal expressions have equal numbers among all that share ``terms``.
    """

    def __init__(self, block: nn.Module, masks: set[str], terms: dict[Any, int]) -> None:
        super().__init__()
        self.block, self.masks, self.terms = block, masks, terms
        self.numbers: dict[int, int] = {}
        self.made_by: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        self.alive: list[Tensor] = []  # so that an id stands for one tensor
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            self._keep(tensor, ("own", name))

    def of(self, call: Call, values: Mapping[str, Value]) -> Any:
        """The nest of numbers that stands for what the call returns."""
        inputs: dict[str, Tensor] = {}

        def made(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            if leaf.name not in inputs:
                inputs[leaf.name] = self._input(values[leaf.name])
            return inputs[leaf.name]

        args, kwargs = tree_map(made, call.args), tree_map(made, call.kwargs)
        with self:
            result = self.block(*args, **kwargs)
        return self._described(result)

    def _input(self, value: Value) -> Tensor:
        shape = [size.at(BATCH) for size in value.shape]
        tensor = torch.empty(shape, dtype=getattr(torch, value.dtype), device="meta")
        return self._keep(tensor, "causal" if value.name in self.masks else ("input", value.name))

    def _keep(self, tensor: Tensor, term: Any) -> Tensor:
        self.alive.append(tensor)
        self.numbers[id(tensor)] = self.terms.setdefault(term, len(self.terms))
        return tensor

    def _described(self, tree: Any) -> Any:
        """The nest with numbers for tensors, and text for what else there is."""
        leaves, spec = tree_flatten(tree)
        return str(spec), tuple(
            self._number(leaf) if isinstance(leaf, Tensor) else _text(leaf) for leaf in leaves
        )

    def _number(self, tensor: Tensor) -> int:
        if id(tensor) not in self.numbers:
            raise UntoldError
        return self.numbers[id(tensor)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            raise UntoldError  # it changes a tensor in place
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        if not made:
            return result
        if func is Tensor.__getitem__ and _is_whole(args[1]) and result.shape == args[0].shape:
            self.alive.append(result)
            self.numbers[id(result)] = self._number(args[0])
            return result
        told = functional.scaled_dot_product_attention
        term = self._attention(args, kwargs) if func is told else self._described((args, kwargs))
        for index, leaf in enumerate(made):
            if id(leaf) not in self.numbers:
                self._keep(leaf, (str(func), index, tuple(leaf.shape), leaf.dtype, term))
                self.made_by[id(leaf)] = func, args
        return result

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Attention's arguments, whichever way it is told to be causal and to repeat heads."""
        given = _ARGUMENTS | dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        mask, query, key = given["attn_mask"], given["query"], given["key"]
        square = query.shape[-2] == key.shape[-2]
        by_mask = mask is not None and self._number(mask) == self.terms.get("causal")
        by_flag = mask is None and given["is_causal"]
        if square and (by_flag or (by_mask and not given["is_causal"])):
            given |= {"attn_mask": None, "is_causal": "causal"}
        heads = [self._heads(given.pop(name), query) for name in ("key", "value")]
        given.pop("enable_gqa")
        return tuple(heads), self._described(given)

    def _heads(self, tensor: Tensor, query: Tensor) -> tuple[int, int]:
        """A key or value before its heads were repeated, and how many queries share each."""
        chain = [tensor]
        for wanted in (Tensor.reshape, Tensor.expand, Tensor.__getitem__):
            func, args = self.made_by.get(id(chain[-1]), (None, ()))
            if func is not wanted:
                return self._number(tensor), query.shape[-3] // tensor.shape[-3]
            chain.append(args[0])
        b, h, *rest = chain[3].shape
        index, n = args[1], tensor.shape[-3] // h
        repeats = index == (_WHOLE, _WHOLE, None, _WHOLE, _WHOLE)
        repeats = repeats and chain[1].shape == (b, h, n, *rest) and tensor.shape[1] == h * n
        base = chain[3] if repeats else tensor
        return self._number(base), query.shape[-3] // base.shape[-3]


def _text(leaf: Any) -> str:
    """Plain data as text; anything else may hide a tensor."""
    if isinstance(leaf, slice):
        return str([_text(part) for part in (leaf.start, leaf.stop, leaf.step)])
    if isinstance(leaf, _PLAIN) or leaf is None or leaf is ...:
        return repr(leaf)
    raise UntoldError


def _is_whole(index: Any) -> bool:
    """Whether an index takes nothing but slices from the start on."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, slice) and p.start is None and p.step is None for p in parts)
