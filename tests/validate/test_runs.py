"""From rows to runs."""

from __future__ import annotations

import pytest

from autopar.cost.data_parallel import Traffic
from autopar.validate.runs import InexpressibleError, network, read_run, shards, step_flops
from tests.validate.rows import row


def test_a_row_becomes_a_pinned_run():
    run = read_run(row())
    config = run.config
    assert (config.pp, config.dp, config.tp) == (2, 2, 2)
    assert (config.microbatch_size, config.num_microbatches, config.schedule) == (2, 4, "1f1b")
    assert (run.zero, run.recompute, run.stages) == (2, "full", (2, 2))
    assert not run.shape.flash
    assert run.shape.head_dim == 64
    late = Traffic(2, 2, every_microbatch=False, overlapped=False, accumulate_bytes=(0, 6))
    assert run.traffic == late
    assert run.fits
    assert run.measured_seconds == 0.1


def test_mixed_precision_of_fsdp_says_what_travels():
    fsdp = {"framework": "Composer FSDP + flash attn 2", "tp": "1", "pp": "1", "dp": "8"}
    default = read_run(row(sharding="FSDP full_shard (zero3) mp=DEFAULT", **fsdp))
    pure = read_run(row(sharding="FSDP full_shard (zero3) mp=PURE", **fsdp))
    assert default.zero == pure.zero == 3
    assert default.shape.flash
    assert default.shape.fused_loss
    assert (default.traffic.gather_bytes, pure.traffic.gather_bytes) == (4, 2)
    assert (default.held.sharded, pure.held.sharded) == (16, 8)


def test_nanotron_reduces_everything_at_the_end_under_zero_1():
    cells = {"framework": "nanotron", "gpu": "H100", "precision": "bf16 (fp32 grad accumulation)"}
    late = read_run(row(sharding="zero1", **cells)).traffic
    soon = read_run(row(sharding="zero0", **cells)).traffic
    assert (late.all_reduced, late.unpacked, late.overlapped) == (True, True, False)
    assert (soon.all_reduced, soon.unpacked, soon.overlapped) == (False, False, True)
    assert late.bucket_bytes > soon.bucket_bytes


@pytest.mark.parametrize(
    ("layers", "pp", "stages"),
    [
        ("8", "4", (2, 2, 2, 2)),
        ("70", "12", (5, *[6] * 10, 5)),  # BLOOM: embedding and head count as blocks
        ("10", "4", (2, 3, 3, 2)),
        ("9", "4", (3, 2, 2, 2)),
    ],
)
def test_blocks_are_dealt_out_as_the_systems_do(layers, pp, stages):
    run = read_run(row(layers=layers, pp=pp, tp="1", dp="1", n_gpus=pp, tflops_per_gpu=""))
    assert run.stages == stages
    assert sum(run.stages) == int(layers)


@pytest.mark.parametrize(
    ("layers", "hidden", "ffn", "vocab", "pp", "stages"),
    [
        # The head counts as 4 of 20 blocks: 10 do not exceed the half, so the 11th comes with them.
        ("16", "2048", "8192", "131072", "2", (11, 5)),
        ("28", "3072", "8192", "131072", "2", (16, 12)),
        ("32", "4096", "14336", "131072", "4", (9, 9, 8, 6)),
        ("24", "256", "1024", "8", "2", (13, 11)),
        ("24", "256", "1024", "9999999", "2", (24, 0)),  # the head alone
    ],
)
def test_nanotron_cuts_stages_where_products_exceed_their_share(
    layers, hidden, ffn, vocab, pp, stages
):
    cells = {"framework": "nanotron", "gpu": "H100", "n_gpus": pp, "tp": "1", "dp": "1"}
    shape = {"layers": layers, "hidden": hidden, "ffn": ffn, "vocab": vocab, "heads": "32"}
    run = read_run(row(**cells, **shape, pp=pp))
    assert run.stages == stages
    assert run.shape.tied == (int(ffn) < 10000)  # as its scaling_benchmarks.py


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"framework": "homemade"}, "framework"),
        ({"heads": ""}, "heads not published"),
        ({"experts": "8"}, "mixture of experts"),
        ({"cp": "2"}, "context parallelism"),
        ({"vp": "2"}, "several stages"),
        ({"precision": "amp_fp8"}, "fp8"),
        ({"confidence": "recalled"}, "recalled"),
        ({"dp": "4"}, "on 8 devices"),
        ({"gbs": "15"}, "not divided"),
        ({"heads": "3", "hidden": "255"}, "heads are not divided by tp"),
        ({"recompute": ""}, "recomputation not published"),
        ({"iter_time_s": ""}, "no step time"),
        ({"tflops_per_gpu": "100"}, "contradict"),
    ],
)
def test_what_cannot_be_expressed_says_why(cells, reason):
    with pytest.raises(InexpressibleError, match=reason):
        read_run(row(**cells))


def test_out_of_memory_is_a_label_without_a_time():
    run = read_run(row(mem_kind="OOM", iter_time_s=""))
    assert not run.fits
    assert run.measured_seconds is None


def test_times_from_throughput_and_from_utilisation():
    """16 * 128 tokens on 8 devices at 100 tokens/s each; 40 % of the peak of an H100."""
    assert read_run(row(iter_time_s="", tokens_per_s_per_gpu="100")).measured_seconds == 2.56
    run = read_run(row(iter_time_s="", mfu_pct="40", framework="nanotron", gpu="H100-SXM5"))
    flops = 16 * step_flops(run.shape, 4)
    assert run.measured_seconds == pytest.approx(flops / (8 * 989.5e12 * 0.4))


def test_flops_of_a_step_by_hand():
    run = read_run(row())
    block = 2 * 128 * (4 * 256**2 + 2 * 256 * 1024) + 4 * 128**2 * 256
    assert step_flops(run.shape, 4) == 3 * (4 * block + 2 * 128 * 256 * 1024)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVLink3 + 4x 100Gb Omni-Path per node", (4, 12.5e9)),
        ("RoCE 1600Gbps per node", (8, 25e9)),
        ("node_size 8, inter_node 800 Gbps", (4, 25e9)),
        ("NVLink4 + EFA", (None, None)),
    ],
)
def test_networks(text, expected):
    assert network(text) == expected


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [("zero1 over 8 GPUs", 8), ("hybrid zero1 within 4 GPUs", 4), ("zero1 over all DP", None)],
)
def test_a_row_says_among_how_many_state_is_divided(sharding, expected):
    assert shards(sharding) == expected
    assert read_run(row(sharding=sharding)).traffic.shards == expected
