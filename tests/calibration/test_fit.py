from __future__ import annotations

import pytest

from autopar.calibration import fit
from autopar.calibration.fit import collective_curves, compute_curves, curve_name, fit_errors
from autopar.calibration.points import CPU, Point
from autopar.calibration.rows import Rows
from autopar.cluster import Cluster

PEAK, LAUNCH, BANDWIDTH, LATENCY = 1e11, 3e-6, 1e10, 1e-4


def ideal_seconds(point):
    """A machine whose every curve is flat."""
    if point.curve == "gemm":
        m, n, k = point.shape
        return LAUNCH + (2 * m * n * k / PEAK if point.shape != (1, 8, 8) else 0)
    if point.curve == "attention":
        heads, length, dim = point.shape
        products = 5 if point.variant.endswith("backward") else 2
        half = 2 if "causal" in point.variant else 1
        work = products * 2 * heads * length**2 * dim / half
        return LAUNCH + (work / (0.5 * PEAK) if length > 1 else 0)
    if point.curve == "collectives":
        payload, size, groups = point.shape
        return groups * (LATENCY + payload * size / BANDWIDTH)
    size = point.shape[0]
    return LAUNCH + (size / BANDWIDTH if size > 64 else 0)


@pytest.fixture
def rows(tmp_path):
    rows = Rows(tmp_path / "ideal.csv", "ideal")
    for point in [*CPU.compute_points(), *CPU.collective_points(2, 4)]:
        rows.add(point, ideal_seconds(point))
    return rows


def test_recovers_the_machine(rows):
    curves = compute_curves(rows)
    gemm = curves["gemm"]["float32"]
    assert gemm["peak_flops"] == pytest.approx(PEAK, rel=1e-3)
    assert gemm["launch_seconds"] == LAUNCH
    # The smallest products drown in the launch, which bounds what can be told about them.
    flat = [value for row in gemm["efficiency"][-1] for value in row[1:]]
    assert flat == pytest.approx([1.0] * len(flat), abs=0.01)
    assert gemm["efficiency"][0][0][0] > 0.2
    scores = curves["attention"]["float32"]["causal_backward"]["efficiency"]
    assert all(value == pytest.approx(0.5, rel=0.01) for row in scores for value in row)
    rates = curves["elementwise"]["softmax"]["bytes_per_second"]
    assert rates == pytest.approx([BANDWIDTH] * len(rates), rel=0.01)


def test_products_of_gradients_are_the_mean_of_both(rows):
    """A machine that reads the transposed factor of a layer's forward in half of its speed."""
    for point in rows.points():
        if point.curve == "gemm" and not point.variant.endswith("linear"):
            factor = 2.0 if point.variant.endswith("weight_gradient") else 1.0
            rows._samples[point] = [factor * ideal_seconds(point) / 3]
    curve = compute_curves(rows)["gemm"]["bfloat16"]
    assert curve["gradient"]["launch_seconds"] == pytest.approx(LAUNCH / 2)
    assert curve["gradient"]["peak_flops"] == pytest.approx(2 * PEAK, rel=1e-3)
    assert curve["peak_flops"] == pytest.approx(PEAK, rel=1e-3)
    data = Cluster.load("cpu").to_dict()
    curves = {**compute_curves(rows), "collectives": collective_curves(rows)}
    cluster = Cluster.from_dict({**data, "curves": curves})
    # one gradient takes a third less, the other a third more than the mean of both
    assert fit_errors(rows, cluster)["gemm.bfloat16"]["p90"] == pytest.approx(0.5, rel=0.1)


def test_samples_without_gradients_make_no_table_of_them(rows):
    for point in rows.points():
        if point.variant.endswith("input_gradient"):
            rows._samples[point] = []
    assert "gradient" not in compute_curves(rows)["gemm"]["float32"]


def test_products_too_large_to_measure_take_the_nearest(rows):
    gemm = compute_curves(rows)["gemm"]["float32"]
    assert gemm["m"][-1] == gemm["n"][-1] == gemm["k"][-1] == 4096
    assert gemm["efficiency"][-1][-1][-1] == pytest.approx(1, abs=0.01)


def test_collective_curves_never_fall(rows):
    rows.add(Point("collectives", "all_gather", (2**20, 2, 1)), 1e-9)
    (curve,) = collective_curves(rows)["all_gather"]
    assert curve["seconds"] == sorted(curve["seconds"])
    assert (curve["size"], curve["level"]) == (2, "node")


def test_neighbours_in_the_wrong_order_share_their_mean():
    assert fit._rising([1.0, 8.0, 2.0, 9.0]) == pytest.approx([1, 4, 4, 9])
    assert fit._rising([8.0, 4.0, 2.0]) == pytest.approx([4, 4, 4])


def test_a_flat_machine_is_predicted_well(rows):
    data = Cluster.load("cpu").to_dict()
    curves = {**compute_curves(rows), "collectives": collective_curves(rows)}
    cluster = Cluster.from_dict({**data, "cores_per_node": 2, "curves": curves})
    errors = fit_errors(rows, cluster)
    assert {"gemm.float32", "attention.bfloat16", "elementwise", "contention"} <= errors.keys()
    for name, error in errors.items():
        assert error["median"] < 0.15, name
        assert error["median"] <= error["p90"]
        assert error["points"] > 0


def test_names_of_curves():
    assert curve_name(Point("gemm", "float32/linear", (1, 2, 3))) == "gemm.float32"
    assert curve_name(Point("collectives", "broadcast", (1, 2, 1))) == "collectives.broadcast"
    assert curve_name(Point("collectives", "all_reduce", (1, 2, 2))) == "contention"
    assert curve_name(Point("optimizer", "sgd", (1,))) == "optimizer"
