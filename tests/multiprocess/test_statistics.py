"""Batch normalisation has the single device's statistics, whatever shares its samples."""

from __future__ import annotations

import pytest
import torch

from autopar.errors import UsageError
from tests.multiprocess.case import SAMPLES
from tests.multiprocess.test_fidelity import STEPS, compare, make_plan, single_device, train

MICROBATCH = 2


PLANS = [
    # model, (pp, dp, tp), pins
    ("normalized", (2, 1, 1), {"recompute": "full"}),
    ("normalized", (1, 1, 2), {"recompute": "selective"}),
    ("normalized", (1, 2, 1), {"zero": 3, "recompute": "selective"}),
    ("normalized", (2, 2, 1), {"schedule": "1f1b", "recompute": "full"}),
    ("normalized", (1, 2, 2), {"zero": 2, "sequence_parallel": False}),
    ("normalized", (1, 4, 1), {"zero": 3, "dp_shard": 2}),
    ("batchnorm-mlp", (1, 2, 1), {"zero": 0}),
    ("sync-batchnorm", (1, 2, 1), {}),
    ("remembering", (1, 1, 2), {}),
]


@pytest.mark.multiprocess
@pytest.mark.parametrize(("name", "degrees", "pins"), PLANS)
def test_equals_single_device_and_plan(ranks, tmp_path, name, degrees, pins):
    pp, dp, tp = degrees
    plan = make_plan(name, pp, dp, tp, {"microbatch_size": MICROBATCH, **pins}, cluster="cpu")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(pp * dp * tp).run(train, path, name, timeout=120.0)
    compare(plan, results, single_device(name, MICROBATCH, dp))
    counts = [b for n, b in results[0]["parameters"].items() if n.endswith("tracked")]
    assert set(map(int, counts)) <= {STEPS * SAMPLES // (dp * MICROBATCH)}
    notes = " ".join(plan.notes)
    assert ("statistics over the samples" in notes) == bool(counts)
    assert ("synchronised" in notes) == (dp > 1)


@pytest.mark.multiprocess
def test_bf16_keeps_statistics_in_fp32(ranks, tmp_path):
    pins = {"microbatch_size": MICROBATCH, "recompute": "full"}
    plan = make_plan("normalized", 1, 2, 1, pins, precision="bf16")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    reference = single_device("normalized", MICROBATCH, dp=2)
    for result in ranks(2).run(train, path, "normalized", timeout=120.0):
        assert result["losses"] == pytest.approx(reference["losses"], rel=1e-2)
        assert result["kinds"] == plan.stages[0].prediction.collectives
        for name, found in result["parameters"].items():
            if "running" in name:
                assert found.dtype == torch.float32
                torch.testing.assert_close(
                    found, reference["parameters"][name], rtol=0.05, atol=0.01
                )


def refused(name, pp, dp, tp, pins, **more):
    with pytest.raises(UsageError) as caught:
        make_plan(name, pp, dp, tp, pins, **more)
    return caught.value


@pytest.mark.parametrize(
    ("name", "what"),
    [("instances", "keeps running means"), ("remembering", "changes a buffer")],
)
def test_what_is_not_synchronised_refuses_data_parallelism(name, what):
    error = refused(name, 1, 2, 1, {})
    assert error.found == "pin dp=2"
    assert what in error.expected
    assert ".py:" in error.expected
    assert "GroupNorm" in error.hint


def test_a_buffer_that_is_read_is_changed_once():
    error = refused("remembering", 1, 1, 2, {"recompute": {"1": "full"}})
    assert "changes a buffer" in error.expected


def test_synchronised_statistics_refuse_backward_in_two_parts():
    error = refused("normalized", 2, 2, 1, {"schedule": "zero_bubble"})
    assert "zero_bubble" in error.found
    assert "1f1b" in error.hint


def test_mixed_precision_is_refused_for_instance_statistics():
    error = refused("instances", 2, 1, 1, {}, precision="bf16")
    assert "fp32" in error.hint
