"""The tp decision for one class of layers: a strategy per op, the moves between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from autopar.graph import Op, Value
from autopar.strategies.states import Move, R, State
from autopar.strategies.strategy import Strategy

Values = dict[str, Value]


@dataclass(frozen=True)
class Pattern:
    """The ops of one layer class, as they stand in its first member.

    ``received`` names the activations that come from other layers, ``sent`` those that go to
    others. Those that are ``chained``, to the next layer alone, have the layout's state at the
    boundary; what several layers read is whole there.
    All that is no block forms one pattern, because its parts may share a parameter.
    """

    name: str
    ops: tuple[int, ...]
    received: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
    chained: frozenset[str] = frozenset()

    def boundary(self, layout: State) -> dict[str, State]:
        """The state of each received or sent activation where ``layout`` is the chained ones'."""
        return {n: layout if n in self.chained else R for n in (*self.received, *self.sent)}


@dataclass(frozen=True)
class Moved:
    """A value that is needed in another state than it was made in."""

    value: str
    source: State
    target: State
    move: Move


@dataclass(frozen=True)
class Sharding:
    """What the op-level optimisation found for a pattern at one tp degree and layout.

    ``boundary`` holds the state of each activation that enters or leaves the layer: layers fit
    together if the states of what one sends and the other receives are equal.
    ``divides_samples`` says that the tp ranks share the samples of a micro-batch somewhere, which
    must then be a multiple of tp.
    """

    tp: int
    layout: str
    strategies: dict[int, Strategy]
    moves: tuple[Moved, ...]
    parameters: dict[str, State]
    unsplit: bool = field(default=False)
    boundary: dict[str, State] = field(default_factory=dict)
    divides_samples: bool = False

    def made(self, ops: tuple[Op, ...]) -> dict[str, State]:
        """The state in which each activation is made."""
        return {
            name: state
            for index, strategy in self.strategies.items()
            for name, state in zip(ops[index].outputs, strategy.outputs, strict=True)
        }


def local_elements(value: Value, state: State, tp: int, batch: int) -> int:
    """Elements that one rank holds of ``value`` in ``state``."""
    total = value.elements(batch)
    return total // tp if state.kind == "S" else total


def local_shape(value: Value, state: State, tp: int, batch: int) -> tuple[int, ...]:
    """Shape that one rank holds of ``value`` in ``state``."""
    shape = [size.at(batch) for size in value.shape]
    if state.kind == "S":
        shape[state.dim] //= tp
    return tuple(shape)
