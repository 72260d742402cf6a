from __future__ import annotations

import pytest

from autopar.calibration.points import COLLECTIVES, SWEEPS, Point


@pytest.mark.parametrize("device", SWEEPS)
def test_held_out_points_are_not_grid_points(device):
    sweep = SWEEPS[device]
    points = [
        *sweep.compute_points(), *sweep.collective_points(2, 4), *sweep.overhead_points(),
    ]  # fmt: skip
    assert len(set(points)) == len(points)
    grid = {(p.curve, p.variant, p.shape) for p in points if not p.held_out}
    held_out = {(p.curve, p.variant, p.shape) for p in points if p.held_out}
    assert grid.isdisjoint(held_out)
    assert len(held_out) > 50


@pytest.mark.parametrize("device", SWEEPS)
def test_products_are_bounded(device):
    sweep = SWEEPS[device]
    for point in sweep.compute_points():
        if point.curve == "gemm" and not point.held_out:
            m, n, k = point.shape
            assert 2 * m * n * k <= sweep.gemm_work_limit


def test_every_collective_is_measured_on_pairs():
    points = SWEEPS["cpu"].collective_points(2, 4)
    assert {p.variant for p in points} == set(COLLECTIVES)
    assert {p.shape[1] for p in points} == {2}


def test_messages_go_between_two():
    assert all(p.variant != "send_recv" for p in SWEEPS["cpu"].collective_points(4, 4))


def test_several_groups_at_once_are_held_out():
    shared = [p for p in SWEEPS["cpu"].collective_points(2, 4) if p.shape[2] > 1]
    assert shared
    assert all(p.held_out and p.shape[2] == 2 for p in shared)
    assert not [p for p in SWEEPS["cpu"].collective_points(4, 4) if p.shape[2] > 1]


def test_points_are_keys():
    assert Point("gemm", "a", (1,)) == Point("gemm", "a", (1,))
    assert Point("gemm", "a", (1,)) != Point("gemm", "a", (1,), True)
