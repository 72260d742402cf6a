"""Seconds of collectives: latency and size-dependent bandwidth, in a node and across nodes.

A cost model holds, for each kind, curves of seconds by payload for groups within one node and
for groups of one rank per node. Between measured payloads and group sizes the price is
interpolated in logarithms; beyond them it follows the traffic of the ring algorithms (Thakur,
Rabenseifner and Gropp, 2005): see ``_TRAFFIC`` and ``_ROUNDS``.

A group that spans nodes is priced as a pipeline of its two levels: the slower one carries the
payload, latencies add up. Its ranks in a node use that many of the node's links, unless other
groups cross the boundary at the same moment and the links run out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from autopar.cluster import Cluster
from autopar.cost.curves import Axis
from autopar.errors import CostModelError

# Bytes that pass each rank's link, per byte of payload, in a group of n.
_TRAFFIC: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "send_recv": lambda n: 1.0,
}
# Messages that wait for one another in a group of n: trees are used for small all-reduces.
_ROUNDS: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: math.log2(n),
    "all_gather": lambda n: n - 1,
    "reduce_scatter": lambda n: n - 1,
    "all_to_all": lambda n: n - 1,
    "broadcast": lambda n: math.log2(n),
    "send_recv": lambda n: 1,
}
KINDS = tuple(_TRAFFIC)


@dataclass(frozen=True)
class Group:
    """The ranks that take part in a collective.

    Attributes:
        size: ranks in the group; for send_recv 2.
        per_node: how many of them share one node.
        groups_per_node: groups that cross the node boundary at the same moment and share its
            links. Without effect for a group inside one node.
    """

    size: int
    per_node: int
    groups_per_node: int = 1


@lru_cache(1 << 16)
def collective_seconds(cluster: Cluster, kind: str, payload_bytes: int, group: Group) -> float:
    """Seconds of one collective.

    Args:
        cluster: where it runs; a CPU host is one node whatever the group says.
        kind: one of ``KINDS``.
        payload_bytes: bytes of the full tensor: the output of an all-gather, the input of a
            reduce-scatter, the message of a send_recv, one rank's input of an all-to-all.
        group: who takes part; a group of one costs nothing.

    Raises:
        CostModelError: an unknown kind, or a group across nodes on a cluster without links.
    """
    _check_kind(kind)
    if group.size <= 1 or payload_bytes <= 0:
        return 0.0
    if not _spans_nodes(cluster, group):
        return _level(cluster, kind, "node").seconds(payload_bytes, group.size)
    return _spanning_seconds(cluster, kind, payload_bytes, group)


def is_extrapolated(cluster: Cluster, kind: str, payload_bytes: int, group: Group) -> bool:
    """Whether the price of the collective lies outside of what its curves cover.

    Raises:
        CostModelError: as for ``collective_seconds``.
    """
    _check_kind(kind)
    if group.size <= 1 or payload_bytes <= 0:
        return False
    if not _spans_nodes(cluster, group):
        return not _level(cluster, kind, "node").covers(payload_bytes, group.size)
    nodes, message = _across(cluster, kind, payload_bytes, group)
    inside = group.per_node == 1 or _level(cluster, kind, "node").covers(
        payload_bytes, group.per_node
    )
    return not (inside and _level(cluster, kind, "nodes").covers(message, nodes))


def _spans_nodes(cluster: Cluster, group: Group) -> bool:
    return cluster.device == "cuda" and group.per_node < group.size


def _spanning_seconds(cluster: Cluster, kind: str, payload_bytes: int, group: Group) -> float:
    """Both levels work on successive chunks at once, each with the traffic of the whole ring.

    Example: an all-reduce of S bytes by 2 nodes of 8 with links of 24 GB/s moves 15/8 S per
    rank over 8 links: 8 * 24 = 192 GB/s of bus bandwidth, as published for DGX A100.
    """
    nodes, message = _across(cluster, kind, payload_bytes, group)
    outer = _level(cluster, kind, "nodes")
    latency = outer.latency(nodes)
    scale = 1.0 if kind == "all_to_all" else _share(kind, group.size, nodes)
    transfer = scale * (outer.seconds(message, nodes) - latency)
    if group.per_node > 1:
        inner = _level(cluster, kind, "node")
        inner_latency = inner.latency(group.per_node)
        inside = inner.seconds(payload_bytes, group.per_node) - inner_latency
        transfer = max(transfer, _share(kind, group.size, group.per_node) * inside)
        latency += inner_latency
    return latency + transfer


def _across(cluster: Cluster, kind: str, payload_bytes: int, group: Group) -> tuple[int, float]:
    """Number of nodes, and the bytes that one link has to take as if each node had one rank."""
    nodes = -(-group.size // group.per_node)
    links = min(group.per_node, cluster.links_per_node / group.groups_per_node)
    senders = group.per_node if kind == "all_to_all" else 1
    return nodes, payload_bytes * senders / links


def _share(kind: str, size: int, part: int) -> float:
    return _TRAFFIC[kind](size) / _TRAFFIC[kind](part)


@dataclass(frozen=True)
class _Curve:
    """Seconds by payload for one group size."""

    size: int
    axis: Axis
    logs: tuple[float, ...]
    first_bytes: float
    last_bytes: float

    @property
    def latency(self) -> float:
        return math.exp(self.logs[0])

    def seconds(self, payload_bytes: float) -> float:
        left, right, part = self.axis.locate(payload_bytes)
        value = math.exp(self.logs[left] * (1 - part) + self.logs[right] * part)
        # Behind the last point the bandwidth stays what it is there.
        return value * max(1.0, payload_bytes / self.last_bytes)


@dataclass(frozen=True)
class _Level:
    """The curves of one kind on one level, by rising group size."""

    cluster: Cluster
    kind: str
    curves: tuple[_Curve, ...]

    def covers(self, payload_bytes: float, size: int) -> bool:
        first, last = self.curves[0], self.curves[-1]
        near = self._nearest(size)
        return (
            first.size <= size <= last.size and near.first_bytes <= payload_bytes <= near.last_bytes
        )

    def latency(self, size: int) -> float:
        return self._by_size(size, lambda curve: curve.latency)

    def seconds(self, payload_bytes: float, size: int) -> float:
        return self._by_size(size, lambda curve: curve.seconds(payload_bytes))

    def _nearest(self, size: int) -> _Curve:
        return min(self.curves, key=lambda curve: abs(math.log(size / curve.size)))

    def _by_size(self, size: int, price: Callable[[_Curve], float]) -> float:
        """Interpolates between the neighbours in size, or scales the nearest curve."""
        sizes = [curve.size for curve in self.curves]
        at = bisect_left(sizes, size)
        if at < len(sizes) and sizes[at] == size:
            return price(self.curves[at])
        if at in (0, len(sizes)):
            return self._scaled(self.curves[min(at, len(sizes) - 1)], size, price)
        low, high = self.curves[at - 1], self.curves[at]
        part = math.log(size / low.size) / math.log(high.size / low.size)
        return math.exp(math.log(price(low)) * (1 - part) + math.log(price(high)) * part)

    def _scaled(self, curve: _Curve, size: int, price: Callable[[_Curve], float]) -> float:
        """Latency grows with the rounds, the rest with the traffic; ranks may share cores."""
        slow = self.cluster.oversubscription
        rounds = _ROUNDS[self.kind](size) / _ROUNDS[self.kind](curve.size)
        rest = price(curve) - curve.latency
        total = rounds * curve.latency + _share(self.kind, size, curve.size) * rest
        return total * slow(size) / slow(curve.size)


@lru_cache
def _level(cluster: Cluster, kind: str, level: str) -> _Level:
    found = [
        _Curve(
            curve["size"],
            Axis.of(curve["bytes"]),
            tuple(math.log(value) for value in curve["seconds"]),
            curve["bytes"][0],
            curve["bytes"][-1],
        )
        for curve in cluster.curves["collectives"][kind]
        if curve["level"] == level
    ]
    if not found:
        raise CostModelError(
            f"no {kind} curve of level {level!r}",
            expected="a curve for groups " + ("in one node" if level == "node" else "across nodes"),
            where=f"cost model {cluster.name}",
            hint="choose a cluster with several nodes, or a smaller world size",
        )
    return _Level(cluster, kind, tuple(sorted(found, key=lambda curve: curve.size)))


def _check_kind(kind: str) -> None:
    if kind not in _TRAFFIC:
        raise CostModelError(
            f"a collective of kind {kind!r}",
            expected=f"one of {', '.join(KINDS)}",
            where="the price of a collective",
            hint="name the collective as torch.distributed does",
        )
