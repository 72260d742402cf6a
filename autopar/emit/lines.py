"""Breaks long lines of generated code the way a formatter would."""

from __future__ import annotations

import re
from collections.abc import Iterable

OPERATORS = (" + ", " - ", " * ", " / ", " @ ", " & ", " | ")
PAIRS = {"(": ")", "[": "]", "{": "}"}


def comment(text: str, note: str) -> str:
    """A statement with a trailing comment."""
    return f"{text}  # {note}" if note else text


def indentation(line: str) -> int:
    """Blanks in front of a line."""
    return len(line) - len(line.lstrip())


def wrapped(lines: Iterable[str], width: int) -> list[str]:
    """Logical lines, indented or not, as physical ones of at most ``width`` characters."""
    found = []
    for line in lines:
        pad = " " * indentation(line)
        found += [pad + part for part in wrap(line.lstrip(), width - len(pad))]
    return found


def wrap(line: str, width: int) -> list[str]:
    """One logical line as physical lines of at most ``width`` characters where possible.

    A comment that does not fit goes above, but for a shape, which is left out; a long
    call gets one argument per line.
    """
    if len(line) <= width:
        return [line]
    code, mark, note = line.partition("  # ")
    if mark:
        above = [] if note.startswith("(") else [f"# {note}"]
        return [*above, *wrap(code, width)]
    subscripts = re.search(r"\)((\[(\d+|\"[^\"]*\")\])+)$", code)
    if subscripts:
        *before, last = wrap(code[: subscripts.start(1)], width)
        return [*before, last + subscripts[1]]
    opening = _last_call(code)
    if opening is None or opening >= width:
        return _by_operator(code, width)
    inside = code[opening + 1 : -1]
    arguments = _arguments(inside)
    together = " " * 4 + ", ".join(arguments)
    if len(together) <= width:
        return [code[: opening + 1], together, code[-1]]
    return [code[: opening + 1], *(f"    {a}," for a in arguments), code[-1]]


def _by_operator(code: str, width: int) -> list[str]:
    """An assignment or return of a long arithmetic expression in brackets of its own.

    It gets one operand per line where all together do not fit either.
    """
    head, space, expression = code.partition(" = ") if " = " in code else code.partition(" ")
    operands = _operands(expression)
    if len(operands) == 1:
        return [code]
    if len(expression) <= width - 4:
        operands = [expression]
    return [f"{head}{space}(", *(f"    {operand}" for operand in operands), ")"]


def _operands(text: str, operators: tuple[str, ...] = OPERATORS) -> list[str]:
    """Splits in front of the infix operators outside brackets."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in PAIRS) - (char in PAIRS.values())
        if depth == 0 and text[position : position + 3] in operators:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _last_call(code: str) -> int | None:
    """Where the bracket opens that the last character closes."""
    depth = 0
    for position in range(len(code) - 1, -1, -1):
        if code[position] in PAIRS.values():
            depth += 1
        elif code[position] in PAIRS:
            depth -= 1
            if depth == 0:
                return position if code[-1] in PAIRS.values() and position else None
    return None


def _arguments(text: str) -> list[str]:
    """Splits at the commas outside brackets and strings."""
    parts, depth, start, quoted = [], 0, 0, False
    for position, char in enumerate(text):
        quoted ^= char == '"'
        depth += (char in PAIRS) - (char in PAIRS.values())
        if char == "," and depth == 0 and not quoted:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()] if text[start:].strip() else parts


def lay_out(code: str, width: int) -> list[str]:
    """A tuple, or a sum of repeated ones, over as many lines as it needs."""
    if len(code) <= width:
        return [code]
    terms = _operands(code, (" + ",))
    if len(terms) > 1:
        return ["(", *(f"    {term}" for term in terms), ")"]
    inside, factor = code.rpartition(")")[0][1:], code.rpartition(")")[2]
    items = []
    for item in _arguments(inside):
        *before, last = lay_out(item, width - 5)
        items += [f"    {line}" for line in (*before, f"{last},")]
    return ["(", *items, f"){factor}"]
