"""State divided among neighbours, with replicas: equal to the single device and to the plan."""

from __future__ import annotations

import pytest

from tests.multiprocess.test_fidelity import check, make_plan

pytestmark = pytest.mark.multiprocess

# model, (pp, dp, tp) and further pins: 2 or 4 micro-batches without stages, where shards wait for
# the last one; both zero modes in one plan; with stages, which reduce once; with tp, whose
# parameters are divided on two axes.
PLANS = [
    ("gpt", 1, 4, 1, {"zero": 3, "microbatch_size": 1}),
    ("gpt", 1, 4, 1, {"zero": 1, "microbatch_size": 1}),
    ("llama", 1, 4, 1, {"zero": 2, "microbatch_size": 1, "recompute": "full"}),
    ("llama", 1, 4, 1, {"zero": {"*.0": 3, "*": 2}, "microbatch_size": 1}),
    ("gpt", 2, 4, 1, {"zero": 3, "schedule": "1f1b", "microbatch_size": 1}),
    ("llama", 1, 4, 2, {"zero": 2, "sequence_parallel": True, "microbatch_size": 1}),
]


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins"), PLANS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    plan = make_plan(name, pp, dp, tp, {"dp_shard": 2, **pins})
    assert plan.mesh.dp_shard == 2
    check(ranks, tmp_path, references, name, plan)
