"""Pins of placements on the tp axis: what they ask of the shardings of each layer.

A pin names a parameter as the model does. The op-level program keeps those states of the parameter,
and with them the strategies of the ops that read it, which have the placement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from autopar.errors import UsageError
from autopar.graph import Graph
from autopar.solve.pins import Entry, check_name, entries, pin_of
from autopar.strategies.patterns import Classes
from autopar.strategies.sharding import Pattern
from autopar.strategies.states import R, State, placement_of, shard

# What is asked of a sharding: (value of the pattern, placement), sorted.
Demand = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Demands:
    """The placements that pins ask for: ``layers`` of each layer, ``patterns`` of each pattern."""

    layers: tuple[Demand, ...] = ()
    patterns: dict[str, tuple[Demand, ...]] = field(default_factory=dict)

    def of(self, pattern: str) -> tuple[Demand, ...]:
        """The different ones of a pattern's layers."""
        return self.patterns.get(pattern, ((),))


def parameter_name(graph: Graph, pattern: Pattern, value: str, layer: str) -> str:
    """The model's name of a parameter of a layer, whose class is represented by ``pattern``."""
    return graph.values[value].source.replace(f"{pattern.name}.", f"{layer}.", 1)


def find_demands(
    graph: Graph, classes: Classes, names: Sequence[str], pins: dict[str, Any]
) -> Demands:
    """What the pins ask of every layer; the parts outside the blocks have one sharding together."""
    pinned = pins.get("placement")
    if not pinned:
        return Demands()
    each = []
    for member, layer in zip(classes.members, names, strict=True):
        found = {}
        for value, parameters in parameters_of(graph, classes.priced(member), layer):
            placements = (pin_of(pinned, name) for name in parameters)
            found[value] = next((p for p in placements if p is not None), None)
        each.append({value: placement for value, placement in found.items() if placement})
    outside = [own for m, own in zip(classes.members, each, strict=True) if m in classes.parts]
    together = {value: placement for own in outside for value, placement in own.items()}
    layers = tuple(
        tuple(sorted((together if member in classes.parts else own).items()))
        for member, own in zip(classes.members, each, strict=True)
    )
    patterns: dict[str, dict[Demand, None]] = {}
    for member, demand in zip(classes.members, layers, strict=True):
        patterns.setdefault(classes.home(member), {})[demand] = None
    return Demands(layers, {name: tuple(found) for name, found in patterns.items()})


def parameters_of(
    graph: Graph, pattern: Pattern, layer: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The parameters that a layer reads: the pattern's value, and all names that it has."""
    tied = {name: group for group in graph.tied for name in group}
    read = dict.fromkeys(n for i in pattern.ops for n in graph.ops[i].inputs())
    for value in read:
        if graph.values[value].kind == "parameter":
            name = parameter_name(graph, pattern, value, layer)
            yield value, tied.get(name, (name,))


def check_placements(
    graph: Graph, classes: Classes, names: Sequence[str], pins: dict[str, Any]
) -> None:
    """Refuses pins of placements that no parameter could have.

    Raises:
        UsageError: a placement that is none, a name without a parameter, a dim that it lacks.
    """
    dims = dims_of(graph, classes, names)
    for pin in entries({"placement": pins.get("placement", {})}):
        match = re.fullmatch(r"Shard\((\d+)\)|Replicate\(\)", str(pin.value))
        if match is None:
            raise UsageError(
                f"pin {pin}", expected="Shard(DIM) or Replicate()", where="pin",
                hint=f"as in placement@{pin.name}=Shard(0)",
            )  # fmt: skip
        check_name(str(pin), pin.name, list(dims), "parameter")
        fewest = fewest_dims(dims, pin.name)
        if match[1] and int(match[1]) >= fewest:
            raise UsageError(
                f"pin {pin}", expected=", ".join(map(placement_of, _shards(fewest))), where="pin",
                hint=f"{pin.name} has {fewest} dim(s)",
            )  # fmt: skip


def dims_of(graph: Graph, classes: Classes, names: Sequence[str]) -> dict[str, int]:
    """How many dims each parameter has, by all its names."""
    found: dict[str, int] = {}
    for member, layer in zip(classes.members, names, strict=True):
        for value, parameters in parameters_of(graph, classes.priced(member), layer):
            found |= dict.fromkeys(parameters, len(graph.values[value].shape))
    return found


def fewest_dims(dims: Mapping[str, int], pattern: str) -> int:
    """Of the parameters that a pattern names."""
    return min(n for name, n in dims.items() if fnmatchcase(name, pattern))


def _shards(dims: int) -> list[State]:
    return [R, *map(shard, range(dims))]


def legal_placements(pin: Entry, dims: int, possible: Callable[[dict[str, Any]], bool]) -> str:
    """What can be pinned in the place of a placement, and with it alone."""
    spelled = map(placement_of, _shards(dims))
    legal = [p for p in spelled if possible({"placement": {pin.name: p}})]
    return f"{pin.kind}@{pin.name} can be {' or '.join(legal)}" if legal else ""
