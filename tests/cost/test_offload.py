from __future__ import annotations

import dataclasses

import pytest

from autopar.cluster import Cluster
from autopar.cost.activations import hosted, saved_tensors
from autopar.cost.data_parallel import Setting, dp_cost, state_bytes
from autopar.cost.layer import layer_cost, replicated
from autopar.cost.offload import (
    OFFLOADS,
    activation_bytes,
    activation_seconds,
    copy_seconds,
    offloaded,
    state_seconds,
)
from autopar.errors import CostModelError
from autopar.solve.intra import Weights, shard_pattern
from tests.zoo import CHANNELS, TOKENS, block_of, reduced

CLUSTER = Cluster.load("h100-80g")
RATE, LAUNCH = 57.61e9, 4e-6


@pytest.fixture(scope="module")
def cost():
    graph, classes = reduced("gpt")
    pattern = classes.patterns[block_of("gpt")]
    return layer_cost(graph, pattern, replicated(graph, pattern), CLUSTER, 4, away=True)


def test_a_copy_takes_its_bytes_over_pcie():
    """Gen5 of 16 lanes carries 64 GB/s one way, of which 90 % are payload."""
    assert copy_seconds(CLUSTER, 10**9, 1) == pytest.approx(10**9 / RATE + LAUNCH, rel=1e-3)
    assert copy_seconds(CLUSTER, 0, 3) == 0.0


def test_state_goes_both_ways_a_moment_at_a_time():
    """AdamW has two moments of 4 bytes: 8 up and 8 down, in two copies per tensor each way."""
    seconds = state_seconds(CLUSTER, state_bytes=8 * 10**8, elements=10**8, tensors=5)
    assert seconds == pytest.approx(2 * (8e8 / RATE + 10 * LAUNCH), rel=1e-3)
    assert state_seconds(CLUSTER, 0, 10**8, 5) == 0.0


@pytest.mark.parametrize("choice", OFFLOADS)
def test_state_leaves_the_device_but_for_one_layer(cost, choice):
    kept = state_bytes(cost, Setting(1, 4, 1, 1, "1f1b", "bf16", "adamw"), 2)
    setting = Setting(1, 4, 1, 1, "1f1b", "bf16", "adamw", offload=choice)
    held = state_bytes(cost, setting, 2)
    times = [dp_cost(CLUSTER, cost, s, 2, 0).optimizer_seconds
             for s in (setting, Setting(1, 4, 1, 1, "1f1b", "bf16", "adamw"))]  # fmt: skip
    if "optimizer" in OFFLOADS[choice]:
        assert (held.optimizer, held.host, held.behind) == (0, kept.optimizer, kept.optimizer)
        assert held.total == kept.total - kept.optimizer
        assert times[0] > times[1]
    else:
        assert held == kept
        assert times[0] == times[1]


def test_activations_come_back_for_the_layers_backward(cost):
    moved = offloaded(cost)
    assert moved.held_bytes == cost.handed_bytes == 0
    assert activation_bytes(cost) == cost.saved_bytes
    fetched = cost.hosted.fetched_bytes
    assert 0 < moved.transient_bytes == fetched - cost.transient_bytes < cost.saved_bytes
    assert activation_seconds(CLUSTER, cost) == copy_seconds(
        CLUSTER, cost.saved_bytes, cost.saved_tensors
    )


def test_gathers_over_tp_have_the_whole_twice():
    """Between layers that keep shards of the sequence; not where sums stay whole."""
    graph, classes = reduced("gpt")
    pattern = classes.patterns[block_of("gpt")]
    peaks = {}
    for layout in ("replicate", "sequence"):
        own = shard_pattern(graph, pattern, CLUSTER, tp=2, layout=layout, batch=1,
                            weights=Weights(parameter=1e-7))  # fmt: skip
        saved = saved_tensors(graph, pattern, own, 4)
        still = dataclasses.replace(own, moves=())
        peaks[layout] = [hosted(graph, pattern, s, 4, saved).fetched_bytes for s in (own, still)]
    assert peaks["replicate"][0] == peaks["replicate"][1]
    assert peaks["sequence"][0] - peaks["sequence"][1] == 4 * 4 * CHANNELS * TOKENS


def test_a_machine_without_the_curve_is_named():
    data = CLUSTER.to_dict()
    data["curves"] = {name: curve for name, curve in data["curves"].items() if name != "host_link"}
    with pytest.raises(CostModelError, match="no curve of the host link"):
        copy_seconds(Cluster.from_dict(data), 100, 1)
