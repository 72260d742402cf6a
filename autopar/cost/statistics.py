"""What synchronised statistics cost: two small collectives over dp per normalisation."""

from __future__ import annotations

from collections import Counter

from autopar.cluster import Cluster
from autopar.cost.collectives import collective_seconds
from autopar.cost.data_parallel import Setting, dp_group
from autopar.cost.layer import LayerCost

# Two figures in float32 per channel: mean and variance, or their gradients.
CHANNEL_BYTES = 8


def statistics_seconds(
    cluster: Cluster, cost: LayerCost, setting: Setting, recompute: str
) -> tuple[float, float]:
    """Seconds of a layer's forward and of its backward, per micro-batch; nothing hides them.

    Forward gathers every rank's mean and variance, and does so again where the layer is
    computed again; backward adds their gradients up.
    """
    if setting.dp == 1 or not cost.norm_channels:
        return 0.0, 0.0
    group = dp_group(cluster, setting)
    slow = cluster.contention(setting.dp, setting.world_size)
    own = [CHANNEL_BYTES * channels for channels in cost.norm_channels]
    forward, backward = (
        slow
        * sum(collective_seconds(cluster, kind, payload_bytes, group) for payload_bytes in each)
        for kind, each in (("all_gather", [setting.dp * b for b in own]), ("all_reduce", own))
    )
    return forward, backward + (forward if recompute != "none" else 0.0)


def statistics_collectives(cost: LayerCost, setting: Setting, recompute: str) -> Counter[str]:
    """The collectives of a layer's statistics in one step."""
    if setting.dp == 1:
        return Counter()
    times = len(cost.norm_channels) * setting.num_microbatches
    return Counter({"all_gather": times * (1 + (recompute != "none")), "all_reduce": times})
