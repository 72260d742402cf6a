"""Prices of published runs, against the planner's own and by what must follow from the row."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import autopar
from autopar.cluster import Cluster
from autopar.cost.compute import elementwise_seconds
from autopar.cost.data_parallel import Traffic
from autopar.cost.reserve import fixed_bytes
from autopar.validate.models import Decoder, Shape, fused_loss_fn
from autopar.validate.price import Prices
from autopar.validate.runs import InexpressibleError, Machine, read_run
from autopar.validate.systems import Environment
from tests.validate.rows import row

CLUSTER = Cluster.load("a100-80g")
SAME = Machine("A100", 80.0, None, None)


@pytest.fixture(scope="module")
def prices():
    return Prices({"a100-80g": CLUSTER}, environments={})


def plain(**cells):
    """A run that sends what an emitted program sends."""
    run = read_run(row(framework="Composer FSDP", **cells))
    return dataclasses.replace(run, traffic=Traffic(), machine=SAME)


@pytest.mark.parametrize(
    ("zero", "recompute", "pp", "dp", "tp"),
    [(3, "none", 1, 8, 1), (2, "full", 2, 2, 2), (0, "none", 4, 2, 1)],
)
def test_equals_the_plan_with_the_same_pins(prices, zero, recompute, pp, dp, tp):
    """Two blocks are traced; the plan traces all four."""
    degrees = {"pp": str(pp), "dp": str(dp), "tp": str(tp)}
    run = plain(sharding=f"zero{zero}", recompute=recompute, **degrees)
    with torch.device("meta"):
        model = Decoder(run.shape, run.layers)
        tokens = torch.zeros(2, run.shape.tokens, dtype=torch.long)
    pins = {"pp": pp, "dp": dp, "tp": tp, "microbatch_size": 2, "zero": zero,
            "recompute": recompute, "schedule": "1f1b"}  # fmt: skip
    if tp > 1:
        pins |= {"sequence_parallel": False, "sharding": "smallest"}  # Megatron's on this model
    plan = autopar.plan(
        model, 8, example_inputs=(tokens,), loss_fn=fused_loss_fn, example_target=tokens,
        cluster=CLUSTER, global_batch_size=16, pin=pins,
    )  # fmt: skip
    if tuple(len(stage.layers) for stage in plan.stages) == _layers_per_stage(run):
        priced = prices.price(run)
        assert priced.seconds == pytest.approx(plan.prediction.step_seconds, rel=0.02)
    else:  # the solver balances embedding and head; the row's system does not
        assert prices.price(run).seconds >= plan.prediction.step_seconds * (1 - 1e-9)


def _layers_per_stage(run):
    counts = list(run.stages)
    counts[0] += 1
    counts[-1] += 1
    return tuple(counts)


def test_time_grows_with_depth_and_recomputation(prices):
    def seconds(**cells):
        return prices.price(read_run(row(**cells))).seconds

    assert seconds(layers="8") > 1.5 * seconds(layers="4")
    assert seconds(recompute="full") > seconds(recompute="none")
    assert seconds(gbs="32") > seconds(gbs="16")


def test_a_slower_network_costs(prices):
    across = {"n_gpus": "16", "dp": "8", "tp": "2", "pp": "1", "gbs": "64"}
    fast = read_run(row(interconnect="RoCE 1600Gbps per node", **across))
    slow = read_run(row(interconnect="4x 100Gb", **across))
    assert prices.price(slow).seconds > prices.price(fast).seconds


def test_environments_hold_for_their_source_alone(prices):
    slow = prices.on(prices.clusters, environments={"bigscience": Environment(products=0.5)})
    own = read_run(row(source="bigscience", hidden="1024", ffn="4096"))
    other = read_run(row(hidden="1024", ffn="4096"))
    assert slow.price(own).seconds > prices.price(own).seconds
    assert slow.price(other).seconds == prices.price(other).seconds


def test_unknown_devices_are_refused(prices):
    with pytest.raises(InexpressibleError, match="V100"):
        prices.price(read_run(row(gpu="V100-SXM2-32GB")))


def test_memory_counts_what_the_system_keeps(prices):
    """Mixed precision of ZeRO-1: 4 bytes per parameter and 12 over the dp degree."""
    whole = prices.price(read_run(row(sharding="zero0")))
    split = prices.price(read_run(row(sharding="zero1")))
    alone = read_run(row(sharding="zero1", dp="1", tp="2", pp="2", n_gpus="4"))
    assert split.memory_bytes < whole.memory_bytes
    assert prices.price(alone).memory_bytes == pytest.approx(whole.memory_bytes, rel=0.02)


def test_the_reserve_of_a_source_comes_on_top(prices):
    run = read_run(row(source="bigscience"))
    plain = prices.price(run)
    own = Environment(reserve_bytes=1e9, reserve_share=0.5)
    held = prices.on(prices.clusters, environments={"bigscience": own}).price(run)
    assert held.memory_bytes - plain.memory_bytes == 1e9 + 0.5 * plain.activation_bytes
    assert held.seconds == plain.seconds
    assert held.needed_bytes == held.memory_bytes
    machine = fixed_bytes(prices.plain(run.machine), run.config.communicators)
    assert plain.needed_bytes - plain.memory_bytes >= machine > 0, "that of its machine otherwise"


def test_a_loss_in_one_kernel_keeps_no_logits_in_float32(prices):
    wide = {"framework": "Composer FSDP", "vocab": "51200", "tp": "1", "pp": "1", "dp": "8"}
    fused = read_run(row(**wide))
    written = dataclasses.replace(fused, shape=dataclasses.replace(fused.shape, fused_loss=False))
    logits = 2 * 128 * 51200
    saved = prices.price(written).memory_bytes - prices.price(fused).memory_bytes
    assert 2 * logits <= saved < 10 * logits


def test_hidden_tensor_parallel_communication_costs_the_slow_down(prices):
    """Half of what backward sends runs beside its computing, which takes its share of that."""
    sent = read_run(row())
    half = dataclasses.replace(sent, tp_hidden=0.5)
    slowdowns = {s: Environment(overlap_slowdown=s) for s in (0.0, 1.0)}
    seconds = {}
    for slowdown, own in slowdowns.items():
        here = prices.on(prices.clusters, environments={"own": own})
        machine = dataclasses.replace(SAME, environment="own")
        seconds[slowdown] = [
            here.price(dataclasses.replace(run, machine=machine)).seconds for run in (sent, half)
        ]
    assert seconds[1.0][0] == pytest.approx(seconds[1.0][1])
    assert seconds[0.0][0] > seconds[0.0][1]


def test_llama_traces_with_grouped_queries(prices):
    shape = Shape(256, 8, 2, 512, 1024, 128, gated=True, flash=True, tied=False)
    run = dataclasses.replace(read_run(row()), shape=shape)
    assert prices.price(run).seconds > 0


def test_seventy_billion_fit_on_64_devices_with_full_recomputation_alone(prices):
    """As published for PyTorch FSDP, 64 A100 of 80 GB, two sequences of 2,048 tokens per device."""
    cells = {
        "framework": "Composer FSDP", "layers": "80", "hidden": "8192", "heads": "64",
        "ffn": "32768", "vocab": "50368", "seq": "2048", "n_gpus": "64", "dp": "64", "tp": "1",
        "pp": "1", "mbs": "2", "gbs": "128", "sharding": "FSDP full_shard (zero3) mp=DEFAULT",
    }  # fmt: skip
    full, none = (read_run(row(recompute=word, **cells)) for word in ("full", "none"))
    assert prices.price(full).memory_bytes < 80e9 < prices.price(none).memory_bytes


def test_a_loss_of_single_operations_costs_its_traffic(prices):
    """20 bytes per logit and micro-batch on the last stage, in which all of a tp group share."""
    own = {"framework": "nanotron", "ffn": "512", "precision": "bf16 (fp32 grad accumulation)"}
    run = read_run(row(vocab="51200", **own))
    assert run.loss_bytes == 20 * 128 * 51200
    assert read_run(row(vocab="51200")).loss_bytes == 0
    single, fused = (
        prices._pricer(dataclasses.replace(run, loss_bytes=size))[0] for size in (run.loss_bytes, 0)
    )
    first, *_, last = single.classes.members
    more = elementwise_seconds(single.cluster, 2 * run.loss_bytes // 2)
    assert single.cost(last, run.config).forward_seconds == pytest.approx(
        fused.cost(last, run.config).forward_seconds + more
    )
    assert single.cost(first, run.config) == fused.cost(first, run.config)
