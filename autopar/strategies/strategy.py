"""One way to run an operation on the tp axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autopar.strategies.states import State

# Outer factors with which a dim may have to be sharded, by (tensor, dim).
Outers = dict[tuple[str, int], set[tuple[int, int]]]


@dataclass(frozen=True)
class Strategy:
    """One way to run an op.

    ``special`` names a function of the emitted program that replaces the op ("average": the
    op itself, its result divided by tp), and ``collectives`` what it issues in forward, as
    (kind, elements of the value named).
    """

    inputs: tuple[tuple[str, State], ...]
    outputs: tuple[State, ...]
    special: str = ""
    collectives: tuple[tuple[str, str], ...] = ()

    def __hash__(self) -> int:
        """Worked out once: strategies are keys of what their operations cost."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.inputs, self.outputs, self.special, self.collectives))

    def state_of(self, name: str) -> State:
        """The state in which the op reads the value ``name``."""
        return dict(self.inputs)[name]
