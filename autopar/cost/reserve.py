"""What a rank's device holds besides live tensors: contexts, communicators, the allocator's rest.

A CPU has no caching allocator: a cost model without the curve ``reserve`` reserves nothing.
"""

from __future__ import annotations

import math

from autopar.cluster import Cluster

_NOTHING = {
    "context_bytes": 0, "communicator_bytes": 0, "activation_share": 0.0, "margin_bytes": 0,
}  # fmt: skip


def fixed_bytes(cluster: Cluster, communicators: int) -> int:
    """Bytes that a rank holds whatever it computes, with the margin for errors of the prediction.

    ``communicators`` are the process groups that the rank communicates in.
    """
    found = cluster.curves.get("reserve", _NOTHING)
    groups = communicators * found["communicator_bytes"]
    return int(found["context_bytes"] + groups + found["margin_bytes"])


def beside_bytes(cluster: Cluster, activation_bytes: int) -> int:
    """Bytes that the caching allocator holds beside saved activations: pieces between them."""
    share = float(cluster.curves.get("reserve", _NOTHING)["activation_share"])
    return math.ceil(share * activation_bytes)
