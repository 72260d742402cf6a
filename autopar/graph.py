"""The traced model as plain data: values, operations, module calls and layers.

Nothing here imports torch, so that a plan, which carries the graph that its program
is written from, can be read anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

DTYPE_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}

_LINEAR = "aten.linear.default"

ValueKind = Literal["input", "parameter", "buffer", "activation"]


@dataclass(frozen=True)
class Size:
    """One tensor dimension: ``coefficient * batch ** power``, batch being the micro-batch size."""

    coefficient: int
    power: int = 0

    def at(self, batch: int) -> int:
        """The number of elements along the dimension for a micro-batch of ``batch`` samples."""
        return self.coefficient * int(batch**self.power)


@dataclass(frozen=True)
class Ref:
    """A use of the value called ``name`` among an operation's arguments."""

    name: str


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    ``source`` is the parameter's or buffer's dotted name, the input's key, or "" for activations.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: str
    kind: ValueKind = "activation"
    source: str = ""
    requires_grad: bool = False

    def elements(self, batch: int) -> int:
        """Number of elements for a micro-batch of ``batch`` samples."""
        coefficient, power = self._elements
        return coefficient * int(batch**power)

    @cached_property
    def _elements(self) -> tuple[int, int]:
        """Coefficient and power of the batch of all dims together."""
        powers = sum(size.power for size in self.shape)
        return math.prod(size.coefficient for size in self.shape), powers

    def bytes(self, batch: int) -> int:
        """Size in bytes for a micro-batch of ``batch`` samples."""
        return self.elements(batch) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Op:
    """One ATen operation.

    ``args`` and ``kwargs`` hold ``Ref``, ``Size``, plain scalars, strings (dtypes are
    written ``"torch.float32"``) and tuples of these. ``unit`` is the path of the
    module call that the operation belongs to, "" for the code between module calls.
    ``inplace`` marks one that changes its first argument in the user's code. ``labels`` are the
    variables that hold the outputs there, where that is known; operations are equal without it.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str, ...]
    unit: str = ""
    where: str = ""
    no_grad: bool = False
    inplace: bool = False
    labels: tuple[str, ...] = field(default=(), compare=False)

    def inputs(self) -> tuple[str, ...]:
        """Names of the values that the operation reads, in order of first use."""
        return self._inputs

    @cached_property
    def _inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(refs((self.args, self.kwargs))))


def refs(tree: Any) -> Iterator[str]:
    """Every name referred to in a nest of tuples and dicts."""
    if isinstance(tree, Ref):
        yield tree.name
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from refs(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from refs(item)


@dataclass(frozen=True)
class Call:
    """One call of a user's module, as the model made it; the second one of "trunk" as "trunk#2".

    ``args`` and ``kwargs`` hold ``Ref`` for tensors and plain data for everything else;
    ``outputs`` is the nest of ``Ref`` that the module returned. ``parameters`` are the names
    of the positional arguments in the module's signature, ``defaults`` those that plain data is the
    default of.
    """

    path: str
    class_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    parameters: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A contiguous part of the model that is placed on one stage as a whole.

    ``kind`` is "block" for a module of a list of modules (``name`` is its path), "embedding"
    for what stands before the first block, "head" for what stands behind the last, and
    "glue" for what stands between two blocks, and "run" for a run of a module of a list that is no
    layer of its own, with the code behind it: one that runs several times, say.
    ``signature`` is equal for layers that are the same up to the values of their parameters.
    ``received`` are the learned activations that other layers make and this one reads, ``sent``
    those that it makes and others read. ``chained`` are those of both that the next layer alone
    reads: the hidden state, in contrast to an encoder's result or a skip connection.
    ``buffer_bytes`` are those of the buffers of a block's module that no other module has.
    """

    name: str
    kind: Literal["embedding", "block", "run", "glue", "head"]
    ops: tuple[int, ...]
    signature: str
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    received: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
    chained: frozenset[str] = frozenset()
    buffer_bytes: int = 0


@dataclass(frozen=True)
class Saved:
    """Tensors that autograd keeps for one op: graph values by name, and bytes made inside the op.

    ``extra_bytes`` are per sample of the micro-batch; ``fixed_bytes`` are those of copies that do
    not grow with it, such as a parameter's in another order.
    """

    values: tuple[str, ...]
    extra_bytes: int = 0
    fixed_bytes: int = 0


@dataclass(frozen=True)
class Graph:
    """A whole traced training step: model and loss.

    Attributes:
        values: every tensor, by name.
        ops: in execution order.
        calls: module calls by path.
        layers: in execution order.
        context: ops that depend on inputs and buffers alone (masks, rotary tables);
            every stage that needs them runs them again instead of receiving their results.
        inputs: names of the input values, by the key under which the user passes them:
            ``"args.0"`` or ``"kwargs.input_ids"`` for inputs, ``"target"`` for the target.
        loss: name of the scalar loss.
        tied: groups of parameter names that are one tensor, first name first.
        saved: by op index, what autograd keeps for backward; filled for the first
            layer of each class.
        buffer_bytes: of all buffers of the model that are no block's own, and of parameters
            outside the blocks that nothing reads.
    """

    values: dict[str, Value]
    ops: tuple[Op, ...]
    calls: dict[str, Call]
    layers: tuple[Layer, ...]
    context: tuple[int, ...]
    inputs: dict[str, str]
    loss: str
    tied: tuple[tuple[str, ...], ...] = ()
    saved: dict[int, Saved] = field(default_factory=dict)
    buffer_bytes: int = 0

    @cached_property
    def summed(self) -> dict[int, frozenset[str]]:
        """By op: the values whose gradient is added to the one that an earlier reader gives."""
        seen: set[str] = set()
        found: dict[int, frozenset[str]] = {}
        for index, op in enumerate(self.ops):
            if any(self.values[n].requires_grad for n in op.outputs):
                learned = {n for n in op.inputs() if self.values[n].requires_grad}
                if learned & seen:
                    found[index] = frozenset(learned & seen)
                seen |= learned
        return found

    @cached_property
    def biased(self) -> dict[int, int]:
        """By the op that adds a bias: the linear map, right before it, that can add it along."""
        found = {}
        for (before, product), (index, op) in pairwise(enumerate(self.ops)):
            added = [a.name for a in op.args if isinstance(a, Ref)]
            is_sum = op.target == "aten.add.Tensor" and not op.kwargs and len(added) == 2
            if is_sum and (product.target, *added[:1]) == (_LINEAR, *product.outputs):
                bias = self.values[added[1]]
                if bias.kind == "parameter" and len(bias.shape) == 1:
                    found[index] = before
        return found
