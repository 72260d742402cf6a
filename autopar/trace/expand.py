"""Gives every block that was not traced the operations of its template."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from autopar.graph import Op, Ref, Value, refs
from autopar.trace.opaque import OPAQUE, moved
from autopar.trace.repeats import NotRepeatedError, Repeat
from autopar.trace.simplify import substitute
from autopar.trace.stand_in import STAND_IN

MARK = "autopar.mark.default"
Values = dict[str, Value]


@dataclass(frozen=True)
class _Body:
    """The operations of one traced block, from the first mark of an input to the last output's."""

    path: str
    ops: tuple[Op, ...]

    def inputs(self) -> list[Op]:
        """The marks of the block's inputs."""
        return [op for op in self.ops if is_mark(op, self.path, "in")]

    def outputs(self) -> list[Op]:
        """The marks of the block's outputs."""
        return [op for op in self.ops if is_mark(op, self.path, "out")]


def is_mark(op: Op, path: str, side: str) -> bool:
    """Whether ``op`` marks an input ("in") or output ("out") of the module at ``path``."""
    return op.target == MARK and op.args[1].startswith(f"{path}#1:{side}:")


def expand(ops: list[Op], values: Values, repeats: tuple[Repeat, ...]) -> list[Op]:
    """Replaces each ``autopar::stand_in``; adds to ``values``.

    Raises:
        NotRepeatedError: the operations of a template and of another traced block of its class
            differ, or they use tensors that were not passed to them.
    """
    spans = _spans(ops)
    templates: dict[str, _Body] = {}
    for repeat in repeats:
        if not any(op.target == STAND_IN and op.args[2] in repeat.omitted for op in ops):
            continue
        bodies = [_body(ops, spans, path) for path in (repeat.template, repeat.check)]
        first, second = (_rows(body, values) for body in bodies)
        if first != second:
            raise NotRepeatedError(f"{repeat.check} differs from {repeat.template}")
        for body in bodies:
            _check_closed(body, ops)
        templates |= dict.fromkeys(repeat.omitted, bodies[0])
    expanded: list[Op] = []
    for number, op in enumerate(ops):
        if op.target == STAND_IN:
            expanded += _replicate(templates[op.args[2]], op, values, number)
        else:
            expanded.append(op)
    return expanded


def _spans(ops: list[Op]) -> dict[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    for index, op in enumerate(ops):
        if op.target == MARK:
            path = op.args[1].split("#")[0]
            spans[path] = (spans.get(path, (index, index))[0], index)
    return spans


def _body(ops: list[Op], spans: dict[str, tuple[int, int]], path: str) -> _Body:
    if path not in spans:
        raise NotRepeatedError(f"{path} is not called, but blocks that equal it are")
    first, last = spans[path]
    body = _Body(path, tuple(ops[first : last + 1]))
    if not body.inputs() or not body.outputs():
        raise NotRepeatedError(f"{path} has no tensors as inputs or outputs")
    return body


def _check_closed(body: _Body, ops: list[Op]) -> None:
    """What a block makes may leave it through its outputs alone."""
    own = {id(op) for op in body.ops}
    passed = {name for op in body.outputs() for name in op.outputs}
    hidden = {name for op in body.ops for name in op.outputs} - passed
    for op in ops:
        if id(op) not in own and hidden.intersection(refs((op.args, op.kwargs))):
            raise NotRepeatedError(f"{body.path} hands on a tensor that it does not return")


def _rows(body: _Body, values: Values) -> list[Any]:
    """The operations with local names, equal for blocks that compute the same."""
    local: dict[str, str] = {}
    rows = []
    for op in body.ops:
        if is_mark(op, body.path, "in"):
            arguments: Any = op.args[1].removeprefix(body.path)
        else:
            _name_sources(op, body, values, local)
            arguments = substitute((moved(op, body.path, ""), op.kwargs), local)
            if is_mark(op, body.path, "out"):
                arguments = (arguments[0][0], op.args[1].removeprefix(body.path))
        local.update({name: f"v{len(local) + k}" for k, name in enumerate(op.outputs)})
        made = [_describe(values[name]) for name in op.outputs]
        rows.append((op.target, repr(arguments), op.no_grad, made))
    return rows


def _name_sources(op: Op, body: _Body, values: Values, local: dict[str, str]) -> None:
    """Local names for the block's own parameters and buffers; nothing else may be read."""
    for name in op.inputs():
        if name in local:
            continue
        value = values[name]
        if not value.source.startswith(f"{body.path}."):
            raise NotRepeatedError(f"{body.path} reads {name}, which was not passed to it")
        local[name] = f"{value.source.removeprefix(body.path)}: {_describe(value)}"


def _describe(value: Value) -> Any:
    return value.shape, value.dtype, value.kind, value.requires_grad


def _replicate(body: _Body, call: Op, values: Values, number: int) -> list[Op]:
    """The template's operations between the inputs and outputs of ``call``, under new names."""
    if call.no_grad != body.ops[0].no_grad:
        raise NotRepeatedError("equal blocks run with and without gradient")
    path = call.args[2]
    passed: dict[str, Ref] = {
        op.args[1]: ref for op, ref in zip(body.inputs(), call.args[0], strict=True)
    }
    marks = (name for op in body.outputs() for name in op.outputs)
    names = dict(zip(marks, call.outputs, strict=True))
    result = []
    for op in body.ops:
        read = () if op.target == MARK and op.args[1] in passed else op.inputs()
        for name in dict.fromkeys((*read, *op.outputs)):
            if name not in names:
                names[name] = _new_value(values[name], values, (body.path, path), number)
        result.append(_moved(op, names, passed, (body.path, path)))
    return result


def _moved(op: Op, names: dict[str, str], passed: dict[str, Ref], paths: tuple[str, str]) -> Op:
    """``op`` of the block at the first path as the block at the second has it."""
    args: tuple[Any, ...] = substitute(op.args, names)
    if op.target == OPAQUE:
        args = substitute(moved(op, *paths), names)
    if op.target == MARK:
        args = (passed.get(op.args[1], args[0]), _moved_path(op.args[1], paths))
    return dataclasses.replace(
        op,
        args=args,
        kwargs=substitute(op.kwargs, names),
        outputs=tuple(names[name] for name in op.outputs),
        where=_moved_path(op.where, paths),
    )


def _moved_path(text: str, paths: tuple[str, str]) -> str:
    return paths[1] + text.removeprefix(paths[0]) if text.startswith(paths[0]) else text


def _new_value(value: Value, values: Values, paths: tuple[str, str], number: int) -> str:
    """Adds a copy of ``value`` for another block and returns its name."""
    name = f"{value.name}_{number}"
    while name in values:
        name += "_"
    source = _moved_path(value.source, paths)
    values[name] = dataclasses.replace(value, name=name, source=source)
    return name
