"""Devices of two kinds: their file, and what replicas on them are given to do."""

from __future__ import annotations

import json

import pytest
import torch

import autopar
from autopar.cluster import Cluster
from autopar.errors import CostModelError, UsageError
from autopar.heterogeneous import HeterogeneousCluster, load_cluster
from examples.gpt import GPT, GPTConfig, loss_fn
from tests.traces import traced_once

BATCH, TOKENS, VOCABULARY = 12, 256, 64


def slower(rate: float, **more) -> Cluster:
    """A machine like the A100 whose rates are those of it times ``rate``."""
    rates = {"products": rate, "memory": rate}
    return Cluster.load("a100-80g").varied(name="slower", rates=rates, **more)


def cluster_of(rate: float, devices: tuple[int, int] = (1, 1), **more) -> HeterogeneousCluster:
    kinds = (Cluster.load("a100-80g"), slower(rate, **more))
    return HeterogeneousCluster("unequal", kinds, devices)


def plan(cluster, world_size: int = 2, batch: int = BATCH, **options):
    tokens = torch.zeros(2, TOKENS, dtype=torch.int64)
    with torch.device("meta"):
        model = GPT(GPTConfig(VOCABULARY, TOKENS, 2, n_head=4, n_embd=1024))
    with traced_once("gpt of two wide layers"):
        return autopar.plan(model, world_size, (tokens,), loss_fn, tokens, cluster=cluster,
                            global_batch_size=batch, **options)  # fmt: skip


@pytest.fixture
def _no_baselines(monkeypatch):
    monkeypatch.setattr("autopar.planner.run_baselines", lambda *_, **__: ())


@pytest.mark.usefixtures("_no_baselines")
def test_no_other_division_of_the_batch_is_faster():
    cluster = cluster_of(0.25)
    free = plan(cluster, gap=1e-6)
    first, second = free.kinds
    assert first.microbatch_size > second.microbatch_size
    assert free.num_microbatches * sum(free.shares) == BATCH
    for size in range(1, BATCH):
        pinned = plan(cluster, pin={"shares": [size, BATCH - size]})
        assert free.prediction.step_seconds <= pinned.prediction.step_seconds * (1 + 1e-6)


@pytest.mark.usefixtures("_no_baselines")
def test_equal_devices_share_equally():
    twice = HeterogeneousCluster("twins", (Cluster.load("a100-80g"),) * 2, (1, 1))
    alone = plan("a100-80g", gap=1e-6, pin={"pp": 1, "tp": 1})
    found = plan(twice, gap=1e-6)
    assert found.prediction.step_seconds == pytest.approx(alone.prediction.step_seconds)
    assert found.shares == ()


@pytest.mark.usefixtures("_no_baselines")
def test_shares_fit_into_the_smaller_memory():
    """The second device is a little slower and has much less memory."""
    pins = {"recompute": "none", "zero": 0}
    small = plan(cluster_of(0.9), pin={**pins, "shares": "equal"}).kinds[1].memory_bytes - 1
    tight = plan(cluster_of(0.9, memory_bytes=small), pin=pins)
    for kind in tight.kinds:
        assert kind.memory_bytes <= kind.memory_limit_bytes
    assert tight.kinds[1].memory_limit_bytes == small


@pytest.mark.usefixtures("_no_baselines")
def test_tensor_parallel_replicas_stay_on_one_kind():
    found = plan(cluster_of(0.5, (4, 2)), 6, pin={"tp": 2})
    assert (found.mesh.dp, len(found.shares)) == (3, 3)
    assert found.shares[0] == found.shares[1] > found.shares[2]
    with pytest.raises(UsageError, match="tp=4"):
        plan(cluster_of(0.5, (4, 2)), 6, pin={"tp": 4})


@pytest.mark.usefixtures("_no_baselines")
def test_a_pinned_size_is_that_of_all_replicas():
    found = plan(cluster_of(0.5), pin={"pp": 1, "microbatch_size": 2})
    assert [kind.microbatch_size for kind in found.kinds] == [2, 2]
    assert found.num_microbatches == BATCH // 4


@pytest.mark.usefixtures("_no_baselines")
def test_stages_are_on_devices_of_one_kind(tmp_path):
    """Three devices and one fill no stages of two devices."""
    cluster = cluster_of(0.5, (3, 1))
    with pytest.raises(UsageError, match="3 and 1 devices of two kinds"):
        plan(cluster, 4, pin={"pp": 2})
    found = plan(cluster_of(0.5, (1, 1)), pin={"pp": 2, "stages": [2, 0]})
    assert [kind.stages for kind in found.kinds] == [(0,), (1,)]
    assert found.stages[1].layers == ("head",)
    found.save(tmp_path / "plan.json")
    assert autopar.load_plan(tmp_path / "plan.json") == found
    rows = [line.split() for line in str(found).splitlines()]
    assert ["0", "a100-80g", "embedding"] in [row[:3] for row in rows]
    assert ["1", "slower", "head"] in [row[:3] for row in rows]


@pytest.mark.usefixtures("_no_baselines")
def test_says_where_the_other_order_is_faster():
    """Two blocks between the embedding, which takes no time, and the head."""
    pins = {"pp": 2, "microbatch_size": 2}
    kinds = cluster_of(0.4).kinds
    plans = [
        plan(HeterogeneousCluster("mixed", order, (1, 1)), pin=pins)
        for order in (kinds, kinds[::-1])
    ]
    first, second = (found.prediction.step_seconds for found in plans)
    assert abs(first / second - 1) > 0.01
    faster, slower = sorted(plans, key=lambda found: found.prediction.step_seconds)
    assert not any("other" in note or "first" in note for note in faster.notes)
    (note,) = [note for note in slower.notes if "first" in note]
    assert f"stages of {slower.kinds[1].cluster} first" in note
    assert f"takes {faster.prediction.step_seconds:.3g} s instead" in note


@pytest.mark.usefixtures("_no_baselines")
def test_says_which_pipelines_are_left_out():
    (note,) = [n for n in plan(cluster_of(0.5, (3, 1)), 4, pin={"tp": 1}).notes if "stage" in n]
    assert "no pipelines with 2 devices per stage: 3 and 1 devices" in note


def test_equal_shares_are_a_baseline():
    found = plan(cluster_of(0.25))
    seconds = {base.name: base.step_seconds for base in found.baselines}
    assert seconds["DDP, equal shares"] > 1.2 * found.prediction.step_seconds


def test_survives_a_file_and_shows_both_kinds(tmp_path):
    found = plan(cluster_of(0.25))
    found.save(tmp_path / "plan.json")
    assert autopar.load_plan(tmp_path / "plan.json") == found
    text = str(found)
    assert "Kinds of device" in text
    assert f"{found.shares[0]} or {found.shares[1]} sample(s)" in text


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"schedule": "interleaved_1f1b"}, "one stage per rank"),
        ({"virtual_stages": 2}, "one stage per rank"),
        ({"shares": [1, 2, 3]}, "one dp rank of each kind"),
        ({"shares": [5, 6]}, "micro-batches of 11 .tp=1. samples"),
        ({"pp": 2, "shares": [2, 1]}, "pp=2 and shares"),
        ({"exchange": "ring"}, "collective"),
    ],
)
def test_refuses_pins_that_do_not_go_with_it(pins, message):
    with pytest.raises(UsageError, match=message):
        plan(cluster_of(0.5), pin=pins, precision="fp32")


def test_refuses_shares_of_equal_devices_and_another_world_size():
    with pytest.raises(UsageError, match="two kinds of device"):
        plan("a100-80g", pin={"shares": [4, 2]})
    with pytest.raises(UsageError, match="1 x a100-80g and 1 x slower"):
        plan(cluster_of(0.5), 4)


def write(path, kinds):
    path.write_text(json.dumps({"schema_version": 1, "name": "both", "kinds": kinds}))
    return path


def test_reads_a_file_with_paths_beside_it(tmp_path):
    (tmp_path / "slow.json").write_text(json.dumps(slower(0.5).to_dict()))
    kinds = [{"cluster": "h100-80g", "devices": 8}, {"cluster": "slow.json", "devices": 4}]
    found = load_cluster(write(tmp_path / "both.json", kinds))
    assert isinstance(found, HeterogeneousCluster)
    assert found.description == "8 x h100-80g and 4 x slower"
    assert load_cluster("cpu") == Cluster.load("cpu")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([{"cluster": "cpu", "devices": 1}], "two kinds"),
        ([{"cluster": "cpu", "devices": 1}, {"cluster": "h100-80g", "devices": 1}], "one backend"),
        ([{"cluster": "cpu", "devices": 0}, {"cluster": "cpu", "devices": 1}], "minimum"),
        ([{"cluster": "cpu", "devices": 1}, {"cluster": "none", "devices": 1}], "no cost model"),
        ([{"cluster": "cpu"}, {"cluster": "cpu", "devices": 1}], "devices"),
    ],
)
def test_refuses_a_bad_file(tmp_path, kinds, message):
    with pytest.raises(CostModelError, match=message):
        load_cluster(write(tmp_path / "both.json", kinds))
