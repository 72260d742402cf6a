"""Layers that share a buffer that changes: they have to be on one stage.

A stage holds buffers of its own. What another stage does to its copy of one would be missing in the
next micro-batch: power iterations of a module that runs twice, its running statistics, or a queue
that one layer reads and another fills.
"""

from __future__ import annotations

from collections.abc import Iterator

from autopar.graph import Op, Ref, Value
from autopar.trace.inplace import is_inplace

Groups = dict[str, list[int]]
# Their arguments 3 and 4 are running statistics, which they change where argument 5 is True.
_NORMS = frozenset({"aten.batch_norm.default", "aten.instance_norm.default"})


def buffers_used(
    ops: list[Op], values: dict[str, Value]
) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """By op: which of the buffers that change it uses, and which of these it changes itself.

    What a change returns is the buffer.
    """
    sources = {name: v.source for name, v in values.items() if v.kind == "buffer"}
    used: dict[int, set[str]] = {}
    changed: dict[int, set[str]] = {}
    for index, op in enumerate(ops):
        used[index] = {sources[name] for name in op.inputs() if name in sources}
        own = {sources[name] for name in _changes(op) if name in sources}
        if own:
            changed[index] = own
            sources |= {out: name for out in op.outputs for name in own if is_inplace(op)}
    change = {name for own in changed.values() for name in own}
    return {index: found & change for index, found in used.items()}, changed


def _changes(op: Op) -> list[str]:
    """The values that an op changes, if they are buffers."""
    if op.target in _NORMS:
        changed = op.args[3:5] if op.args[5] is True else ()
    else:
        changed = op.args[:1] if is_inplace(op) else ()
    return [tensor.name for tensor in changed if isinstance(tensor, Ref)]


def joined(groups: Groups, used: dict[int, set[str]], blocks: set[str], last: str) -> Groups:
    """The groups with those joined that use one buffer, and all that stand between them.

    What is joined goes by its first group, in parentheses if that is a block's, or by ``last``.
    """
    names = list(groups)
    result: Groups = {}
    for first, end in _runs(groups, used):
        inside = names[first:end]
        name = f"({inside[0]})" if len(inside) > 1 and inside[0] in blocks else inside[0]
        name = last if last in inside else name
        result[name] = sorted(i for group in inside for i in groups[group])
    return result


def _runs(groups: Groups, used: dict[int, set[str]]) -> Iterator[tuple[int, int]]:
    """(first, behind the last) place of the groups that are to be one."""
    reach: dict[str, int] = {}  # the last place that uses a buffer
    held = [{name for i in group for name in used[i]} for group in groups.values()]
    for place, found in enumerate(held):
        reach.update(dict.fromkeys(found, place))
    start = end = 0
    for place, found in enumerate(held):
        if place > end:
            yield start, end + 1
            start = end = place
        end = max(end, *(reach[name] for name in found), place)
    yield start, end + 1
