from __future__ import annotations

from collections import Counter

import pytest

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.compute import elementwise_seconds
from autopar.cost.data_parallel import Setting, dp_cost, state_bytes
from autopar.cost.exchange import exchange_bytes, exchange_counts, exchange_seconds
from autopar.cost.layer import layer_cost, replicated
from tests.zoo import block_of, reduced

CLUSTER = Cluster.load("h100-80g")
NODE = Group(8, 8)
LARGE = 250_000_000  # gradients, 1 GB


def test_a_ring_moves_what_an_all_reduce_does():
    """2 (n - 1) messages of an n-th; near the all-reduce's time where latencies do not count."""
    assert exchange_counts("ring", 8) == Counter(send=14, recv=14)
    message = collective_seconds(CLUSTER, "send_recv", 4 * LARGE // 8, Group(2, 2))
    sums = 7 * elementwise_seconds(CLUSTER, 3 * 4 * LARGE // 8)
    flat = 2 * elementwise_seconds(CLUSTER, 2 * 4 * LARGE)
    found = exchange_seconds(CLUSTER, "ring", NODE, LARGE, 8)
    assert found == pytest.approx(flat + sums + 14 * message)
    assert found > collective_seconds(CLUSTER, "all_reduce", 4 * LARGE, NODE)


def test_a_ring_on_few_cores_is_no_faster_than_the_all_reduce_measured_there():
    cpu, group = Cluster.load("cpu"), Group(4, 4)
    for elements in (1000, 250_000):
        library = collective_seconds(cpu, "all_reduce", 4 * elements, group)
        alone = 6 * collective_seconds(cpu, "send_recv", elements, Group(2, 2))
        found = exchange_seconds(cpu, "ring", group, elements, 4)
        assert found > library > 2 * alone


def test_a_ring_over_nodes_waits_for_the_link_between_them():
    near = exchange_seconds(CLUSTER, "ring", Group(8, 8), LARGE, 8)
    assert exchange_seconds(CLUSTER, "ring", Group(8, 4), LARGE, 8) > 2 * near


def test_a_server_takes_all_gradients_and_gives_all_parameters():
    assert exchange_counts("server", 8) == Counter(reduce=1, broadcast=1)
    way = collective_seconds(CLUSTER, "broadcast", 4 * LARGE, NODE)
    flat = 4 * elementwise_seconds(CLUSTER, 8 * LARGE)
    assert exchange_seconds(CLUSTER, "server", NODE, LARGE, 8) == pytest.approx(2 * way + flat)


def test_nothing_is_exchanged_alone():
    for exchange in ("ring", "server"):
        assert exchange_seconds(CLUSTER, exchange, Group(1, 1), LARGE, 1) == 0.0


@pytest.mark.parametrize("exchange", ["ring", "server"])
def test_layers_are_replicas_without_fully_shard(exchange):
    graph, classes = reduced("gpt")
    pattern = classes.patterns[block_of("gpt")]
    cost = layer_cost(graph, pattern, replicated(graph, pattern), CLUSTER, 1)
    setting = Setting(1, 4, 1, 8, "1f1b", "fp32", "adamw", exchange=exchange)
    held, n = state_bytes(cost, setting, 0), cost.parameter_elements
    assert (held.parameters, held.gradients, held.optimizer) == (4 * n, 4 * n, 8 * n)
    assert held.behind == exchange_bytes(exchange, 4, n)
    priced = dp_cost(CLUSTER, cost, setting, 0, 0)
    assert priced.collectives == exchange_counts(exchange, 4)
    assert priced.sync_seconds == exchange_seconds(CLUSTER, exchange, Group(4, 4), n, 4)
    assert priced.forward_seconds == priced.backward_seconds == 0.0


def test_ranks_that_share_cores_wait_for_each_other():
    cpu = Cluster.load("cpu")
    quiet = exchange_seconds(cpu, "ring", Group(2, 2), 1000, cpu.cores_per_node)
    assert exchange_seconds(cpu, "ring", Group(2, 2), 1000, 2 * cpu.cores_per_node) == 2 * quiet
