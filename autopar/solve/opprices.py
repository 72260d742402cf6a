"""What the columns of an op-level program cost, by micro-batch size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopar.cluster import Cluster
from autopar.cost.collectives import collective_seconds
from autopar.cost.moves import inner_seconds, move_seconds, tp_group
from autopar.cost.ops import op_cost, use_of
from autopar.graph import DTYPE_BYTES
from autopar.solve.opmodel import OpModel
from autopar.solve.program import Floats
from autopar.strategies.sharding import local_elements
from autopar.strategies.states import V, move

# Of two equally fast ways the one with fewer moves, in seconds.
MOVE_SECONDS = 1e-9


@dataclass(frozen=True)
class Weights:
    """What is minimised: seconds of one micro-batch plus a price in seconds per byte.

    ``parameter`` is paid per byte of parameter held, ``activation`` per byte saved for backward.
    ``steps`` is the share of a once-per-step cost that one micro-batch bears.
    """

    parameter: float = 0.0
    activation: float = 0.0
    steps: float = 0.125


@dataclass(frozen=True)
class Prices:
    """What each column costs at one micro-batch size, [columns] each.

    ``seconds``, and bytes of parameters ``held`` and of activations ``kept`` for backward.
    """

    seconds: Floats
    held: Floats
    kept: Floats

    def weighted(self, weights: Weights) -> Floats:
        """The objective in seconds."""
        bought = weights.parameter * self.held + weights.activation * self.kept
        return np.asarray(self.seconds + bought)


def prices(model: OpModel, cluster: Cluster, batch: int, steps: float) -> Prices:
    """What every column costs for micro-batches of ``batch`` samples.

    What divides samples that tp does not divide costs nothing here: it is not to be chosen.
    """
    values, tp, none = model.graph.values, model.tp, set(model.of_samples(batch))
    seconds, held, kept = np.zeros((3, len(model.program.whole)))
    for (index, k), column in model.choose.items():
        if column not in none:
            seconds[column] = _strategy_seconds(model, cluster, index, k, batch)
    for name, by_state in model.stored.items():
        for state, column in by_state.items():
            held[column] = local_elements(values[name], state, tp, 1) * DTYPE_BYTES["float32"]
            if state == V:
                seconds[column] = steps * _gradient_seconds(model, cluster, name)
    for (name, source, target), column in model.change.items():
        step = move(source, target, values[name], tp)
        if step is not None and step.function:
            moved = sum(move_seconds(cluster, step, values[name], tp, batch))
            seconds[column] = moved + MOVE_SECONDS
    for (name, state), column in model.kept.items():
        size = DTYPE_BYTES[values[name].dtype]
        kept[column] = local_elements(values[name], state, tp, batch) * size
    return Prices(seconds, held, kept)


def _strategy_seconds(model: OpModel, cluster: Cluster, index: int, k: int, batch: int) -> float:
    graph, strategy = model.graph, model.menu[index][k]
    shapes = model.local(strategy, index, batch)
    # A product that is a partial sum is moved away from its bias; to tell would take a column.
    use = use_of(graph, index, joined=True)
    priced = op_cost(cluster, graph.ops[index], graph.values, shapes, use)
    inner = inner_seconds(cluster, strategy, graph.values, model.tp, batch)
    return priced.forward_seconds + priced.backward_seconds + inner


def _gradient_seconds(model: OpModel, cluster: Cluster, name: str) -> float:
    """The all-reduce of a gradient that is a partial sum, once per step.

    One call sums all of them, so a gradient pays for its bytes and not for a latency.
    """
    size, group = model.graph.values[name].bytes(1), tp_group(cluster, model.tp)
    seconds = collective_seconds(cluster, "all_reduce", size, group)
    return seconds - collective_seconds(cluster, "all_reduce", 1, group)
