"""Figures derived from a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from autopar.errors import RunError
from autopar.run.measure import Observed, RunResult, read_observed, read_result

FIELDS = {
    "step_seconds": (9.0, *(0.1 * step for step in range(11, 0, -1))),
    "losses": (2.0, 1.5),
    "peak_memory_bytes": (100, 200),
    "predicted_step_seconds": 0.9,
    "predicted_memory_bytes": 150,
}
PLAN = SimpleNamespace(prediction=SimpleNamespace(step_seconds=0.9), live_bytes=150)


def test_derived_figures():
    result = RunResult(**FIELDS)
    assert result.median_seconds == pytest.approx(0.6), "the first step is left out"
    assert result.tenth_percentile_seconds == pytest.approx(0.2)
    assert result.step_error == pytest.approx(0.5)
    assert result.memory_error == pytest.approx(-0.25)


def test_one_step_is_its_own_median():
    assert RunResult((3.0,), (1.0,), (1,), 3.0, 1).median_seconds == 3.0


def test_goes_through_json(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(FIELDS | {"world_size": 2}))
    result = read_result(path, PLAN)
    assert result == RunResult(**FIELDS)
    assert set(FIELDS) < set(json.loads(json.dumps(result.as_dict())))


def test_nothing_measured(tmp_path):
    with pytest.raises(RunError, match="without writing"):
        read_result(tmp_path / "measured.json", PLAN)


def test_seconds_by_kind_are_shares_of_the_median_step():
    """The second rank computes most; the profiler doubled its step."""
    ranks = (Observed(100, 0.5, 0.1, 0.6), Observed(90, 0.9, 0.1, 0.2))
    kinds = {"compute": 0.3, "optimizer": 0.1, "tp_comm": 0.1, "dp_comm": 0.1, "bubble": 0.2}
    result = RunResult(**FIELDS, observed=ranks, predicted_kinds=kinds)
    found = result.split
    assert found["computing"]["predicted_seconds"] == pytest.approx(0.4)
    assert found["communicating"]["predicted_seconds"] == pytest.approx(0.2)
    assert found["rest"]["predicted_seconds"] == 0.2
    assert found["computing"]["measured_seconds"] == pytest.approx(0.75 * 0.6)
    assert sum(kind["measured_seconds"] for kind in found.values()) == pytest.approx(0.6)
    assert result.live_memory_bytes == 100
    assert RunResult(**FIELDS).split == {}
    assert RunResult(**FIELDS).live_memory_bytes is None


def test_what_was_observed_goes_through_json(tmp_path):
    path = tmp_path / "observed.json"
    path.write_text(json.dumps([vars(Observed(100, 0.5, 0.1, 0.6))]))
    assert read_observed(path) == (Observed(100, 0.5, 0.1, 0.6),)
