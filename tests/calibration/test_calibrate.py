from __future__ import annotations

import pytest
import torch

from autopar.calibration import calibrate as public
from autopar.calibration import points
from autopar.calibration.calibrate import _provenance, calibrate, reserve_of
from autopar.cluster import Cluster
from autopar.errors import CostModelError


@pytest.fixture
def small(monkeypatch):
    """A sweep of a few sizes, so that a calibration takes a second or two."""
    sweep = points.Sweep(
        gemm={"float32": (16, 64)}, gradients={"float32": (16, 64)}, gemm_work_limit=1e9,
        gemm_held_out=((32, 32, 32),),
        heads_by_length={16: 2, 64: 2}, held_out_lengths={32: 2}, head_dims=(16, 64),
        traffic_bytes=(4096, 65536), elements=(1024, 32768),
        payload_bytes=(256, 4096, 65536, 2**20), unit_bytes=(2048, 65536),
    )  # fmt: skip
    monkeypatch.setitem(points.SWEEPS, "cpu", sweep)


def test_is_what_the_package_exports():
    assert public is calibrate


def test_says_which_statistic_a_curve_is_of():
    found = _provenance(dict(Cluster.load("cpu").curves), {}, None, True)
    assert found["gemm.float32"]["detail"].startswith("low percentile")
    assert found["collectives.all_reduce"]["detail"].startswith("median")


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the processor")
def test_without_ranks_the_collectives_are_taken_over(small, tmp_path):
    output, seen = tmp_path / "host.json", []
    threads = torch.get_num_threads()
    calibrate(output, budget_seconds=0.5, ranks=1, progress=lambda *event: seen.append(event))
    model = Cluster.load(output)
    assert model.name == "host"
    assert not model.calibrated
    assert model.curves["collectives"] == Cluster.load("cpu").curves["collectives"]
    assert model.provenance["gemm.float32"]["source"] == "measured here"
    assert model.curves["gemm"]["float32"]["gradient"]["m"] == [16, 64]
    assert model.provenance["gemm.float32"]["fit_error"]["points"] == 3
    assert (
        model.provenance["collectives.all_reduce"]
        == (Cluster.load("cpu").provenance["collectives.all_reduce"])
    )
    known = Cluster.load("cpu")
    assert model.curves.get("overheads") == known.curves.get("overheads")
    assert seen
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["a100-80g", "h200-141g", None])
def test_a_gpu_has_the_reserve_of_the_model_that_knows_it(name):
    known = Cluster.load(name) if name else None
    curve, origin = reserve_of(known)
    source = known or Cluster.load("h100-80g")
    assert curve == source.curves["reserve"]
    assert curve["context_bytes"] > 0
    assert origin["source"] == source.provenance["reserve"]["source"] != "measured here"
    assert origin["detail"].startswith(f"taken over from {source.name}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the processor")
def test_a_second_run_adds_nothing_to_what_is_complete(small, tmp_path):
    output = tmp_path / "host.json"
    calibrate(output, budget_seconds=240, ranks=1)
    samples = output.with_suffix(".csv").read_text()
    first = Cluster.load(output)
    output.unlink()
    calibrate(output, budget_seconds=240, ranks=1)
    assert output.with_suffix(".csv").read_text() == samples
    assert Cluster.load(output) == first


def test_no_folder(tmp_path):
    with pytest.raises(CostModelError, match="cannot be used"):
        calibrate(tmp_path / "missing" / "host.json", budget_seconds=0.1, ranks=1)
