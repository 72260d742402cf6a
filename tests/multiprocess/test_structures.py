"""Models that are no chain of equal blocks, equal to the single device and as foretold.

Two trunks, activations that skip layers and so cross cuts that neither make nor read them, blocks
of several classes, one parameter on several stages, plain sequences of layers.
"""

from __future__ import annotations

import pytest

from tests.multiprocess.test_fidelity import check, make_plan, references

__all__ = ["references"]
pytestmark = pytest.mark.multiprocess
SMALL = {"microbatch_size": 2}
RUNS = [
    ("t5", 1, 2, 1, {"zero": 3}),
    ("t5", 1, 1, 2, {"sequence_parallel": False}),
    ("t5", 1, 1, 2, {"sequence_parallel": True, "recompute": "full"}),
    ("t5", 2, 1, 1, {"recompute": "full"}),
    ("t5", 2, 1, 2, {"sequence_parallel": True}),
    ("alternating", 2, 1, 1, {}),
    ("alternating", 1, 1, 2, {"sequence_parallel": False}),
    ("alternating", 2, 2, 1, {"zero": 2}),
    ("vit", 2, 1, 1, {}),
    ("bert", 1, 1, 2, {"sequence_parallel": True}),
    ("mlp", 2, 1, 1, {}),
    ("convolutions", 2, 1, 1, {}),
]


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins"), RUNS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    check(ranks, tmp_path, references, name, make_plan(name, pp, dp, tp, SMALL | pins))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("t5-long-encoder", "encoder.block"),
        ("t5", "glue"),
        ("t5-long-decoder", "decoder.block"),
    ],
)
def test_the_cut_is_in_either_trunk_or_between(ranks, tmp_path, references, name, last):
    plan = make_plan(name, 2, 1, 1, SMALL)
    assert plan.stages[0].layers[-1].startswith(last)
    check(ranks, tmp_path, references, name, plan)
