from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cluster import Cluster, known_clusters
from autopar.cost.compute import (
    Rounds,
    attention_seconds,
    elementwise_seconds,
    gemm_seconds,
    optimizer_seconds,
)
from autopar.errors import CostModelError

CLUSTERS = [Cluster.load(name) for name in known_clusters()]
H100 = Cluster.load("h100-80g")


def attention(cluster, length=512, heads=8, *, causal=True, backward=False, head_dim=64):
    return attention_seconds(
        cluster, batch=2, heads=heads, query_length=length, key_length=length, head_dim=head_dim,
        dtype="float32", causal=causal, backward=backward,
    )  # fmt: skip


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda c: c.name)
@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 20000))
def test_no_product_beats_the_peak(cluster, m, n, k):
    seconds = gemm_seconds(cluster, m, n, k, "float32")
    assert seconds >= 2 * m * n * k / cluster.peak_flops("fp32")
    assert seconds > cluster.curves["gemm"]["float32"]["launch_seconds"]


def test_gemm_at_a_grid_point():
    curve = H100.curves["gemm"]["bfloat16"]
    i, j, k = (curve[axis].index(4096) for axis in "mnk")
    rate = curve["peak_flops"] * curve["efficiency"][i][j][k]
    expected = 2 * 4096**3 / rate + curve["launch_seconds"]
    assert gemm_seconds(H100, 4096, 4096, 4096, "bfloat16") == pytest.approx(expected)


def test_a_thin_product_is_bound_by_memory():
    seconds = gemm_seconds(H100, 1, 8192, 8192, "bfloat16")
    assert seconds >= 2 * 8192**2 / 3.35e12


def test_a_batch_is_launched_once():
    launch = H100.curves["gemm"]["bfloat16"]["launch_seconds"]
    one = gemm_seconds(H100, 1024, 1024, 1024, "bfloat16") - launch
    many = gemm_seconds(H100, 1024, 1024, 1024, "bfloat16", 64) - launch
    assert many == pytest.approx(64 * one)


def test_nothing_to_do_costs_nothing():
    assert gemm_seconds(H100, 0, 5, 5, "float32") == 0
    assert elementwise_seconds(H100, 0) == 0
    assert optimizer_seconds(H100, 0, "adamw") == 0
    assert attention(H100, heads=0) == 0


def test_bfloat16_is_faster_on_tensor_cores():
    ratio = gemm_seconds(H100, 4096, 4096, 4096, "float32") / gemm_seconds(
        H100, 4096, 4096, 4096, "bfloat16"
    )
    assert 10 < ratio < 16


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda c: c.name)
def test_attention_grows_with_the_square_of_the_length(cluster):
    assert attention(cluster, 2048) > 3 * attention(cluster, 512)
    assert attention(cluster, backward=True) > attention(cluster)
    assert attention(cluster, causal=False) > 0.9 * attention(cluster)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda c: c.name)
def test_elementwise_is_bandwidth_and_launch(cluster):
    small, large = elementwise_seconds(cluster, 64), elementwise_seconds(cluster, 2**28)
    assert small >= cluster.curves["elementwise"]["elementwise"]["launch_seconds"]
    assert large > 10 * small
    assert elementwise_seconds(cluster, 2**28, "softmax_backward") > 0


def test_optimizers_are_ordered_by_their_traffic():
    sgd, adamw = (optimizer_seconds(H100, 10**8, kind) for kind in ("sgd", "adamw"))
    assert sgd < adamw
    assert optimizer_seconds(H100, 10**8, 0) == pytest.approx(sgd, rel=0.1)
    assert optimizer_seconds(H100, 10**8, 8) > sgd


def test_every_tensor_of_an_optimizer_is_launched():
    launch = H100.curves["optimizer"]["adamw"]["launch_seconds"]
    more = optimizer_seconds(H100, 1000, "adamw", 5) - optimizer_seconds(H100, 1000, "adamw")
    assert more == pytest.approx(4 * launch)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gemm_seconds(H100, 8, 8, 8, "int64"),
        lambda: elementwise_seconds(H100, 8, "sorting"),
        lambda: optimizer_seconds(H100, 8, "lion"),
    ],
)
def test_what_has_no_curve_is_refused(call):
    with pytest.raises(CostModelError, match=r"no .* curve"):
        call()


def test_misaligned_and_gradient_products_are_slower():
    """Sizes divisible by 4 only run at the share of their step, gradients at their own."""
    data = deepcopy(Cluster.load("a100-80g").to_dict())
    curve = data["curves"]["gemm"]["bfloat16"]
    curve["alignment"] = {"elements": [4, 8], "efficiency": [0.25, 0.5]}
    curve["gradient_share"] = 0.5
    cluster = Cluster.from_dict(data)
    launch = curve["launch_seconds"]

    def seconds(k, **options):
        return gemm_seconds(cluster, 8192, 8192, k, "bfloat16", **options) - launch

    even = seconds(4096)
    assert seconds(4104) == pytest.approx(2 * even * 4104 / 4096, rel=0.01)
    assert seconds(4100) == pytest.approx(4 * even * 4100 / 4096, rel=0.01)
    assert seconds(4096, gradient=True) == pytest.approx(2 * even)


def test_products_of_gradients_may_have_a_table_of_their_own():
    data = deepcopy(Cluster.load("cpu").to_dict())
    curve = data["curves"]["gemm"]["float32"]
    flat = {"m": [64], "n": [64], "k": [64], "efficiency": [[[0.5]]]}
    curve |= flat | {"peak_flops": 1e9, "launch_seconds": 1e-3}
    before = Cluster.from_dict(deepcopy(data))
    curve["gradient"] = flat | {"peak_flops": 4e9, "launch_seconds": 1e-4}
    after = Cluster.from_dict(data)

    def seconds(cluster, **options):
        return gemm_seconds(cluster, 100, 100, 100, "float32", **options)

    assert seconds(before, gradient=True) == seconds(before) == seconds(after)
    assert seconds(before) == pytest.approx(2e6 / 0.5e9 + 1e-3)
    assert seconds(after, gradient=True) == pytest.approx(2e6 / 2e9 + 1e-4)


def test_tiles_are_dealt_out_in_rounds():
    """101 tiles on 100 multiprocessors take two rounds, as 200 do; a batch fills them, too."""
    tiles = ((128, 128, 1.0),)
    strict, kind = Rounds(100, 1.0, tiles), Rounds(100, 0.0, tiles)

    def taken(rounds, count, batch=1):
        return count * batch / rounds.filled(128 * count, 128, batch)

    assert taken(strict, 101) == pytest.approx(taken(strict, 200))
    assert taken(strict, 101) == pytest.approx(2 * taken(strict, 100))
    assert taken(strict, 10, batch=20) == pytest.approx(taken(strict, 200))
    assert taken(kind, 101) == pytest.approx(1.01 * taken(kind, 100))


def test_small_tiles_serve_small_results():
    rounds = Rounds(100, 1.0, ((128, 128, 1.0), (64, 64, 0.5)))
    assert rounds.filled(128, 128) == pytest.approx(0.5 * 4 / 100)
    assert rounds.filled(1280, 1280) == 1.0


def test_rounds_slow_products_down_and_larger_results_never_take_less():
    data = deepcopy(H100.to_dict())
    curve = data["curves"]["gemm"]["bfloat16"]
    curve.pop("rounds", None)
    curve |= {"m": [64], "n": [64], "k": [64], "efficiency": [[[0.7]]]}
    plain = Cluster.from_dict(deepcopy(data))
    whole = gemm_seconds(plain, 8192, 8192, 8192, "bfloat16") - curve["launch_seconds"]
    tile = {"rows": 8192, "columns": 8192, "share": 1.0}
    curve["rounds"] = {"multiprocessors": 4, "wasted": 1.0, "tiles": [tile]}
    cluster = Cluster.from_dict(data)
    alone = gemm_seconds(cluster, 8192, 8192, 8192, "bfloat16") - curve["launch_seconds"]
    assert alone == pytest.approx(4 * whole)
    taken = [gemm_seconds(cluster, m, 8192, 8192, "bfloat16") for m in range(1024, 65_536, 1024)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(taken))
