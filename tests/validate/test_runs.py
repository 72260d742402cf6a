"""From rows to runs."""

from __future__ import annotations

import pytest

from autopar.cost.data_parallel import Traffic
from autopar.validate.runs import InexpressibleError, network, read_run, step_flops
from tests.validate.rows import row


def test_a_row_becomes_a_pinned_run():
    run = read_run(row())
    config = run.config
    assert (config.pp, config.dp, config.tp) == (2, 2, 2)
    assert (config.microbatch_size, config.num_microbatches, config.schedule) == (2, 4, "1f1b")
    assert (run.zero, run.recompute, run.stages) == (2, "full", (2, 2))
    assert not run.shape.flash
    assert run.shape.head_dim == 64
    assert run.traffic == Traffic(2, 2, every_microbatch=False, overlapped=False)
    assert run.fits
    assert run.measured_seconds == 0.1


def test_mixed_precision_of_fsdp_says_what_travels():
    fsdp = {"framework": "Composer FSDP + flash attn 2", "tp": "1", "pp": "1", "dp": "8"}
    default = read_run(row(sharding="FSDP full_shard (zero3) mp=DEFAULT", **fsdp))
    pure = read_run(row(sharding="FSDP full_shard (zero3) mp=PURE", **fsdp))
    assert default.zero == pure.zero == 3
    assert default.shape.flash
    assert (default.traffic.gather_bytes, pure.traffic.gather_bytes) == (4, 2)
    assert (default.held.sharded, pure.held.sharded) == (16, 8)


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


def test_nanotron_balances_the_head_against_blocks():
    """A head of 8 blocks' work: 24 blocks on 2 stages are cut 16 to 8."""
    cells = {"framework": "nanotron", "gpu": "H100", "layers": "24", "tp": "1", "dp": "4"}
    plain = read_run(row(**cells, vocab="8"))
    assert plain.stages == (12, 12)
    block = step_flops(plain.shape, 1) - step_flops(plain.shape, 0)
    vocabulary = round(8 * block / (6 * 128 * 256))
    assert read_run(row(**cells, vocab=str(vocabulary))).stages == (16, 8)
    huge = read_run(row(**cells, vocab=str(100 * vocabulary)))
    assert sum(huge.stages) == 24
    assert huge.stages[-1] == 0  # the head alone


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
