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
    return _by_argument(code, opening, width)


def _by_argument(code: str, opening: int, width: int) -> list[str]:
    """What is in the last brackets of ``code`` on a line of its own, or on one per argument."""
    arguments = _arguments(code[opening + 1 : -1])
    together = " " * 4 + ", ".join(arguments)
    if len(together) <= width and code[-2] != ",":  # a comma is what makes a tuple of one
        return [code[: opening + 1], together, code[-1]]
    each = (line for a in arguments for line in _argument(a, width - 4))
    return [code[: opening + 1], *(f"    {line}" for line in each), code[-1]]


def _argument(text: str, width: int) -> list[str]:
    """An argument with its comma; what a line does not hold is broken in its last brackets."""
    opening = _last_bracket(text)
    if len(text) < width or opening is None:
        return [f"{text},"]
    *before, last = _by_argument(text, opening, width - 1)
    return [*before, f"{last},"]


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
    """Where the bracket of a call opens that the last character closes."""
    return _last_bracket(code) or None


def _last_bracket(code: str) -> int | None:
    """Where the bracket opens that the last character closes."""
    if code[-1] not in PAIRS.values():
        return None
    depth = 0
    for position in range(len(code) - 1, -1, -1):
        if code[position] in PAIRS.values():
            depth += 1
        elif code[position] in PAIRS:
            depth -= 1
            if depth == 0:
                return position
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
