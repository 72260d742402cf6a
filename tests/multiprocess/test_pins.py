"""Plans pinned by boundaries and placements, and on six ranks: equal to the single device."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.multiprocess.test_fidelity import (
    check,
    compare_collectives,
    compare_memory,
    compare_training,
    plan_freely,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess
PINNED: dict[str, dict[str, Any]] = {
    # Column-parallel in one layer, row-parallel in another, whole in the third, cut unevenly;
    # attention is whole in the first.
    "llama": {
        "pp": 2, "tp": 2, "microbatch_size": 2, "stages": [1, 2], "stage": {"head": 1},
        "placement": {
            "*.layers.0.mlp.up_proj.weight": "Shard(0)",
            "*.layers.1.mlp.up_proj.weight": "Shard(1)",
            "*.mlp.up_proj.weight": "Replicate()",
            "lm_head.weight": "Shard(0)",
        },
    },
    # A stage without blocks, and a division of the fused query-key-value weight that is Megatron's.
    "gpt": {
        "pp": 2, "tp": 2, "microbatch_size": 2, "stages": [3, 0], "recompute": {"*.h.1": "full"},
        "placement": {"*.attn.c_attn.weight": "Shard(0)", "*.wte.weight": "Shard(0)"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_boundaries_and_placements(ranks, tmp_path, name):
    pins = PINNED[name]
    plan = plan_freely(name, 4, pins)
    blocks = [sum(n.rpartition(".")[2].isdigit() for n in stage.layers) for stage in plan.stages]
    assert blocks == pins["stages"]
    for layer in plan.layers:
        for parameter, placed in layer.placements.items():
            asked = (p for key, p in pins["placement"].items() if fnmatchcase(parameter, key))
            assert placed == (next(asked, *placed),)
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(4).run(train, path, name, timeout=120.0)
    compare_training(results, single_device(name))
    compare_collectives(plan, results)
    compare_memory(plan, results)


@pytest.mark.parametrize(
    "pins",
    [
        {"pp": 3, "dp": 2, "zero": 3, "microbatch_size": 1},
        {"pp": 3, "tp": 2, "microbatch_size": 2, "sequence_parallel": True, "schedule": "1f1b"},
    ],
)
def test_six_ranks(ranks, tmp_path, pins):
    plan = plan_freely("llama", 6, pins)
    assert plan.mesh.pp * plan.mesh.dp * plan.mesh.tp == plan.world_size == 6
    check(ranks, tmp_path, {}, "llama", plan)
