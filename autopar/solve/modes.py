"""Which zero modes and ways to recompute it a layer may have, before either has a price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopar.cost.activations import can_keep
from autopar.cost.offload import offloads
from autopar.graph import Graph
from autopar.solve.problem import Configuration
from autopar.solve.space import FREE_ZERO, RECOMPUTE
from autopar.strategies.patterns import Classes
from autopar.trace.inplace import is_inplace

Modes = tuple[list[int], list[str]]


def zero_modes(config: Configuration, pinned: Any) -> list[int]:
    """The zero modes under a configuration; ``pinned`` is the one that is asked for, or None."""
    wrapped = config.dp > 1 and config.exchange == "collective"
    free = FREE_ZERO["pipeline" if config.pp > 1 else "alone"] if wrapped else (0,)
    whole = not config.splits_backward  # see space.py
    wanted = free if pinned is None else [pinned]
    return [zero for zero in wanted if (whole or zero != 3) and config.has_mode(zero)]


def recompute_modes(config: Configuration, offered: Sequence[str], pinned: Any) -> list[str]:
    """Those of the ``offered`` that a configuration runs and that are not pinned otherwise.

    Pins are about layers that may be recomputed at all.
    """
    once = config.splits_backward or offloads(config.offload, "activations")
    runs = [mode for mode in offered if mode == "none" or not once]
    return runs if tuple(offered) == ("none",) else [m for m in runs if pinned in (None, m)]


def repeatable(graph: Graph, classes: Classes, member: str) -> tuple[str, ...]:
    """How the layers of a class may be recomputed.

    The parts outside the blocks never are, nor are layers whose code changes a buffer: it would
    read another one when it runs again.
    """
    if member in classes.parts:
        return ("none",)
    whole = classes.patterns[member]
    if any(is_inplace(graph.ops[i]) for i in whole.ops):
        return ("none",)
    return tuple(r for r in RECOMPUTE if r != "selective" or can_keep(graph, whole))
