from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest

from autopar.calibration import ranks
from autopar.calibration.points import COLLECTIVES, SWEEPS
from autopar.calibration.rows import Rows
from autopar.errors import CostModelError


def test_group_sizes():
    assert ranks.group_sizes(1) == []
    assert ranks.group_sizes(4) == [2, 4]
    assert ranks.group_sizes(6) == [2, 4]


@pytest.mark.multiprocess
def test_two_ranks_measure_every_kind(tmp_path):
    path = tmp_path / "a.csv"
    ranks.measure_collectives(path, "cpu", "chip", size=2, ranks=2, seconds=0.0)
    rows = Rows(path, "chip")
    measured = {point.variant for point in rows.points() if point.curve == "collectives"}
    assert measured == set(COLLECTIVES)
    toys = {point for point in rows.points() if point.curve == "overheads"}
    assert toys == set(SWEEPS["cpu"].overhead_points())
    assert all(1e-6 < rows.seconds(point) < 10 for point in rows.points())
    assert multiprocessing.active_children() == []


@pytest.mark.multiprocess
def test_ranks_that_fail_are_reported_and_gone(tmp_path):
    job = ranks.Job("cpu", "chip", tmp_path / "a.csv", 2, 2, 0.0, str(tmp_path / "store"))
    broken = replace(job, device="abacus")
    with pytest.raises(CostModelError, match="abacus"):
        ranks._run(broken, limit=float("inf"))
    assert multiprocessing.active_children() == []


@pytest.mark.multiprocess
def test_ranks_that_do_not_end_are_stopped(tmp_path):
    job = ranks.Job("cpu", "chip", tmp_path / "a.csv", 2, 2, 0.0, str(tmp_path / "store"))
    with pytest.raises(CostModelError, match="no end in time"):
        ranks._run(job, limit=0.0)
    assert multiprocessing.active_children() == []
