"""Modules that cannot be traced, because of values or of autograd functions with a backward.

Each becomes one operation, which a program runs by calling the user's module, and so does each of
torch's own functions that has no shapes on ``meta`` (``F.ctc_loss``). What the operation makes and
costs is observed (``observe.py``).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from autopar.errors import TraceError
from autopar.graph import Op, Ref, Size, refs
from autopar.graph_json import decode_tree, encode_tree
from autopar.trace.nests import describe_arguments, rebuild
from autopar.trace.observe import Described, Observed, observe

OPAQUE = "autopar.opaque.default"
FUNCTION = "function "  # in front of the name of a function, where modules have their path


@torch.library.custom_op("autopar::opaque", mutates_args=())
def opaque(inputs: list[Tensor], held: list[Tensor], call: str) -> list[Tensor]:
    """A call, written as JSON, of a module that holds the tensors ``held``, or of a function."""
    raise NotImplementedError(f"{call} is run by the module that it stands for")


@opaque.register_fake
def _(inputs: list[Tensor], held: list[Tensor], call: str) -> list[Tensor]:
    data = json.loads(call)
    described = [decode_tree(shape) for shape in data["arguments"]]
    made = [(decode_tree(shape), getattr(torch, dtype)) for shape, dtype in data["made"]]
    return [
        torch.empty([_size(s, described, inputs) for s in shape], dtype=dtype, device="meta")
        for shape, dtype in made
    ]


@dataclass(frozen=True)
class OpaqueCall:
    """What an operation that stands for a call is about, in the order of its arguments.

    Attributes:
        path: of the module; of a function "function torch.nn.functional.ctc_loss".
        args: positional arguments, with ``Ref`` for tensors.
        kwargs: keyword arguments, likewise.
        held: parameters and buffers of the module.
        results: the nest that is returned, with numbers for the operation's outputs
            (``nests.describe_results``).
        learned: for each output whether gradients flow through it.
        mixes: whether results of a sample depend on other samples.
        flops: of the forward of one sample.
        saved_bytes: kept for backward per sample, besides arguments and weights.
        sums: whether a result of all samples is a sum over them, and no mean.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    held: tuple[Ref, ...]
    results: Any
    learned: tuple[bool, ...]
    mixes: bool
    flops: int
    saved_bytes: int
    sums: bool = False

    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that are passed."""
        return tuple(dict.fromkeys(refs((self.args, self.kwargs))))

    @classmethod
    def of(cls, op: Op) -> OpaqueCall:
        """The call that ``op`` stands for."""
        return cls(*op.args)


def read_call(op: Op) -> Op:
    """An operation of an exported graph with what ``OpaqueCall`` has; others as they are."""
    if op.target != OPAQUE:
        return op
    inputs, held, call = op.args
    data = json.loads(call)
    args, kwargs = (_refer(decode_tree(data[key]), inputs) for key in ("args", "kwargs"))
    facts = (decode_tree(data["results"]), tuple(data["learned"]))
    numbers = (data["mixes"], data["flops"], data["saved_bytes"], data["sums"])
    return replace(op, args=(data["path"], args, kwargs, held, *facts, *numbers))


def _refer(tree: Any, inputs: Sequence[Ref]) -> Any:
    """A nest in which tensors have the names of ``inputs`` instead of their numbers."""
    if isinstance(tree, Ref):
        return inputs[int(tree.name)]
    if isinstance(tree, tuple):
        return tuple(_refer(item, inputs) for item in tree)
    if isinstance(tree, dict):
        return {key: _refer(item, inputs) for key, item in tree.items()}
    return tree


class UntraceableError(TraceError):
    """A trace stopped in the module at ``path``, which may be run as one operation instead."""

    path: str = ""


class HiddenBackwardError(Exception):
    """A function of the user's has a backward of its own, which a trace would lose."""


class OwnBackwards:
    """While active, calls of the user's ``torch.autograd.Function``s raise in this thread.

    The operations of their forward would be traced, and autograd's backward of these be run.

    Raises:
        HiddenBackwardError: one was called.
    """

    def __enter__(self) -> None:
        self._apply = vars(torch.autograd.Function)["apply"]
        own = threading.get_ident()

        def refuse(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
            foreign = not function.__module__.startswith("torch.")
            if not foreign or threading.get_ident() != own:  # checkpoints, and what is observed
                return self._apply.__get__(None, function)(*args, **kwargs)
            raise HiddenBackwardError(
                f"the backward of the autograd function {function.__name__} is not seen"
            )

        torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[method-assign,assignment]

    def __exit__(self, *_: object) -> None:
        torch.autograd.Function.apply = self._apply  # type: ignore[method-assign]


SizeOf = Callable[[Any], Size]


@dataclass
class Opaques:
    """The modules of a model that are run whole, and what was observed of their calls.

    Attributes:
        size: a symbolic number as ``Size``.
        modules: copies on ``meta``, by path.
        observed: by the module's form and its call.
    """

    size: SizeOf
    modules: dict[str, nn.Module] = field(default_factory=dict)
    observed: dict[str, Observed | None] = field(default_factory=dict)

    def find(self, model: nn.Module, path: str, calls: dict[str, tuple[Any, Any]]) -> list[str]:
        """Adds what is to be run whole for a trace to get past ``path``; its paths.

        That is the innermost module around ``path`` that can be run alone, and all that equal it;
        maybe the whole model, which can still be shared out by samples. ``model`` is a private
        copy; ``calls`` has the arguments of the modules that were called.
        """
        parts = path.split(".") if path else []
        for length in range(len(parts), -1, -1):
            name = ".".join(parts[:length])
            if name in self.modules or name not in calls:
                continue
            module = model.get_submodule(name)
            if self.facts(module, *calls[name], learned=bool(name)) is not None:
                form = _form(module)
                found = {p: m for p, m in model.named_modules() if _form(m) == form}
                self.modules |= found
                return list(found)
        return []

    def attach(self, model: nn.Module, without: tuple[str, ...]) -> None:
        """Prepares ``model``, a copy that is thrown away; below ``without`` nothing is traced."""
        for path, module in self.modules.items():
            if not path.startswith(without):
                target: Any = model.get_submodule(path)
                target.forward = self._forward(path, module, target)

    def _forward(self, path: str, module: nn.Module, target: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            facts = self.facts(module, args, kwargs, learned=bool(path))
            if facts is None:
                raise TraceError(
                    f"{path} is called with what it cannot be run on alone",
                    expected="tensors and plain data, as in its other calls", where=path,
                    hint="pass tensors, numbers, texts, and tuples, lists or dicts of these",
                )  # fmt: skip
            held = [*target.parameters(), *target.buffers()]
            return self.run(path, facts, held, (args, kwargs))

        return forward

    def run(self, path: str, facts: Observed, held: list[Tensor], given: Any) -> Any:
        """Puts the operation into the trace; what the call returns."""
        tensors: list[Tensor] = []
        args, kwargs = describe_arguments(given, tensors, self.size)
        call = {
            "path": path, "args": encode_tree(args), "kwargs": encode_tree(kwargs),
            "arguments": [encode_tree(shape) for shape, _ in facts.arguments],
            "made": [[encode_tree(s), str(kind).removeprefix("torch.")] for s, kind in facts.made],
            "results": encode_tree(facts.results), "learned": list(facts.learned),
            "mixes": facts.mixes, "flops": facts.flops, "saved_bytes": facts.saved_bytes,
            "sums": facts.sums,
        }  # fmt: skip
        return rebuild(facts.template, iter(opaque(tensors, held, json.dumps(call))))

    def facts(
        self, module: Any, args: Any, kwargs: Any, *, learned: bool = True
    ) -> Observed | None:
        """What is observed of a call, None if it cannot be run alone.

        The inputs of the whole model are not ``learned``: no gradient flows into them.
        """
        tensors: list[Tensor] = []
        try:
            call = describe_arguments((args, kwargs), tensors, self.size)
            described = tuple(self.describe(tensor) for tensor in tensors)
        except (TraceError, TypeError, AttributeError):  # objects, or sizes that depend on values
            return None
        key = repr((_form(module), call, described))
        if key not in self.observed:
            self.observed[key] = observe(module, call, described, learned=learned)
        return self.observed[key]

    def describe(self, argument: Tensor) -> Described:
        """Shape and dtype of a tensor in the trace."""
        return tuple(self.size(size) for size in argument.shape), argument.dtype


class ShapelessFunctions(TorchFunctionMode):
    """While active, functions of torch's that fail on ``meta`` are run whole where that works."""

    def __init__(self, opaques: Opaques) -> None:
        super().__init__()
        self.opaques = opaques

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called for every torch function."""
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            name = resolve_name(func) or ""
            facts = self.opaques.facts(func, args, kwargs) if _is_function(name) else None
            if facts is None:
                raise
            return self.opaques.run(f"{FUNCTION}{name}", facts, [], (args, kwargs))


def _is_function(name: str) -> bool:
    """Whether a program can call it by name: no method, and nothing that is private."""
    return name.startswith("torch.") and "._" not in name and "Tensor." not in name


def _form(module: Any) -> Any:
    if not isinstance(module, nn.Module):
        return resolve_name(module)
    return type(module), [(name, tuple(p.shape)) for name, p in module.named_parameters()]


def _size(size: Size, described: Sequence[tuple[Size, ...]], tensors: Sequence[Tensor]) -> Any:
    """A dim of a result in terms of those of the arguments."""
    if size.power == 0:
        return size.coefficient
    for shape, tensor in zip(described, tensors, strict=True):
        for dim, own in enumerate(shape):
            if own.power and size.coefficient % own.coefficient == 0:
                return tensor.shape[dim] * (size.coefficient // own.coefficient)
    raise TraceError("the result of a module that is run whole grows with the batch by itself")


def moved(op: Op, old: str, new: str) -> tuple[Any, ...]:
    """The arguments of an opaque op of the block ``old`` as those of the block ``new``."""
    return tuple(
        new + a.removeprefix(old) if isinstance(a, str) and a.startswith(f"{old}.") else a
        for a in op.args
    )
