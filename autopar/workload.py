"""What is to be trained: the user's model, an example of its inputs, its loss."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from autopar.errors import UsageError

# What a program can hold as a constant.
PLAIN = (bool, int, float, str)


@dataclass
class Workload:
    """A model with what is needed to trace and to train it.

    Attributes:
        model: any ``nn.Module``; may be on ``meta``.
        example_inputs: a tuple of positional or a dict of keyword inputs; dim 0 of every
            tensor is the batch.
        loss_fn: ``(output, target) -> scalar``; None if the model's output has a ``loss``.
        example_target: second argument of ``loss_fn``.
        global_batch_size: samples per optimizer step over all ranks.
    """

    model: nn.Module
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None
    loss_fn: Callable[..., Tensor] | None = None
    example_target: Any = None
    global_batch_size: int | None = None

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the example.

        Raises:
            UsageError: there is no example, or its tensors disagree on the batch.
        """
        example = self.example_inputs
        for name in ("dummy_inputs", "example_input_array"):
            if example is None:
                example = getattr(self.model, name, None)
        if isinstance(example, Mapping):
            args, kwargs = (), dict(example)
        elif isinstance(example, (tuple, list)):
            args, kwargs = tuple(example), {}
        elif isinstance(example, Tensor):
            args, kwargs = (example,), {}
        else:
            raise UsageError(
                "no example inputs", expected="a tuple or a dict of tensors",
                where="example_inputs", hint="pass example_inputs=(torch.zeros(batch, ...),)",
            )  # fmt: skip
        _check_batch([t for _, t in leaves([args, kwargs]) if isinstance(t, Tensor)])
        return args, kwargs

    def batch_size(self) -> int:
        """Samples of the example."""
        tensors = (t for _, t in leaves(self.inputs()) if isinstance(t, Tensor))
        return next(tensors).shape[0]

    def constants(self) -> dict[str, Any]:
        """Numbers, texts and the like among the inputs, by their place: ``{"1.scale": 0.5}``.

        They are part of what is planned: another value may be another model.
        """
        args, kwargs = self.inputs()
        found = leaves(kwargs or args)
        return {path: leaf for path, leaf in found if isinstance(leaf, (*PLAIN, type(None)))}


def leaves(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, item) of all that is no list, tuple or mapping itself: "1.x" for nest[1]["x"]."""
    if isinstance(nest, (list, tuple, Mapping)):
        for key, item in nest.items() if isinstance(nest, Mapping) else enumerate(nest):
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, nest


def _check_batch(tensors: list[Tensor]) -> None:
    sizes = [tuple(tensor.shape) for tensor in tensors]
    batches = {shape[0] if shape else None for shape in sizes}
    if len(batches) != 1 or None in batches:
        raise UsageError(
            f"example inputs of shapes {sizes}", where="example_inputs",
            expected="tensors whose dim 0 is the same batch",
            hint="give every input a leading batch dim",
        )  # fmt: skip


def as_workload(value: Any, where: str) -> Workload:
    """A ``Workload``, or a mapping with its keys, as a ``Workload``.

    Raises:
        UsageError: it is neither, or a key is unknown or missing.
    """
    if isinstance(value, Workload):
        return value
    known = [f.name for f in fields(Workload)]
    if not isinstance(value, Mapping) or "model" not in value or not set(value) <= set(known):
        keys = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise UsageError(f"the function returned {keys}", where=where,
                         expected=f"autopar.Workload, or a mapping with keys {known}")  # fmt: skip
    return Workload(**value)


def load_workload(path: str) -> Workload:
    """Calls ``module:function`` or ``path/to/file.py:function`` and checks what it returns.

    Raises:
        UsageError: the module, the function or its result is not there.
    """
    module_name, _, function = path.rpartition(":")
    if not module_name or not function:
        raise UsageError(
            f"{path!r} names no function", expected="MODULE:FUNCTION or FILE.py:FUNCTION"
        )
    module = _import(module_name)
    maker = getattr(module, function, None)
    if not callable(maker):
        raise UsageError(
            f"{module_name} has no function {function!r}",
            expected="a function without arguments that returns the workload",
            where=path,
        )
    return as_workload(maker(), path)


def _import(name: str) -> ModuleType:
    """Imports a module by name from the current directory, or a file by path."""
    if not name.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"no module {error.name!r}",
                expected="a module that Python can import",
                where=name,
                hint="run from its directory, or give the path of the file",
            ) from error
        finally:
            sys.path.pop(0)
    if not os.path.exists(name):
        raise UsageError(f"no file {name}", expected="a Python file", where=name)
    stem = os.path.splitext(os.path.basename(name))[0]
    spec = importlib.util.spec_from_file_location(stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(stem, module)
    spec.loader.exec_module(module)
    return module


def parameters_of(model: nn.Module) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """(name, shape, dtype) of every parameter, tied ones once."""
    return tuple(
        (name, tuple(p.shape), str(p.dtype).removeprefix("torch."))
        for name, p in model.named_parameters()
    )


def check_planned(model: nn.Module, planned: Sequence[tuple[str, tuple[int, ...], str]]) -> None:
    """Compares a model with the one that was planned.

    Raises:
        UsageError: their parameters differ; the first difference is named.
    """
    for found, wanted in zip_longest(parameters_of(model), planned):
        if found != wanted:
            raise UsageError(
                f"parameter {_spell(found)}",
                expected=f"{_spell(wanted)}, as in the model that was planned",
                where=f"model {type(model).__name__}",
                hint="plan this model again, or run the one that was planned",
            )


def _spell(parameter: tuple[str, tuple[int, ...], str] | None) -> str:
    if parameter is None:
        return "nothing"
    name, shape, dtype = parameter
    return f"{name} {list(shape)} {dtype}"
