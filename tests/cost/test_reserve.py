"""What a rank's device holds besides live tensors."""

from __future__ import annotations

from autopar.cluster import Cluster
from autopar.cost.reserve import beside_bytes, fixed_bytes
from autopar.solve.problem import Configuration


def test_a_cpu_reserves_nothing():
    cpu = Cluster.load("cpu")
    assert fixed_bytes(cpu, 4) == beside_bytes(cpu, 10**9) == 0


def test_every_process_group_has_buffers():
    cluster = Cluster.load("a100-80g")
    own = cluster.curves["reserve"]
    assert fixed_bytes(cluster, 0) == own["context_bytes"] + own["margin_bytes"]
    assert fixed_bytes(cluster, 3) - fixed_bytes(cluster, 1) == 2 * own["communicator_bytes"]
    assert beside_bytes(cluster, 10**9) == round(own["activation_share"] * 10**9)


def test_a_rank_communicates_with_all_and_along_every_axis_of_its_mesh():
    def groups(pp: int, dp: int, tp: int) -> int:
        return Configuration(pp, dp, tp, 1, 8, "1f1b").communicators

    assert [groups(1, 1, 1), groups(1, 8, 1), groups(2, 1, 4), groups(2, 2, 2)] == [0, 2, 3, 4]
