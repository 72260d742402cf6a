"""The states of a tensor on the tp axis, and what it takes to go from one to another.

==========  ==============================  ==========================================
state       each rank holds                 and its gradient is
==========  ==============================  ==========================================
``R``       the whole tensor                whole and equal on every rank
``V``       the whole tensor                a partial sum: the true one is the sum over ranks
``S(d)``    a shard of dim d                the same shard of the gradient
``P``       a partial sum                   whole and equal on every rank
``D``       its own rows, zeros elsewhere   right in its own rows; elsewhere nobody reads it
==========  ==============================  ==========================================

A column-parallel product reads V and makes S; a row-parallel one reads S and makes P.
D is what experts make of the tokens that were sent to them (``sharded_experts``). It is a partial
sum of which each row belongs to one rank, so that operations that leave zeros alone keep it.
``S(d, outer)`` shards the middle factor of a dim that is ``outer x n x inner``, as the
three projections of a fused query-key-value weight need it.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.graph import Size, Value

ONE = Size(1)


@dataclass(frozen=True, order=True)
class State:
    """One of R, V, P, D, or S with a dim and an outer factor."""

    kind: str
    dim: int = -1
    outer: tuple[int, int] = (1, 0)

    def __str__(self) -> str:
        if self.kind != "S":
            return self.kind
        coefficient, power = self.outer
        plain = self.outer == (1, 0)
        return f"S({self.dim})" if plain else f"S({self.dim},{coefficient}{'b' * power})"

    @property
    def plain(self) -> bool:
        """Whether the shard is one contiguous block of its dim."""
        return self.outer == (1, 0)


def placement_of(state: State) -> str:
    """How a plan spells the state of a parameter, as torch's DTensor does."""
    return f"Shard({state.dim})" if state.kind == "S" else "Replicate()"


R, V, P, D = State("R"), State("V"), State("P"), State("D")


def shard(dim: int, outer: Size = ONE) -> State:
    """The state S(dim, outer)."""
    return State("S", dim, (outer.coefficient, outer.power))


def parse_state(text: str) -> State:
    """The inverse of ``str``."""
    if not text.startswith("S"):
        return State(text)
    dim, _, outer = text[2:-1].partition(",")
    power = outer.count("b")
    return State("S", int(dim), (int(outer.rstrip("b") or 1), power))


def divides(size: Size, outer: tuple[int, int], tp: int) -> bool:
    """Whether a dim of ``size`` has an even shard for each of ``tp`` ranks in every block.

    A dim that holds the batch behind its blocks has one for micro-batches that are multiples of
    tp: see ``divides_batch``.
    """
    coefficient, power = outer
    if size.power > power:
        return size.coefficient % coefficient == 0
    return size.power == power and size.coefficient % (coefficient * tp) == 0


def divides_batch(state: State, value: Value) -> bool:
    """Whether ``value`` in ``state`` is divided along its samples: data parallel over tp."""
    return state.kind == "S" and value.shape[state.dim].power > state.outer[1]


@dataclass(frozen=True)
class Move:
    """A change of state: the emitted function, and the collectives of forward and backward."""

    function: str
    forward: str
    backward: str


# (from, to) -> Move. Local slices and relabelling cost nothing; what is absent is impossible.
MOVES = {
    ("R", "V"): Move("enter", "", "all_reduce"),
    ("R", "S"): Move("scatter", "", "all_gather"),
    ("V", "S"): Move("narrow", "", ""),
    ("S", "R"): Move("gather", "all_gather", ""),
    ("S", "V"): Move("all_gather", "all_gather", "reduce_scatter"),
    ("P", "R"): Move("all_reduce", "all_reduce", ""),
    ("P", "V"): Move("all_reduce_enter", "all_reduce", "all_reduce"),
    ("P", "S"): Move("reduce_scatter", "reduce_scatter", "all_gather"),
    ("S", "S"): Move("all_to_all", "all_to_all", "all_to_all"),
}
MOVES |= {("D", target): MOVES["P", target] for target in ("R", "V", "S")}
STAY = Move("", "", "")
# Without a gradient R and V are the same, and nothing happens in backward.
CONSTANT_MOVES = {
    ("R", "S"): Move("narrow", "", ""),
    ("S", "R"): Move("gather", "all_gather", ""),
    ("P", "R"): Move("all_reduce", "all_reduce", ""),
}


def move(source: State, target: State, value: Value, tp: int) -> Move | None:
    """How ``value`` gets from one state to another, or None if it cannot."""
    if source == target:
        return STAY
    if not source.plain or not target.plain:
        return None
    if target.kind == "S" and not divides(value.shape[target.dim], target.outer, tp):
        return None
    table = MOVES if value.requires_grad else CONSTANT_MOVES
    return table.get((source.kind, target.kind))
