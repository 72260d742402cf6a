"""State divided among neighbours, with replicas: equal to the single device and to the plan."""

from __future__ import annotations

import pytest

from autopar.emit.chassis import render
from tests.emit.gpt_program import gpt_program
from tests.multiprocess import programs
from tests.multiprocess.test_fidelity import (
    check,
    compare_collectives,
    compare_memory,
    make_plan,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess

# model, (pp, dp, tp) and further pins: 2 or 4 micro-batches without stages, where shards wait for
# the last one; both zero modes in one plan; with stages, which reduce once; with tp, whose
# parameters are divided on two axes; under the other schedules, and with a part in host memory.
PLANS = [
    ("gpt", 1, 4, 1, {"zero": 3, "microbatch_size": 1}),
    ("gpt", 1, 4, 1, {"zero": 1, "microbatch_size": 1}),
    ("llama", 1, 4, 1, {"zero": 2, "microbatch_size": 1, "recompute": "full"}),
    ("llama", 1, 4, 1, {"zero": {"*.0": 3, "*": 2}, "microbatch_size": 1}),
    ("gpt", 2, 4, 1, {"zero": 3, "schedule": "1f1b", "microbatch_size": 1}),
    ("llama", 1, 4, 2, {"zero": 2, "sequence_parallel": True, "microbatch_size": 1}),
    ("gpt:4", 2, 4, 1, {"zero": 2, "schedule": "interleaved_1f1b", "virtual_stages": 2,
                        "microbatch_size": 1}),
    ("gpt2", 2, 4, 1, {"zero": 2, "schedule": "zero_bubble", "virtual_stages": 1,
                       "microbatch_size": 1}),
    ("llama", 1, 4, 1, {"zero": 2, "offload": "all", "microbatch_size": 1}),
]  # fmt: skip


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins"), PLANS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    plan = make_plan(name, pp, dp, tp, {"dp_shard": 2, **pins})
    assert plan.mesh.dp_shard == 2
    check(ranks, tmp_path, references, name, plan)


@pytest.mark.parametrize(("pp", "tp"), [(1, 1), (2, 1), (1, 2)])
def test_the_norm_of_gradients_counts_each_shard_once(ranks, tmp_path, pp, tp):
    """Replicas hold the same shards; with stages the first and last share a parameter."""
    program = gpt_program(pp, 4, tp, dp_shard=2, zero=(3,) * 4, ends_zero=3)
    path = tmp_path / "program.py"
    path.write_text(render(program), encoding="utf-8")
    found, wanted = ranks(pp * 4 * tp).run(programs.train, str(path)), programs.single_device()
    for result in found:
        assert result["norms"] == pytest.approx(wanted["norms"], rel=1e-4)


def test_bf16_adds_shards_in_fp32(ranks, tmp_path):
    plan = make_plan("gpt", 1, 4, 1, {"dp_shard": 2, "zero": 3, "microbatch_size": 1}, "bf16")
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    wanted, results = single_device("gpt"), ranks(4).run(train, path, "gpt", timeout=120.0)
    compare_collectives(plan, results)
    compare_memory(plan, results)
    for result in results:
        assert result["losses"] == pytest.approx(wanted["losses"], rel=1e-2)
