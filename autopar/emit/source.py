"""One operation of the graph as the line of PyTorch that a person would write."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable, Sequence
from typing import Any

import torch

from autopar.emit.functional import DEFAULTS, DROPOUTS, FACTORIES, FUNCTIONAL, REDUCTION
from autopar.graph import Graph, Op, Ref, Size, Value
from autopar.strategies.sharding import Moved
from autopar.strategies.states import State

# Arguments that functionals take as one number where it is the same for each dim.
_PER_DIM = frozenset({
    "kernel_size", "stride", "strides", "padding", "output_padding", "dilation", "output_size",
    "scale_factor", "size",
})  # fmt: skip
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "mm": "@", "bmm": "@",
         "__and__": "&", "__or__": "|", "bitwise_and": "&", "bitwise_or": "|",
         "floor_divide": "//", "remainder": "%",
         "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}  # fmt: skip

# Operators of other libraries that the program has a function for.
HELPED = {"grouped_mm_fallback": "grouped_mm"}


class Namer:
    """Gives graph values short Python names that do not collide."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self.names: dict[str, str] = {}
        self.taken = set(taken)
        self.bases: dict[str, str] = {}  # what each name would be if it were not in use

    def fresh(self, base: str) -> str:
        """A name like ``base`` that is not in use."""
        usable = base.isidentifier() and not keyword.iskeyword(base) and not hasattr(builtins, base)
        base = base if usable else f"{base}_"
        name, count = base, 2
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        self.bases[name] = base
        return name

    def bind(self, value: str, base: str) -> str:
        """Names ``value``; later lookups return the same name."""
        self.names[value] = self.fresh(base)
        return self.names[value]


def dimension(size: Size, outer: tuple[int, int] | None = None) -> str:
    """A dim as source: ``MICROBATCH``, ``12 // TP``, ``MICROBATCH * 32``.

    ``outer`` is that of the shard if the dim is sharded; one that holds no batch although the
    dim does divides the batch.
    """
    batch = "MICROBATCH" if size.power else ""
    rest = "" if batch and size.coefficient == 1 else str(size.coefficient)
    if outer is not None and size.power > outer[1]:
        batch += " // TP"
    elif outer is not None:
        rest = f"({rest} // TP)" if batch else f"{rest} // TP"
    return " * ".join(text for text in (batch, rest) if text)


def local_dimensions(value: Value, state: State) -> tuple[str, ...]:
    """The shape of what one rank holds of ``value``, as source."""
    return tuple(
        dimension(size, state.outer if state.kind == "S" and state.dim == dim else None)
        for dim, size in enumerate(value.shape)
    )


# Operations that are attributes of tensors.
ATTRIBUTES = ("mT", "mH")


class Text(str):
    """Source that stands for an argument."""

    __slots__ = ()


def literal(argument: Any, name: Callable[[str], str]) -> str:
    """A constant or reference among an op's arguments as source."""
    if isinstance(argument, Text):
        return argument
    if isinstance(argument, Ref):
        return name(argument.name)
    if isinstance(argument, Size):
        return dimension(argument)
    if isinstance(argument, tuple):
        inner = ", ".join(literal(a, name) for a in argument)
        return f"({inner},)" if len(argument) == 1 else f"({inner})"
    if isinstance(argument, dict):
        items = (f'"{key}": {literal(item, name)}' for key, item in argument.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(argument, str) and argument.startswith("torch."):
        return argument
    if isinstance(argument, float) and argument in (float("inf"), float("-inf")):
        return f'float("{argument}")'
    if isinstance(argument, float):
        return repr(argument).replace("e+", "e")
    return f'"{argument}"' if isinstance(argument, str) else repr(argument)


def group(text: str, *, within: str = "") -> str:
    """Parenthesises an infix expression, so that it can be an operand.

    A product stays as it is ``within`` a sum.
    """
    outside = _outside_brackets(text)
    number = text.startswith("-") and text[1:].replace(".", "", 1).isdigit()
    if " " not in outside and ((number and within) or not text.startswith("-")):
        return text
    operators = set(outside.split()[1::2])
    if within in ("+", "-") and not text.startswith("-") and operators <= {"*", "/", "@"}:
        return text
    return f"({text})"


def _outside_brackets(text: str) -> str:
    """The text with whatever stands in brackets left out, a word for each operand."""
    kept, depth = [], 0
    for char in text:
        depth += char in "([{"
        kept.append(char if depth == 0 else "_")
        depth -= char in ")]}"
    return "".join(kept)


class Writer:
    """Writes single ops.

    ``name`` gives the source of a value, ``local`` that of each of its local dims.
    """

    def __init__(
        self,
        values: dict[str, Value],
        name: Callable[[str], str],
        local: Callable[[str], tuple[str, ...]],
    ) -> None:
        self.values, self.name, self.local = values, name, local

    def expression(self, op: Op) -> str:
        """The right-hand side for ``op``."""
        base = op.target.split(".")[1]
        special = _SPECIAL.get(base)
        if special:
            return special(self, op)
        if base in INFIX and not op.kwargs and len(op.args) == 2:
            left, right = (group(self.text(a), within=INFIX[base]) for a in op.args)
            return f"{left} {INFIX[base]} {right}"
        if base in FUNCTIONAL and len(op.args) <= len(FUNCTIONAL[base][1]):
            return self._functional(base, op)
        if base in FACTORIES:
            return self._factory(base, op)
        if base in HELPED:
            return f"{HELPED[base]}({self._arguments(op.args, op.kwargs)})"
        if base in ATTRIBUTES:
            return f"{group(self.text(op.args[0]))}.{base}"
        if hasattr(torch.Tensor, base) and op.args and isinstance(op.args[0], Ref):
            return self._method(base, op.args, op.kwargs)
        if hasattr(torch, base):
            return f"torch.{base}({self._arguments(op.args, op.kwargs)})"
        return f"torch.ops.{op.target}({self._arguments(op.args, op.kwargs)})"

    def text(self, argument: Any) -> str:
        """The source of one argument."""
        return literal(argument, self.name)

    def _method(self, base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        text = f"{group(self.text(args[0]))}.{base}"
        called = callable(getattr(torch.Tensor, base))  # x.mH is an attribute
        return f"{text}({self._arguments(args[1:], kwargs)})" if called else text

    def _arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        parts = [self.text(a) for a in args]
        parts += [f"{key}={self.text(value)}" for key, value in kwargs.items()]
        return ", ".join(parts)

    def _functional(self, base: str, op: Op) -> str:
        function, parameters = FUNCTIONAL[base]
        pairs = [(p, a) for p, a in zip(parameters, op.args, strict=False) if p]
        pairs = [(p, self._plain(p.rstrip("="), a, op)) for p, a in pairs]
        kwargs = {p[:-1]: a for p, a in pairs if p.endswith("=")}
        kwargs |= {k: self._plain(k, v, op) for k, v in op.kwargs.items()}
        kwargs = {k: v for k, v in kwargs.items() if DEFAULTS.get(k, None) != v}
        pairs = [(p, a) for p, a in pairs if not p.endswith("=")]
        while pairs and pairs[-1][1] == DEFAULTS.get(pairs[-1][0], pairs):
            pairs.pop()
        text = self._arguments([a for _, a in pairs], kwargs)
        suffix = ", training=self.training" if base in DROPOUTS else ""
        return f"F.{function}({text}{suffix})"

    def _plain(self, parameter: str, argument: Any, op: Op) -> Any:
        """An argument as the functional takes it: one number for equal ones, "sum" for 2."""
        if parameter == "reduction" and isinstance(argument, int):
            return REDUCTION[argument]
        if parameter in ("groups", "num_groups") and argument != 1 and self._channels_split(op):
            return Text(f"{argument} // TP")
        if parameter == "training":  # without running statistics, those of the samples always count
            kept = isinstance(op.args[3], Ref)
            return Text("self.training") if kept and argument else argument or not kept
        alike = isinstance(argument, tuple) and len(set(argument)) == 1
        return argument[0] if alike and parameter in _PER_DIM else argument

    def _channels_split(self, op: Op) -> bool:
        out = op.outputs[0]
        return self.local(out)[1] != dimension(self.values[out].shape[1])

    def _factory(self, base: str, op: Op) -> str:
        return f"torch.{base}({self._arguments(op.args, {**op.kwargs})}, device=DEVICE)"

    def constant(self, op: Op) -> str:
        """A tensor of numbers, as a nest of lists."""
        data, shape = op.args
        numbers = [n if "float" in op.kwargs["dtype"] else int(n) for n in data]
        nest: Any = [self.text(n) for n in numbers]
        for size in reversed(shape):
            rows = [nest[i : i + size] for i in range(0, len(nest), size)] if size else []
            nest = [f"[{', '.join(row)}]" for row in rows]
        text = nest[0] if nest else "[]"
        return f"torch.tensor({text}, dtype={op.kwargs['dtype']}, device=DEVICE)"

    def reshape(self, op: Op) -> str:
        """Reshapes by the local shape of the result; the micro-batch is what is left."""
        dims = self.local(op.outputs[0])
        alone = sum("MICROBATCH" in dim for dim in dims) == 1
        shape = ["-1" if alone and "MICROBATCH" in dim else dim for dim in dims]
        return f"{group(self.text(op.args[0]))}.reshape({', '.join(shape)})"

    def expand(self, op: Op) -> str:
        """Broadcasts to the local shape of the result; -1 for the dims that stay."""
        before, after = (self.values[name].shape for name in (op.args[0].name, op.outputs[0]))
        kept = [None] * (len(after) - len(before)) + list(before)
        shape = ["-1" if size == old else dim for size, old, dim in
                 zip(after, kept, self.local(op.outputs[0]), strict=True)]  # fmt: skip
        return f"{group(self.text(op.args[0]))}.expand({', '.join(shape)})"

    def negated(self, op: Op) -> str:
        """``-x``."""
        return f"-{group(self.text(op.args[0]))}"

    def reduced(self, op: Op) -> str:
        """``x.mean(dim, keepdim=True)`` and its like."""
        given = [*op.args[1:], *[None] * (2 - len(op.args[1:]))]
        dims, keep = given[:2]
        if len(op.args) > 3 or not isinstance(dims, tuple) or op.args[0] is None:
            return self._method(op.target.split(".")[1], op.args, op.kwargs)
        dim = dims[0] if len(dims) == 1 else dims
        kwargs = {**({"keepdim": True} if keep else {}), **op.kwargs}
        return self._method(op.target.split(".")[1], (op.args[0], dim), kwargs)

    def slice(self, op: Op) -> str:
        """Indexing with a range along one dim."""
        given, defaults = tuple(op.args[1:]), (0, None, None, 1)
        dim, start, end, step = given + defaults[len(given) :]
        rank = len(self.values[op.args[0].name].shape)
        span = f"{start or ''}:{'' if end is None or end >= 2**62 else end}"
        span += f":{step}" if step != 1 else ""
        before = [":"] * (dim % rank)
        if rank - dim % rank == 1 and before:
            before = ["..."]
        return f"{group(self.text(op.args[0]))}[{', '.join([*before, span])}]"

    def select(self, op: Op) -> str:
        """Indexing with a number along one dim."""
        rank = len(self.values[op.args[0].name].shape)
        dim = op.args[1] % rank
        before = ["..."] if dim and dim == rank - 1 else [":"] * dim
        return f"{group(self.text(op.args[0]))}[{', '.join([*before, self.text(op.args[2])])}]"

    def slice_scatter(self, op: Op) -> str:
        """Puts a range along one dim back; an open end is left out."""
        given, defaults = tuple(op.args[2:]), (0, None, None, 1)
        arguments = list(given + defaults[len(given) :])
        arguments[2] = None if (arguments[2] or 0) >= 2**62 else arguments[2]
        while arguments and arguments[-1] == defaults[len(arguments) - 1]:
            arguments.pop()
        return self._method("slice_scatter", (*op.args[:2], *arguments), {})

    def index(self, op: Op) -> str:
        """Indexing with tensors."""
        indices = ", ".join(":" if i is None else self.text(i) for i in op.args[1])
        return f"{group(self.text(op.args[0]))}[{indices}]"

    def split(self, op: Op) -> str:
        """Equal parts of the local size; unequal ones are never divided."""
        dim = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)
        rank = len(self.values[op.args[0].name].shape)
        size = self.local(op.outputs[0])[dim % rank]
        if isinstance(op.args[1], tuple) and len(set(op.args[1])) > 1:
            size = self.text(op.args[1])
        return f"{group(self.text(op.args[0]))}.split({size}, dim={dim})"

    def upsample(self, op: Op) -> str:
        """``F.interpolate`` by its size or its factors."""
        mode = op.target.split(".")[1].removeprefix("upsample_").removesuffix("2d")
        size, factors = op.args[1], op.args[-1]
        if size is None:
            kwargs = {"scale_factor": self._plain("scale_factor", factors, op)}
        else:
            kwargs = {"size": self._plain("size", size, op)}
        aligned = mode != "nearest" and op.args[2]
        kwargs |= {"mode": mode, **({"align_corners": True} if aligned else {})}
        return f"F.interpolate({self.text(op.args[0])}, {self._arguments((), kwargs)})"

    def vector_norm(self, op: Op) -> str:
        """``torch.linalg.vector_norm``."""
        return f"torch.linalg.vector_norm({self._arguments(op.args, op.kwargs)})"

    def einsum(self, op: Op) -> str:
        """``torch.einsum`` with its tensors one by one."""
        tensors = ", ".join(self.text(t) for t in op.args[1])
        return f'torch.einsum("{op.args[0]}", {tensors})'

    def joined(self, op: Op) -> str:
        """``torch.cat`` and ``torch.stack``."""
        base = op.target.split(".")[1]
        dim = f", dim={op.args[1]}" if len(op.args) > 1 else ""
        return f"torch.{base}({self.text(op.args[0])}{dim})"

    def broadcast(self, op: Op) -> str:
        """``torch.broadcast_tensors`` with its tensors one by one."""
        return f"torch.broadcast_tensors({', '.join(self.text(t) for t in op.args[0])})"

    def cast(self, op: Op) -> str:
        """``x.to(dtype)``."""
        dtype = self.values[op.outputs[0]].dtype
        return f"{group(self.text(op.args[0]))}.to(torch.{dtype})"

    def reversed(self, op: Op) -> str:
        """``y - x`` for ``rsub(x, y)``."""
        if len(op.args) > 2 or op.kwargs:
            return f"torch.rsub({self._arguments(op.args, op.kwargs)})"
        return f"{group(self.text(op.args[1]))} - {group(self.text(op.args[0]))}"

    def where(self, op: Op) -> str:
        """``torch.where``."""
        return f"torch.where({self._arguments(op.args, op.kwargs)})"

    def embedding(self, op: Op) -> str:
        """Row lookup; the functional form takes the index first."""
        padding = op.args[2] if len(op.args) > 2 else -1
        tail = "" if padding in (-1, None) else f", padding_idx={padding}"
        return f"F.embedding({self.text(op.args[1])}, {self.text(op.args[0])}{tail})"

    def attention(self, op: Op) -> str:
        """Scaled dot product attention with its non-default arguments by name."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names[3:], op.args[3:], strict=False)) | op.kwargs
        default = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None}
        kept = {k: v for k, v in given.items() if default.get(k, False) != v}
        dropout = kept.pop("dropout_p", None)
        text = self._arguments(op.args[:3], kept)
        if dropout is not None:
            text += f", dropout_p={dropout} if self.training else 0.0"
        return f"F.scaled_dot_product_attention({text})"

    def cross_entropy(self, op: Op) -> str:
        """The loss with its non-default arguments by name."""
        names = ("weight", "reduction", "ignore_index", "label_smoothing")
        given = dict(zip(names, op.args[2:], strict=False)) | op.kwargs
        default = {"weight": None, "reduction": 1, "ignore_index": -100, "label_smoothing": 0.0}
        kept = {k: v for k, v in given.items() if default[k] != v}
        if "reduction" in kept:
            kept["reduction"] = ("none", "mean", "sum")[kept["reduction"]]
        return f"F.cross_entropy({self._arguments(op.args[:2], kept)})"


_SPECIAL: dict[str, Callable[[Writer, Op], str]] = {
    "constant": Writer.constant,
    "view": Writer.reshape,
    "reshape": Writer.reshape,
    "_unsafe_view": Writer.reshape,
    "flatten": Writer.reshape,
    "unflatten": Writer.reshape,
    "expand": Writer.expand,
    "neg": Writer.negated,
    "mean": Writer.reduced,
    "sum": Writer.reduced,
    "amax": Writer.reduced,
    "select": Writer.select,
    "slice": Writer.slice,
    "slice_scatter": Writer.slice_scatter,
    "index": Writer.index,
    "split": Writer.split,
    "chunk": Writer.split,
    "split_with_sizes": Writer.split,
    "cat": Writer.joined,
    "stack": Writer.joined,
    "broadcast_tensors": Writer.broadcast,
    "to": Writer.cast,
    "_to_copy": Writer.cast,
    "type_as": Writer.cast,
    "rsub": Writer.reversed,
    "where": Writer.where,
    "embedding": Writer.embedding,
    "scaled_dot_product_attention": Writer.attention,
    "cross_entropy_loss": Writer.cross_entropy,
    "einsum": Writer.einsum,
    "linalg_vector_norm": Writer.vector_norm,
    **dict.fromkeys(
        (f"upsample_{mode}2d" for mode in ("nearest", "bilinear", "bicubic")), Writer.upsample
    ),
}


def spelled(graph: Graph, source: str, unit: str) -> str:
    """The name of a parameter as the module at ``unit`` spells it; tied ones have several."""
    names = next((group for group in graph.tied if source in group), (source,))
    return next((name for name in names if unit and name.startswith(f"{unit}.")), names[0])


def move_arguments(move: Moved) -> str:
    """The arguments of a change of state, behind the value."""
    if move.move.function == "all_to_all":
        return f", from_dim={move.source.dim}, to_dim={move.target.dim}"
    dims = [s.dim for s in (move.source, move.target) if s.kind == "S"]
    return f", dim={dims[0]}" if dims else ""
