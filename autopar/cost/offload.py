"""What it costs to keep optimizer state and activations in host memory.

Every byte crosses the host link (PCIe) twice: activations down behind the operation that makes
them and up for backward, in every micro-batch; state up and down around a layer's update, once
per step. Copies run in the order of the kernels, so nothing hides them.

The update itself runs on the device. On the host it would save half of the bytes (gradients down
and parameters up are 8 bytes per parameter, AdamW's state both ways 16), and pay an update that is
bound by host memory, which the devices of a node share: 28 bytes per parameter for AdamW. On a
node of 8 H100 (64 GB/s of PCIe each, 614 GB/s of DDR5 for all) that is 0.25 ns per parameter for
the state against 0.12 + 0.36 ns. The numbers are the device's own, bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

from autopar.cluster import Cluster
from autopar.cost.curves import Table
from autopar.cost.layer import LayerCost, Recomputed
from autopar.errors import CostModelError

# What each choice keeps in host memory.
OFFLOADS: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("optimizer",),
    "activations": ("activations",),
    "all": ("optimizer", "activations"),
}
_STATE_BYTES = 4  # of one element of a moment


def offloads(choice: str, kind: str) -> bool:
    """Whether ``choice`` keeps ``kind``, "optimizer" or "activations", in host memory.

    Raises:
        KeyError: no such choice.
    """
    return kind in OFFLOADS[choice]


@lru_cache(1 << 14)
def copy_seconds(cluster: Cluster, payload_bytes: int, tensors: int) -> float:
    """Seconds in which one device copies ``tensors`` with ``payload_bytes`` in all, one way.

    Raises:
        CostModelError: the cost model has no curve of the host link.
    """
    if payload_bytes <= 0:
        return 0.0
    table, launch_seconds = _host_link(cluster)
    return payload_bytes / table.at(payload_bytes / max(1, tensors)) + tensors * launch_seconds


@lru_cache
def _host_link(cluster: Cluster) -> tuple[Table, float]:
    curve = cluster.curves.get("host_link")
    if curve is None:
        raise CostModelError(
            "no curve of the host link", expected='curves["host_link"]: bytes per second',
            where=f"cost model {cluster.name}",
            hint="measure the machine with `autopar calibrate`, or pin offload=none",
        )  # fmt: skip
    return Table.of([curve["bytes"]], curve["bytes_per_second"]), curve["launch_seconds"]


def state_seconds(cluster: Cluster, state_bytes: int, elements: int, tensors: int) -> float:
    """Seconds of bringing a layer's optimizer state to the device and back, once per step.

    ``state_bytes`` of ``elements`` parameters in ``tensors``: as many copies as there are moments.
    """
    moments = round(state_bytes / (_STATE_BYTES * elements)) if elements else 0
    return 2 * copy_seconds(cluster, state_bytes, tensors * moments)


def activation_bytes(cost: LayerCost) -> int:
    """Bytes that one micro-batch of a layer moves to the host.

    What further layers read stays on the device until the last of them has run.
    """
    return cost.hosted.moved_bytes


def activation_seconds(cluster: Cluster, cost: LayerCost) -> float:
    """Seconds that the activations of one micro-batch of a layer take to the host, or back."""
    return copy_seconds(cluster, activation_bytes(cost), cost.saved_tensors)


def offloaded(cost: LayerCost) -> Recomputed:
    """A layer whose activations are on the host between forward and backward."""
    fetched = max(0, cost.hosted.fetched_bytes - cost.transient_bytes)
    return Recomputed(0.0, 0.0, cost.handed_bytes, fetched)
