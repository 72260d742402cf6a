"""Parameters that several parts of a model read, and what they forbid."""

from __future__ import annotations

from collections.abc import Mapping

from autopar.graph import Graph
from autopar.strategies.patterns import Classes


def shared_parameters(graph: Graph, classes: Classes) -> dict[str, tuple[str, ...]]:
    """Parameters that several parts outside the blocks read, and which parts these are."""
    readers: dict[str, list[str]] = {}
    for member, part in classes.parts.items():
        read = {n for i in part.ops for n in graph.ops[i].inputs()}
        for name in sorted(n for n in read if graph.values[n].kind == "parameter"):
            readers.setdefault(name, []).append(member)
    return {name: tuple(parts) for name, parts in readers.items() if len(parts) > 1}


def may_interleave(graph: Graph, classes: Classes, shared: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether no parameter can be on two stages of one rank; ``shared`` are those of two parts.

    At most the first and the last layer may share some; those are on different ranks.
    """
    members = classes.members
    outside = {
        graph.values[name].source
        for part in classes.parts.values()
        for i in part.ops
        for name in graph.ops[i].inputs()
    }
    tied = all(outside.intersection(group) for group in graph.tied)
    ends = (members[0], members[-1])
    return tied and not classes.runs and all(parts == ends for parts in shared.values())
