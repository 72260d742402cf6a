"""Gives a variable the name of one that is no longer read, as people rebind ``x = f(x)``."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from autopar.emit.lines import indentation


def rebind(
    lines: list[str],
    arguments: Iterable[str],
    bases: dict[str, str],
    reserved: Iterable[str] = (),
    kept: Iterable[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """Statements in which variables of one base share its name where their lives do not overlap.

    Args:
        lines: straight-line code, one statement each; every variable is assigned to once.
        arguments: names that have a value before; they stay as they are.
        bases: the name that each variable would like to have; without one it stays as it is.
        reserved: names that mean something else.
        kept: variables that code behind the lines reads.

    Returns:
        The lines, and the new name of each variable.
    """
    trees = [_parsed(line) for line in lines]
    last: dict[str, int] = {}
    for number, tree in enumerate(trees):
        last |= dict.fromkeys(_names(tree, ast.Load), number)
    last |= dict.fromkeys(kept, len(lines))
    # By final name, the last line that reads it.
    holders = dict.fromkeys(reserved, len(lines)) | {n: last.get(n, -1) for n in arguments}
    renamed: dict[str, str] = {}
    for number, tree in enumerate(trees):
        made = _names(tree, ast.Store)
        for name in made:
            base = bases.get(name)
            renamed[name] = name if base is None else _free(base, holders, number)
            # What one statement assigns to has names of its own, be they read or not.
            holders[renamed[name]] = max(last.get(name, number), number + (len(made) > 1))
    return [with_names(line, renamed) for line in lines], renamed


def let_go(
    lines: list[str], rebound: list[str], renamed: dict[str, str], variables: Iterable[str]
) -> list[str]:
    """``rebound`` with a ``del`` behind the last reader of each of ``variables`` of ``lines``.

    None where its name is assigned to there or in the next statement, nor in front of the return.
    """
    trees = [_parsed(line) for line in lines]
    last: dict[str, int] = {}
    for number, tree in enumerate(trees):
        last |= dict.fromkeys(_names(tree, ast.Load), number)
    stored = [{renamed.get(n, n) for n in _names(tree, ast.Store)} for tree in trees]
    made = {name for tree in trees for name in _names(tree, ast.Store)}
    dead: dict[int, list[str]] = {}
    for name in sorted(made & set(variables) & last.keys()):
        number, final = last[name], renamed.get(name, name)
        if number < len(lines) - 2 and final not in stored[number] | stored[number + 1]:
            dead.setdefault(number, []).append(final)
    found = []
    for number, line in enumerate(rebound):
        found += [line, f"del {', '.join(dead[number])}"] if number in dead else [line]
    return found


def rebind_blocks(
    blocks: list[list[str]], bases: dict[str, str], reserved: Iterable[str]
) -> list[list[str]]:
    """The same for blocks of statements that run one after the other, or not at all.

    What several of them mention has a name of its own, also where a block reads it first and then
    assigns to it, as to the value that goes from layer to layer.
    """
    blocks = [list(block) for block in blocks]
    for number, block in enumerate(blocks):
        others = set(reserved)
        for other in (*blocks[:number], *blocks[number + 1 :]):
            others.update(*map(mentioned, other))
        own = {name for line in block for name in _names(_parsed(line), ast.Store)}
        kept = own & others
        carried = own & _read_first(block)
        wished = {name: base for name, base in bases.items() if name not in carried}
        free = {name for line in block for name in mentioned(line)} - own
        blocks[number], renamed = rebind(block, carried, wished, (others - kept) | free, kept)
        moved = {name: renamed[name] for name in kept if renamed[name] != name}
        for index in range(len(blocks)) if moved else ():
            if index != number:
                blocks[index] = [with_names(line, moved) for line in blocks[index]]
    return blocks


def _read_first(lines: list[str]) -> set[str]:
    """The variables that lines read before they assign to them."""
    read: set[str] = set()
    made: set[str] = set()
    for tree in map(_parsed, lines):
        read.update(name for name in _names(tree, ast.Load) if name not in made)
        made.update(_names(tree, ast.Store))
    return read


def _free(base: str, holders: dict[str, int], line: int) -> str:
    """The base, or the base with a number, whichever nothing behind ``line`` reads."""
    name, count = base, 2
    while holders.get(name, -1) > line:
        name, count = f"{base}_{count}", count + 1
    return name


def _parsed(line: str) -> ast.AST:
    """The syntax of a line; of the head of a block that of the block."""
    code = line.strip()
    return ast.parse(f"{code} pass" if code.endswith(":") else code)


def _names(tree: ast.AST, context: type[ast.expr_context]) -> list[str]:
    return [
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    ]


def mentioned(line: str) -> set[str]:
    """The variables that a line reads or assigns to."""
    return {node.id for node in ast.walk(_parsed(line)) if isinstance(node, ast.Name)}


def with_names(line: str, renamed: dict[str, str]) -> str:
    """The line with its variables renamed; comments, keywords and attributes stay."""
    start = indentation(line)
    nodes = [n for n in ast.walk(_parsed(line)) if isinstance(n, ast.Name) and n.id in renamed]
    for node in sorted(nodes, key=lambda node: -node.col_offset):
        begin = start + node.col_offset
        line = line[:begin] + renamed[node.id] + line[begin + len(node.id) :]
    return line
