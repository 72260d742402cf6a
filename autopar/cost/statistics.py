"""What synchronised statistics cost: two small collectives over dp per normalisation.

And a backward that is written in torch's operations instead of one kernel.
"""

from __future__ import annotations

from collections import Counter

from autopar.cluster import Cluster
from autopar.cost.collectives import collective_seconds
from autopar.cost.compute import elementwise_seconds
from autopar.cost.data_parallel import Setting, dp_group
from autopar.cost.layer import LayerCost, Norm

# Two figures in float32 per channel: mean and variance, or their gradients.
CHANNEL_BYTES = 8
# Per operation of the program's ``SynchronisedNorm.backward``, in order: how many tensors as large
# as the activation it reads and writes. The kernel of one rank reads two and writes one.
PASSES = (2, 3, 1, 1, 2, 2, 3, 2, 2)
KERNEL_PASSES = 3


def statistics_seconds(
    cluster: Cluster, cost: LayerCost, setting: Setting, recompute: str
) -> tuple[float, float]:
    """Seconds of a layer's forward and of its backward, per micro-batch; nothing hides them.

    Forward gathers every rank's mean and variance, and does so again where the layer is
    computed again; backward adds their gradients up. Beside that, the statistics are a pass of
    their own over the activation, and backward takes more passes than the kernel's.
    """
    if setting.dp == 1 or not cost.norms:
        return 0.0, 0.0
    group = dp_group(cluster, setting)
    slow = cluster.contention(setting.dp, setting.world_size)
    own = [CHANNEL_BYTES * norm.channels for norm in cost.norms]
    forward, backward = (
        slow
        * sum(collective_seconds(cluster, kind, payload_bytes, group) for payload_bytes in each)
        for kind, each in (("all_gather", [setting.dp * b for b in own]), ("all_reduce", own))
    )
    forward += sum(elementwise_seconds(cluster, norm.bytes) for norm in cost.norms)
    backward += sum(_further_passes(cluster, norm) for norm in cost.norms)
    return forward, backward + (forward if recompute != "none" else 0.0)


def _further_passes(cluster: Cluster, norm: Norm) -> float:
    """Seconds that backward takes longer than the kernel which the layer's price contains."""
    written_out = sum(elementwise_seconds(cluster, passes * norm.bytes) for passes in PASSES)
    kernel_bytes = KERNEL_PASSES * norm.bytes
    return written_out - elementwise_seconds(cluster, kernel_bytes, "normalization_backward")


def statistics_collectives(cost: LayerCost, setting: Setting, recompute: str) -> Counter[str]:
    """The collectives of a layer's statistics in one step."""
    if setting.dp == 1:
        return Counter()
    times = len(cost.norms) * setting.num_microbatches
    return Counter({"all_gather": times * (1 + (recompute != "none")), "all_reduce": times})
