"""Seconds of tensor-parallel communication: state moves and collectives inside operations."""

from __future__ import annotations

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.graph import Value
from autopar.strategies.states import Move
from autopar.strategies.strategy import Strategy


def tp_group(cluster: Cluster, tp: int) -> Group:
    """The tp axis is the innermost: its ranks are neighbours and fill a node before leaving it."""
    per_node = min(tp, cluster.devices_per_node)
    return Group(tp, per_node, max(1, cluster.devices_per_node // tp))


def move_seconds(
    cluster: Cluster, move: Move, value: Value, tp: int, batch: int
) -> tuple[float, float]:
    """Forward and backward seconds of one change of state of ``value``."""
    group = tp_group(cluster, tp)
    payload = value.bytes(batch)
    return tuple(  # type: ignore[return-value]
        collective_seconds(cluster, kind, payload // (tp if kind == "all_to_all" else 1), group)
        if kind
        else 0.0
        for kind in (move.forward, move.backward)
    )


def inner_seconds(
    cluster: Cluster, strategy: Strategy, values: dict[str, Value], tp: int, batch: int
) -> float:
    """Collectives that a special form of an op issues in its forward.

    They carry one float32 per element of the value named, e.g. one per row of the logits.
    """
    if not strategy.collectives:
        return 0.0
    group = tp_group(cluster, tp)
    return sum(
        collective_seconds(cluster, kind, values[name].elements(batch) * 4, group)
        for kind, name in strategy.collectives
    )
