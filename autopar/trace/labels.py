"""The variables of the user's source that hold what operations make.

``torch.export`` keeps the stack of each operation. Its innermost statement in the user's code that
is an assignment names the result; from a ``return`` the value goes to the caller's statement. Of
all operations of a statement the last one makes what is assigned.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import os
import re
from bisect import bisect_right
from dataclasses import replace
from functools import cache

import torch

from autopar.graph import Op

# The stack down to the statement that assigns, and the variables that it assigns to.
Statement = tuple[tuple[str, ...], tuple[str, ...]]
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_FOREIGN = tuple(
    path + os.sep
    for path in (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
)


def statement_of(stack_trace: str) -> Statement | None:
    """The assignment in the user's code that an operation works for, from its stack."""
    frames = _FRAME.findall(stack_trace)
    for depth in range(len(frames), 0, -1):
        file, line = frames[depth - 1]
        if file.startswith((*_FOREIGN, "<")):
            continue
        statement = _statement_at(file, int(line))
        if isinstance(statement, (ast.Return, ast.Expr)):
            continue
        names = _targets(statement)
        return (tuple(f"{f}:{n}" for f, n in frames[:depth]), names) if names else None
    return None


def label(ops: list[Op], statements: list[Statement | None]) -> list[Op]:
    """The operations, labelled with the variables that hold what they make.

    What a statement's operations make and later ones read is what it assigns, in order.
    """
    last_read = {name: index for index, op in enumerate(ops) for name in op.inputs()}
    labels: dict[str, str] = {}
    for start, end, statement in _runs(statements):
        own = [i for i in range(start, end) if statements[i] == statement]
        made = [out for i in own for out in ops[i].outputs if last_read.get(out, -1) >= end]
        names = [name for name in statement[1] if name]
        if len(made) == len(names):
            labels |= dict(zip(made, names, strict=True))
    return [
        replace(op, labels=tuple(labels.get(out, "") for out in op.outputs))
        if any(out in labels for out in op.outputs)
        else op
        for op in ops
    ]


def _runs(statements: list[Statement | None]) -> list[tuple[int, int, Statement]]:
    """(start, end, statement) of successive operations that work for one statement.

    Statements in functions that it calls belong to it.
    """
    found: list[tuple[int, int, Statement]] = []
    ends: dict[Statement, int] = {}
    for index, statement in enumerate(statements):
        if statement is None or index < ends.get(statement, 0):
            continue
        start, end = index, index + 1
        while start and _within(statements[start - 1], statement):
            start -= 1
        while end < len(statements) and _within(statements[end], statement):
            end += 1
        ends[statement] = end
        found.append((start, end, statement))
    return found


def _within(inner: Statement | None, outer: Statement) -> bool:
    return inner is not None and inner[0][: len(outer[0])] == outer[0]


def _targets(statement: ast.stmt | None) -> tuple[str, ...]:
    """The variables that a statement assigns to, "" for what is no usable name."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target: ast.expr = statement.targets[0]
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        target = statement.target
    else:
        return ()
    items = target.elts if isinstance(target, ast.Tuple) else [target]
    return tuple(_usable(item.id) if isinstance(item, ast.Name) else "" for item in items)


def _usable(name: str) -> str:
    return "" if not name.strip("_") or hasattr(builtins, name) else name


def _statement_at(file: str, line: int) -> ast.stmt | None:
    """The innermost statement at a line of a file."""
    starts, statements = _statements(file)
    for index in range(bisect_right(starts, line) - 1, -1, -1):
        if (statements[index].end_lineno or 0) >= line:
            return statements[index]
    return None


@cache
def _statements(file: str) -> tuple[list[int], list[ast.stmt]]:
    """All statements of a file in order, and the lines at which they start."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return [], []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    # Of two that start at one line the inner one comes later.
    found.sort(key=lambda node: (node.lineno, -(node.end_lineno or 0), node.col_offset))
    return [node.lineno for node in found], found
