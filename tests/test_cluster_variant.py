"""Small files that extend a cost model."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from autopar.cluster import Cluster
from autopar.cluster_variant import RATES, extend
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.compute import attention_seconds, elementwise_seconds, gemm_seconds
from autopar.errors import CostModelError

VARIANT = {
    "schema_version": 1, "extends": "h100-80g", "name": "mine", "created": "2026-11-24",
    "description": "slower memory", "memory_bytes": 96 * 10**9, "rates": {"memory": 0.5},
    "source": "vendor", "detail": "data sheet",
}  # fmt: skip
BASE = Cluster.load("h100-80g")


def load(tmp_path, **changes):
    path = tmp_path / "variant.json"
    data = {**VARIANT, **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return Cluster.load(path)


def test_a_variant_changes_what_it_names_and_nothing_else(tmp_path):
    mine = load(tmp_path)
    assert (mine.name, mine.memory_bytes) == ("mine", 96 * 10**9)
    size = 10**9
    launch = BASE.curves["elementwise"]["elementwise"]["launch_seconds"]
    slow, fast = (elementwise_seconds(c, size) - launch for c in (mine, BASE))
    assert slow == pytest.approx(2 * fast)
    assert mine.curves["gemm"] == BASE.curves["gemm"]
    assert mine.curves["collectives"] == BASE.curves["collectives"]
    assert mine.provenance["gemm"] == BASE.provenance["gemm"]
    assert "0.5 times the memory of h100-80g" in mine.provenance["optimizer"]["detail"]
    assert mine.provenance["optimizer"]["fit_error"] is None
    assert mine.sha256 != BASE.sha256


def test_steps_of_the_base_say_nothing_about_a_variant(tmp_path):
    assert load(tmp_path).step_error() == {}
    assert load(tmp_path, rates=None).step_error() == BASE.step_error()


def test_products_scale_attention_too(tmp_path):
    mine = load(tmp_path, rates={"products": 0.25})
    launch = BASE.curves["gemm"]["bfloat16"]["launch_seconds"]
    pairs = [gemm_seconds(c, *[8192] * 3, "bfloat16") - launch for c in (mine, BASE)]
    assert pairs[0] == pytest.approx(4 * pairs[1])
    shape = {"batch": 8, "heads": 32, "query_length": 4096, "key_length": 4096, "head_dim": 128}
    slow, fast = (
        attention_seconds(c, **shape, dtype="bfloat16", causal=True, backward=True) - launch
        for c in (mine, BASE)
    )
    assert slow == pytest.approx(4 * fast, rel=1e-3)


def test_products_scale_those_of_gradients_too():
    base = BASE.to_dict()
    gemm = deepcopy(base["curves"]["gemm"]["bfloat16"])
    own = {key: gemm[key] for key in ("peak_flops", "launch_seconds", "m", "n", "k", "efficiency")}
    base["curves"]["gemm"] = {"bfloat16": gemm | {"gradient": own}}
    changed = extend(base, {**VARIANT, "rates": {"products": 0.25}})
    found = changed["curves"]["gemm"]["bfloat16"]
    assert found["gradient"]["peak_flops"] == found["peak_flops"] == 0.25 * gemm["peak_flops"]


@pytest.mark.parametrize(("rate", "group"), [("node_links", Group(8, 8)), ("network", Group(2, 1))])
def test_transfers_scale_and_latencies_stay(tmp_path, rate, group):
    mine = load(tmp_path, rates={rate: 0.5})
    small, large = 1, 2**30
    latency = collective_seconds(BASE, "all_gather", small, group)
    assert collective_seconds(mine, "all_gather", small, group) == pytest.approx(latency)
    slow, fast = (collective_seconds(c, "all_gather", large, group) - latency for c in (mine, BASE))
    assert slow == pytest.approx(2 * fast, rel=5e-3)  # between points of the curve
    other = Group(2, 1) if rate == "node_links" else Group(8, 8)
    same = [collective_seconds(c, "all_gather", large, other) for c in (mine, BASE)]
    assert same[0] == same[1]


def test_every_rate_names_provenance_that_exists():
    for _, touched in RATES.values():
        assert all(name in BASE.provenance for name in touched)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extends": "h9000"}, "h9000"),
        ({"extends": "a100-40g"}, "a100-40g"),  # itself a variant
        ({"rates": {"memory": -1}}, "-1"),
        ({"rates": {"clock": 2}}, "clock"),
        ({"memory_gb": 96}, "memory_gb"),
        ({"schema_version": 2}, "2"),
        ({"detail": None}, "detail"),
        ({"memory_bytes": 96}, "96"),
    ],
)
def test_a_bad_variant_is_refused(tmp_path, changes, said):
    with pytest.raises(CostModelError) as caught:
        load(tmp_path, **changes)
    assert said in str(caught.value)
