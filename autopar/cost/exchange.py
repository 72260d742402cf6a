"""What an exchange of gradients costs that is written out instead of left to the library.

All are for replicas (zero 0) and run behind the step's backward, bucket by bucket: the parameters
of one block, or all that is no block. With n ranks and S bytes of gradients in a bucket:

- "ring": 2 (n - 1) messages of S / n bytes to the next rank, of which the first half sums up and
  the second half passes on (Patarasuk and Yuan, 2009);
- "server": a reduction to rank 0, which alone has optimizer state and updates, and at the begin of
  the next step a broadcast of what it has made (parameter servers, Li et al., 2014, with one
  server and synchronous workers). With a server per shard of the parameters it would be ZeRO-1:
  every rank serves its shard by a reduce-scatter and an all-gather.
"""

from __future__ import annotations

from collections import Counter

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.compute import elementwise_seconds

EXCHANGES = ("collective", "ring", "server")
_GRADIENT_BYTES = 4


def exchange_counts(exchange: str, dp: int) -> Counter[str]:
    """Collectives of one bucket and step on one rank, by kind."""
    if exchange == "server":
        return Counter(reduce=1, broadcast=1)
    messages = 2 * (dp - 1)
    return Counter(send=messages, recv=messages)


def exchange_bytes(exchange: str, dp: int, elements: int) -> int:
    """Bytes of a bucket's flat copy and of what is beside it.

    On a ring that is a message received; behind a reduction the bucket before, which gloo lets go
    of a moment after it has said that it is done.
    """
    beside = -(-elements // dp) if exchange == "ring" else elements
    return _GRADIENT_BYTES * (elements + beside)


def exchange_seconds(
    cluster: Cluster, exchange: str, group: Group, elements: int, world_size: int
) -> float:
    """Seconds of exchanging one layer's gradients once, without overlap.

    What is sent is copied into one tensor and back, gradients once and, for the server, parameters
    once more. A reduction is priced as a broadcast, whose messages it sends the other way. The
    messages of a ring take what the library's all-reduce takes at least: it sends as many as large
    ones, and was measured with all ranks sending and receiving at once on the cores that there
    are, while the curve of messages is that of one sender and one receiver.

    Args:
        cluster: where it runs.
        exchange: "ring" or "server".
        group: the ranks with replicas.
        elements: number of gradients.
        world_size: number of ranks, which all communicate at this moment.
    """
    if group.size <= 1 or not elements:
        return 0.0
    payload = _GRADIENT_BYTES * elements
    shared = cluster.oversubscription(world_size)
    flat = 2 * shared * elementwise_seconds(cluster, 2 * payload)
    if exchange == "server":
        slow = cluster.contention(group.size, world_size)
        return 2 * (flat + slow * collective_seconds(cluster, "broadcast", payload, group))
    near = group.per_node >= group.size
    pair = Group(2, 2 if near else 1, 1 if near else group.groups_per_node)
    part = -(-payload // group.size)
    slow = cluster.contention(pair.size, world_size)
    message = slow * collective_seconds(cluster, "send_recv", part, pair)
    sums = (group.size - 1) * shared * elementwise_seconds(cluster, 3 * part)
    library = collective_seconds(cluster, "all_reduce", payload, group)
    library *= cluster.contention(group.size, world_size)
    return flat + sums + max(2 * (group.size - 1) * message, library)
