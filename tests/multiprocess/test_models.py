"""Models of other people, and mixtures of experts, equal to the single device and as foretold.

A telling few; ``benchmarks/bench_models.py`` has the table of all models and plans.
"""

from __future__ import annotations

import pytest

from tests.multiprocess.test_fidelity import check, make_plan, references

__all__ = ["references"]
pytestmark = pytest.mark.multiprocess
SMALL = {"microbatch_size": 2}
# Without samples or tokens to divide, what is left to divide are weights.
WEIGHTS = {"microbatch_size": 1, "sequence_parallel": False, "sharding": "leanest"}
RUNS = [
    # buffers that a shard is read of; a variable that would hide a function of the program
    ("bert", 1, 1, 2, SMALL),
    ("hf-gptj", 1, 1, 2, SMALL),
    # rotary positions as complex numbers
    ("llama2", 1, 1, 2, SMALL),
    # experts whose widths are divided, and ones that are shared out
    ("hf-mixtral", 1, 2, 2, SMALL),
    ("moe-sorted", 1, 1, 2, WEIGHTS),
    ("moe-odd", 1, 1, 2, WEIGHTS),
    # experts that see as many tokens as were sent to them: one operation
    ("moe-routed", 2, 1, 2, WEIGHTS),
    ("moe-routed", 1, 2, 1, SMALL),
]


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins"), RUNS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    check(ranks, tmp_path, references, name, make_plan(name, pp, dp, tp, pins))


@pytest.mark.parametrize("name", ["moe-sorted", "moe-odd"])
def test_experts_are_shared_out(name):
    """Of stacked weights each rank has the matrices of some experts."""
    layers = make_plan(name, 1, 1, 2, WEIGHTS).layers
    block = next(layer for layer in layers if "layers.0" in layer.name)
    shared = [key for key, placements in block.placements.items() if "Shard(0)" in placements]
    assert {"up", "down"} <= {key.rpartition(".")[2] for key in shared}


def test_the_plan_names_what_it_leaves_whole():
    notes = make_plan("moe-routed", 1, 1, 2, SMALL).notes
    assert any("layers.0.feed_forward" in note and "cannot be traced" in note for note in notes)
