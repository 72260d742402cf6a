"""The collectives of synchronised statistics, in seconds and in numbers."""

from __future__ import annotations

import dataclasses

import pytest

from autopar.cluster import Cluster
from autopar.cost.collectives import collective_seconds
from autopar.cost.compute import elementwise_seconds
from autopar.cost.data_parallel import Setting, dp_group
from autopar.cost.layer import Norm, layer_cost, replicated
from autopar.cost.statistics import statistics_collectives, statistics_seconds
from autopar.solve.statistics import find_statistics
from autopar.strategies.patterns import find_classes, reduce
from autopar.trace import trace
from tests.multiprocess.models import batch, build, loss_fn

CLUSTER = Cluster.load("h100-80g")
M = 4


def setting(dp):
    return Setting(1, dp, 1, M, "1f1b", "fp32", "adamw")


@pytest.fixture(scope="module")
def traced():
    inputs, target = batch("normalized", 0)
    return trace(build("normalized"), inputs, {}, target=target, loss_fn=loss_fn("normalized"))


@pytest.fixture(scope="module")
def cost(traced):
    graph, classes = reduce(traced, find_classes(traced))
    pattern = next(p for p in classes.patterns.values() if p.name == "blocks.0")
    return layer_cost(graph, pattern, replicated(graph, pattern), CLUSTER, 2)


def test_a_block_has_the_channels_of_its_normalisations(traced, cost):
    # two samples of 32 x 32 pixels in float32
    assert cost.norms == (Norm(32, 2 * 32 * 1024 * 4), Norm(8, 2 * 8 * 1024 * 4))
    assert cost.norm_elements == 40
    assert find_statistics(traced).synchronised == ("embedding", "blocks.0", "blocks.1")


def test_one_rank_synchronises_nothing(cost):
    assert statistics_seconds(CLUSTER, cost, setting(1), "none") == (0.0, 0.0)
    assert not statistics_collectives(cost, setting(1), "none")


def test_a_layer_without_statistics_costs_nothing(cost):
    plain = dataclasses.replace(cost, norms=())
    assert statistics_seconds(CLUSTER, plain, setting(4), "full") == (0.0, 0.0)


def test_forward_gathers_two_figures_per_channel_and_backward_adds_them_up(cost):
    forward, backward = statistics_seconds(CLUSTER, cost, setting(4), "none")
    group = dp_group(CLUSTER, setting(4))
    gathers = [collective_seconds(CLUSTER, "all_gather", 4 * 8 * c, group) for c in (32, 8)]
    sums = [collective_seconds(CLUSTER, "all_reduce", 8 * c, group) for c in (32, 8)]
    passes = [elementwise_seconds(CLUSTER, norm.bytes) for norm in cost.norms]
    assert forward == pytest.approx(sum(gathers) + sum(passes))
    assert backward > sum(sums) + 8 * sum(passes)  # more than the one kernel of a single device
    assert statistics_collectives(cost, setting(4), "none") == {
        "all_gather": 2 * M,
        "all_reduce": 2 * M,
    }


def test_recomputation_gathers_again(cost):
    forward, backward = statistics_seconds(CLUSTER, cost, setting(4), "none")
    assert statistics_seconds(CLUSTER, cost, setting(4), "full") == (
        forward,
        pytest.approx(backward + forward),
    )
    assert statistics_collectives(cost, setting(4), "full")["all_gather"] == 4 * M
