from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cluster import Cluster, known_clusters
from autopar.cost.collectives import KINDS, Group, collective_seconds, is_extrapolated
from autopar.errors import CostModelError

A100, CPU = Cluster.load("a100-80g"), Cluster.load("cpu")
CLUSTERS = [Cluster.load(name) for name in known_clusters()]
GIB = 2**30


def bus_bandwidth(payload_bytes, group):
    seconds = collective_seconds(A100, "all_reduce", payload_bytes, group)
    return 2 * (group.size - 1) / group.size * payload_bytes / seconds


@pytest.mark.parametrize("kind", KINDS)
def test_alone_or_empty_is_free(kind):
    assert collective_seconds(A100, kind, GIB, Group(1, 1)) == 0
    assert collective_seconds(A100, kind, 0, Group(8, 8)) == 0
    assert not is_extrapolated(A100, kind, GIB, Group(1, 1))


def test_published_time_in_a_node():
    # nccl-tests on one A100 node: 8 ranks, 128 MiB, 1162 us.
    assert collective_seconds(A100, "all_reduce", 2**27, Group(8, 8)) == pytest.approx(
        1162e-6, rel=0.03
    )


def test_published_bandwidth_across_nodes():
    # Two DGX A100 with 8 x 200 Gb/s each: 192 GB/s of bus bandwidth, of which steps keep 0.642.
    assert bus_bandwidth(8 * GIB, Group(16, 8)) == pytest.approx(0.642 * 192e9, rel=0.02)


def test_groups_that_cross_together_share_the_links():
    alone = collective_seconds(A100, "all_reduce", GIB, Group(4, 2, 1))
    all_links_used = collective_seconds(A100, "all_reduce", GIB, Group(4, 2, 4))
    crowded = collective_seconds(A100, "all_reduce", GIB, Group(4, 2, 8))
    assert alone == all_links_used
    assert crowded == pytest.approx(2 * alone, rel=0.01)


def test_sharing_does_not_matter_inside_a_node():
    one, four = (collective_seconds(A100, "all_reduce", GIB, Group(2, 2, g)) for g in (1, 4))
    assert one == four


def test_leaving_the_node_costs():
    for kind in KINDS:
        size = 2 if kind == "send_recv" else 8
        inside = collective_seconds(A100, kind, GIB, Group(size, size))
        outside = collective_seconds(A100, kind, GIB, Group(size, 1))
        assert outside > 3 * inside


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda c: c.name)
@given(
    st.sampled_from(KINDS), st.integers(1, 2**34), st.sampled_from([2, 3, 4, 8, 16, 64]),
    st.sampled_from([1, 2, 8]),
)  # fmt: skip
def test_more_payload_never_takes_less_time(cluster, kind, payload, size, per_node):
    group = Group(size, min(per_node, size))
    seconds = collective_seconds(cluster, kind, payload, group)
    assert 0 < seconds <= collective_seconds(cluster, kind, 2 * payload, group) * (1 + 1e-9)


def test_latency_grows_with_the_group():
    for kind in ("all_reduce", "all_gather", "all_to_all"):
        times = [collective_seconds(A100, kind, 1024, Group(n, 8)) for n in (16, 64, 512)]
        assert times == sorted(times)
        assert times[0] < times[-1]


def test_a_cpu_host_is_one_node():
    together = collective_seconds(CPU, "all_reduce", 2**20, Group(4, 4))
    assert collective_seconds(CPU, "all_reduce", 2**20, Group(4, 1, 2)) == together


def test_measured_points_are_met():
    for kind in KINDS:
        for curve in CPU.curves["collectives"][kind]:
            group = Group(curve["size"], curve["size"])
            for payload, seconds in zip(curve["bytes"], curve["seconds"], strict=True):
                assert collective_seconds(CPU, kind, payload, group) == pytest.approx(seconds)


def test_says_what_is_extrapolated():
    assert not is_extrapolated(CPU, "all_reduce", 2**20, Group(2, 2))
    assert is_extrapolated(CPU, "all_reduce", 2**30, Group(2, 2))
    assert is_extrapolated(CPU, "all_reduce", 8, Group(2, 2))
    assert is_extrapolated(CPU, "all_reduce", 2**20, Group(64, 64))
    assert not is_extrapolated(A100, "all_reduce", 2**28, Group(16, 8))
    assert is_extrapolated(A100, "all_reduce", 2**28, Group(64, 8))


def test_bandwidth_stays_beyond_the_last_point():
    times = [collective_seconds(A100, "all_gather", n * 64 * GIB, Group(8, 8)) for n in (1, 2)]
    assert times[1] == pytest.approx(2 * times[0])


def test_beyond_the_measured_ranks_a_cpu_pays_for_sharing_cores():
    largest = max(curve["size"] for curve in CPU.curves["collectives"]["all_reduce"])
    near, far = (
        collective_seconds(CPU, "all_reduce", 2**24, Group(n, n)) for n in (largest, 4 * largest)
    )
    slower = CPU.oversubscription(4 * largest) / CPU.oversubscription(largest)
    assert far > slower * near


def test_unknown_kind():
    with pytest.raises(CostModelError, match="gossip"):
        collective_seconds(A100, "gossip", 1, Group(2, 2))
