"""Emitted programs against the single device: losses, gradients, norms and parameters."""

from __future__ import annotations

import pytest
import torch

from autopar.emit.chassis import render
from tests.emit.gpt_program import gpt_program
from tests.multiprocess.programs import single_device, train

pytestmark = pytest.mark.multiprocess
DEGREES = [(1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2), (2, 2, 2)]


@pytest.fixture(scope="session")
def reference():
    return single_device()


def write(folder, program):
    path = folder / "program.py"
    path.write_text(render(program), encoding="utf-8")
    return str(path)


def assert_equal(results, reference, relative=1e-4):
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], rel=relative / 10)
        assert result["norms"] == pytest.approx(reference["norms"], rel=relative)
    for kind in ("gradients", "parameters"):
        assert all(result[kind] == {} for result in results[1:])
        for name, wanted in reference[kind].items():
            found = results[0][kind][name]
            assert (found - wanted).norm() <= relative * wanted.norm() + 1e-7, (kind, name)
    assert set(results[0]["parameters"]) == set(reference["parameters"])


@pytest.mark.parametrize(("pp", "dp", "tp"), DEGREES)
def test_equals_the_single_device(ranks, tmp_path, reference, pp, dp, tp):
    path = write(tmp_path, gpt_program(pp, dp, tp))
    assert_equal(ranks(pp * dp * tp).run(train, path), reference)


# What one rank of stage 0 sends in a step: 2 (pp = 2) or 4 blocks, and the ends, are a unit of
# fully_shard each; m micro-batches; one all-reduce for the loss.
VARIANTS = [
    # pp, dp, zero, m, schedule, recompute, expected
    (1, 2, 0, 4, "1f1b", "none", {"all_reduce": 5 + 1}),
    (1, 2, 2, 4, "1f1b", "full", {"all_gather": 5, "reduce_scatter": 5 * 4, "all_reduce": 1}),
    (1, 2, 3, 4, "1f1b", "none", {"all_gather": 5 * 8, "reduce_scatter": 5 * 4, "all_reduce": 1}),
    (1, 2, 3, 4, "1f1b", "full", {"all_gather": 5 * 8, "reduce_scatter": 5 * 4, "all_reduce": 1}),
    (1, 4, 3, 1, "1f1b", "selective", {"all_gather": 10, "reduce_scatter": 5, "all_reduce": 1}),
    # With stages: one more all-reduce for the tied embedding.
    (2, 1, 0, 4, "gpipe", "none", {"all_reduce": 2, "send": 4, "recv": 4}),
    (2, 2, 0, 4, "1f1b", "none", {"all_reduce": 3 + 2, "send": 4, "recv": 4}),
    (
        2, 2, 2, 4, "1f1b", "selective",
        {"all_gather": 3, "reduce_scatter": 3, "all_reduce": 2, "send": 4, "recv": 4},
    ),
    (
        2, 2, 3, 4, "1f1b", "none",
        {"all_gather": 3 * 5, "reduce_scatter": 3, "all_reduce": 2, "send": 4, "recv": 4},
    ),
    (4, 1, 0, 4, "1f1b", "none", {"all_reduce": 2, "send": 4, "recv": 4}),
    (2, 1, 0, 4, "zero_bubble", "full", {"all_reduce": 2, "send": 4, "recv": 4}),
    (
        2, 2, 2, 4, "zero_bubble", "none",
        {"all_gather": 3, "reduce_scatter": 3, "all_reduce": 2, "send": 4, "recv": 4},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pp", "dp", "zero", "microbatches", "schedule", "recompute", "expected"), VARIANTS
)
def test_variants(
    ranks, tmp_path, reference, pp, dp, zero, microbatches, schedule, recompute, expected
):
    program = gpt_program(
        pp,
        dp,
        zero=(zero,) * 4,
        ends_zero=zero,
        microbatch=8 // dp // microbatches,
        schedule=schedule,
        recompute=(recompute,) * 4,
    )
    results = ranks(pp * dp).run(train, write(tmp_path, program))
    assert_equal(results, reference)
    assert results[0]["kinds"] == expected


# Stages 0 and 2 on rank 0 and stages 1 and 3 on rank 1, one block each: on rank 0 there are two
# blocks and the embedding. Two receive, two send, and stage 2 does both in both directions.
INTERLEAVED = [
    (1, 0, "interleaved_1f1b", "full", {"all_reduce": 2, "send": 12, "recv": 12}),
    (1, 0, "zero_bubble", "none", {"all_reduce": 2, "send": 12, "recv": 12}),
    (
        2, 3, "interleaved_1f1b", "full",
        {"all_gather": 3 * 5, "reduce_scatter": 3, "all_reduce": 2, "send": 12, "recv": 12},
    ),
    (2, 0, "zero_bubble", "full", {"all_reduce": 3 + 2, "send": 12, "recv": 12}),
]  # fmt: skip


@pytest.mark.parametrize(("dp", "zero", "schedule", "recompute", "expected"), INTERLEAVED)
def test_two_stages_per_rank(ranks, tmp_path, reference, dp, zero, schedule, recompute, expected):
    program = gpt_program(
        2,
        dp,
        zero=(zero,) * 4,
        ends_zero=zero,
        microbatch=2 // dp,
        schedule=schedule,
        recompute=(recompute,) * 4,
        virtual_stages=2,
    )
    results = ranks(2 * dp).run(train, write(tmp_path, program))
    assert_equal(results, reference)
    assert results[0]["kinds"] == expected


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zero_bubble"])
def test_two_stages_per_rank_with_shards(ranks, tmp_path, reference, schedule):
    program = gpt_program(2, 1, 2, schedule=schedule, virtual_stages=2)
    assert_equal(ranks(4).run(train, write(tmp_path, program)), reference)


TP_FORWARD = {"all_gather": 4 * 2 + 1, "reduce_scatter": 4 * 2 + 1}
# A recomputed block stops behind the last tensor that backward needs: its last
# reduce-scatter is left out.
TP_AGAIN = {"none": (0, 0), "selective": (4 * 2, 4 * 1), "full": (4 * 2, 4 * 1)}


@pytest.mark.parametrize("recompute", TP_AGAIN)
def test_tensor_parallel_collectives(ranks, tmp_path, reference, recompute):
    program = gpt_program(tp=2, recompute=(recompute,) * 4)
    results = ranks(2).run(train, write(tmp_path, program))
    assert_equal(results, reference)
    gathers, scatters = TP_AGAIN[recompute]
    # Backward of a gather is a reduce-scatter and the reverse. m = 2 micro-batches.
    both = TP_FORWARD["all_gather"] + TP_FORWARD["reduce_scatter"]
    assert results[0]["kinds"] == {
        "all_gather": 2 * (both + gathers),
        "reduce_scatter": 2 * (both + scatters),
        # The loss takes three per micro-batch; the partial gradients and the mean loss one each.
        "all_reduce": 2 * 3 + 2,
    }


@pytest.mark.parametrize(("pp", "dp", "tp"), [(1, 1, 1), (1, 2, 1), (2, 2, 2)])
def test_bf16_stays_near_fp32(ranks, tmp_path, reference, pp, dp, tp):
    zero = (0, 2, 3, 2) if dp > 1 else (0,) * 4
    path = write(tmp_path, gpt_program(pp, dp, tp, precision="bf16", zero=zero, ends_zero=zero[1]))
    results = ranks(pp * dp * tp).run(train, path)
    assert_equal(results, reference, relative=0.05)
    assert all(p.dtype == torch.float32 for p in results[0]["parameters"].values())
