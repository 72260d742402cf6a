"""Writes operations that change their first argument as ones that make a new tensor."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import lru_cache

from autopar.errors import TraceError
from autopar.graph import Op, Ref, Value
from autopar.trace.aliases import ALIASES
from autopar.trace.interpret import exists
from autopar.trace.simplify import renamed

Values = dict[str, Value]

# Ops whose result may share the memory of their first argument.
_SHARING = ALIASES | {"contiguous", "to"}
# Views of which a changed one can be put back into the tensor that it is a part of.
_SCATTERS = {"slice": "aten.slice_scatter.default", "select": "aten.select_scatter.default"}


def is_inplace(op: Op) -> bool:
    """Whether the op changes its first argument: ``relu_`` does, ``__and__`` does not."""
    return _is_inplace(op.target)


@lru_cache(maxsize=4096)
def _is_inplace(target: str) -> bool:
    name = target.split(".")[1]
    return name.endswith("_") and not name.endswith("__")


@dataclass
class _Memory:
    """Which values share memory while the ops are read in order.

    ``names`` says by which value each changed one is known now, ``views`` by which op each part
    of a tensor was made, ``shared`` what shares memory with a tensor other than as its part, with
    all that shares it, ``last_read`` which op reads each value last, ``now`` the present op,
    ``buffers`` what changes of buffers return, which is the buffer, and ``stale`` what would have
    to show a change and does not.
    """

    values: Values
    names: dict[str, str] = field(default_factory=dict)
    views: dict[str, Op] = field(default_factory=dict)
    shared: dict[str, set[str]] = field(default_factory=dict)
    last_read: dict[str, int] = field(default_factory=dict)
    now: int = 0
    buffers: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)

    def share(self, names: set[str]) -> None:
        """From now on all that shares memory with one of ``names`` does with the others."""
        group = names.union(*(self.shared.get(name, set()) for name in names))
        self.shared.update(dict.fromkeys(group, group))

    def is_shared(self, name: str) -> bool:
        """Whether a change of the value would have to show in what is read later."""
        others = self.shared.get(name, set()) - {name}
        # What no operation reads may be the loss.
        later = any(self.last_read.get(other, math.inf) > self.now for other in others)
        return later or any(self.values[other].kind != "activation" for other in others)

    def replace(self, old: str, new: str) -> None:
        """From now on ``new`` is read where ``old`` was."""
        for name in [name for name, now in self.names.items() if now == old]:
            self.names[name] = new
        self.names[old] = new


def buffer_changes(ops: list[Op], values: Values) -> set[str]:
    """What the operations return that change a buffer, for the sake of which they are kept.

    Not of those that count batches: whoever writes a normalisation out counts them.
    """
    counters = {n for n, v in values.items() if v.source.endswith("num_batches_tracked")}
    return {
        o for op in ops if is_inplace(op) and op.args[0].name not in counters for o in op.outputs
    }


def make_functional(ops: list[Op], values: Values) -> tuple[list[Op], dict[str, str]]:
    """``y = relu_(x)`` becomes ``y = relu(x)``, and ops behind it read y where they read x.

    A change of a part, ``x[:, 1:] = y``, becomes ``slice_scatter`` into a new x.
    Returns the ops, and by which value each changed one is known at the end.

    Buffers may change, as running means do: such operations are left as they are.

    Raises:
        TraceError: x shares its memory with another tensor, which would have to change too.
    """
    targets = {op.target for op in ops}
    if not any(_is_inplace(target) or target.endswith(".out") for target in targets):
        return ops, {}
    memory = _Memory(values)
    result = []
    plain = [part for whole in ops for part in _without_out(whole, values)]
    memory.last_read = {name: index for index, op in enumerate(plain) for name in op.inputs()}
    for memory.now, op in enumerate(plain):
        op = renamed(op, memory.names)
        first = op.args[0].name if op.args and isinstance(op.args[0], Ref) else ""
        if memory.stale.intersection(op.inputs()):
            raise _refusal(op)
        if is_inplace(op) and (values[first].kind == "buffer" or first in memory.buffers):
            memory.buffers.update(op.outputs)
            result.append(op)
            continue
        if is_inplace(op):
            result += _changed(op, memory)
            continue
        name = op.target.split(".")[1]
        if name in _SCATTERS:
            memory.views[op.outputs[0]] = op
        elif name in _SHARING:
            memory.share({first, *op.outputs})
        result.append(op)
    return result, memory.names


def _without_out(op: Op, values: Values) -> list[Op]:
    """``div(x, y, out=z)`` as a quotient that is copied into z."""
    namespace, name, overload = op.target.split(".")
    target = op.kwargs.get("out")
    plain = [f"{namespace}.{name}.{kind}" for kind in ("Tensor", "default")]
    plain = [candidate for candidate in plain if exists(candidate)]
    if overload != "out" or not isinstance(target, Ref) or len(op.outputs) != 1 or not plain:
        return [op]
    (out,) = op.outputs
    made = f"{out}_made"
    values[made] = dataclasses.replace(values[out], name=made)
    kwargs = {key: value for key, value in op.kwargs.items() if key != "out"}
    copied = dataclasses.replace(
        op, target="aten.copy_.default", args=(target, Ref(made)), kwargs={}
    )
    return [dataclasses.replace(op, target=plain[0], kwargs=kwargs, outputs=(made,)), copied]


def _changed(op: Op, memory: _Memory) -> list[Op]:
    """The op in its functional form, and the tensors that the changed one is a part of anew."""
    changed = op.args[0].name
    found = _functional(op, memory)
    new = op.outputs[0]
    memory.replace(changed, new)
    while changed in memory.views:
        view = memory.views[changed]
        base = view.args[0].name
        if memory.is_shared(base) or memory.values[base].kind != "activation":
            raise _refusal(op)
        parts = {n for n, v in memory.views.items() if v.args[0].name == base}
        memory.stale |= parts - {changed}
        if memory.values[base].shape == memory.values[new].shape:
            memory.replace(base, new)
            changed = base
            continue
        whole = f"{base}_changed"
        while whole in memory.values:
            whole += "_"
        memory.values[whole] = dataclasses.replace(memory.values[base], name=whole)
        target = _SCATTERS[view.target.split(".")[1]]
        arguments = (Ref(base), Ref(new), *view.args[1:])
        scattered = Op(target, arguments, view.kwargs, (whole,), op.unit, op.where, op.no_grad)
        found.append(dataclasses.replace(scattered, inplace=True))
        memory.views[new] = dataclasses.replace(view, args=(Ref(whole), *view.args[1:]))
        memory.replace(base, whole)
        changed, new = base, whole
    memory.stale |= {n for n, v in memory.views.items() if v.args[0].name == op.args[0].name}
    return found


def _functional(op: Op, memory: _Memory) -> list[Op]:
    changed = memory.values[op.args[0].name]
    namespace, name, overload = op.target.split(".")
    target = f"{namespace}.{name[:-1]}.{overload}"
    if memory.is_shared(changed.name) or changed.kind != "activation" or not exists(target):
        raise _refusal(op)
    if name in ("copy_", "fill_"):
        return _assignment(op, changed, memory.values)
    return [dataclasses.replace(op, target=target, inplace=True)]


def _assignment(op: Op, changed: Value, values: Values) -> list[Op]:
    """``x[:] = y``: y in the shape and the dtype of x."""
    if not isinstance(op.args[1], Ref):
        arguments = (Ref(changed.name), changed.shape, op.args[1])
        return [dataclasses.replace(op, target="aten.new_full.default", args=arguments)]
    source = values[op.args[1].name]
    cast = f"{op.outputs[0]}_cast"
    values[cast] = dataclasses.replace(source, name=cast, dtype=changed.dtype)
    return [
        dataclasses.replace(op, target="aten.to.dtype", outputs=(cast,),
                            args=(Ref(source.name), f"torch.{changed.dtype}")),
        dataclasses.replace(op, target="aten.expand.default", args=(Ref(cast), changed.shape)),
    ]  # fmt: skip


def _refusal(op: Op) -> TraceError:
    return TraceError(
        f"the model changes a tensor in place that others share ({op.target})",
        expected="operations that make a new tensor",
        where=op.where,
        hint="write x = x + y for x += y, torch.where for x[mask] = y, and torch.cat or"
        " torch.stack for x[:, i] = y",
    )
