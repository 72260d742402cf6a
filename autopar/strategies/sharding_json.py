"""Shardings as plain JSON data, for the plan file."""

from __future__ import annotations

import dataclasses
from typing import Any

from autopar.strategies.sharding import Moved, Pattern, Sharding
from autopar.strategies.states import Move, parse_state
from autopar.strategies.strategy import Strategy


def encode_sharding(sharding: Sharding) -> dict[str, Any]:
    """States are written as in ``str(State)``."""
    return {
        "tp": sharding.tp,
        "layout": sharding.layout,
        "unsplit": sharding.unsplit,
        "divides_samples": sharding.divides_samples,
        "strategies": {
            str(index): [
                {name: str(state) for name, state in s.inputs},
                [str(state) for state in s.outputs],
                s.special,
                [list(c) for c in s.collectives],
            ]
            for index, s in sharding.strategies.items()
        },
        "moves": [
            [m.value, str(m.source), str(m.target), *dataclasses.astuple(m.move)]
            for m in sharding.moves
        ],
        "parameters": {name: str(state) for name, state in sharding.parameters.items()},
        "boundary": {name: str(state) for name, state in sharding.boundary.items()},
    }


def decode_sharding(data: dict[str, Any]) -> Sharding:
    """The inverse of ``encode_sharding``."""
    strategies = {
        int(index): Strategy(
            tuple((name, parse_state(state)) for name, state in inputs.items()),
            tuple(parse_state(state) for state in outputs),
            special,
            tuple((kind, name) for kind, name in collectives),
        )
        for index, (inputs, outputs, special, collectives) in data["strategies"].items()
    }
    moves = tuple(
        Moved(value, parse_state(source), parse_state(target), Move(*move))
        for value, source, target, *move in data["moves"]
    )
    parameters = {name: parse_state(state) for name, state in data["parameters"].items()}
    boundary = {name: parse_state(state) for name, state in data["boundary"].items()}
    return Sharding(
        data["tp"], data["layout"], strategies, moves, parameters, data["unsplit"], boundary,
        data["divides_samples"],
    )  # fmt: skip


def encode_pattern(pattern: Pattern) -> dict[str, Any]:
    """A pattern's ops by index into the graph stored beside it."""
    return {
        "name": pattern.name,
        "ops": list(pattern.ops),
        "received": list(pattern.received),
        "sent": list(pattern.sent),
        "chained": sorted(pattern.chained),
    }


def decode_pattern(data: dict[str, Any]) -> Pattern:
    """The inverse of ``encode_pattern``."""
    return Pattern(
        data["name"], tuple(data["ops"]), tuple(data["received"]), tuple(data["sent"]),
        frozenset(data["chained"]),
    )  # fmt: skip
