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
    ("t5", 1, 1, 2, {"sequence_parallel": True}),
    ("t5", 2, 1, 1, {}),
    ("t5", 2, 1, 2, {}),
    ("vit", 2, 1, 1, {}),
    ("alternating", 2, 1, 1, {}),
    ("alternating", 1, 1, 2, {"sequence_parallel": False}),
    ("alternating", 2, 1, 2, {}),
    # activations that have no gradient behind the cut, and one that has none before it
    ("gated", 2, 1, 1, {"schedule": "1f1b"}),
    ("gated", 2, 1, 1, {"schedule": "zero_bubble"}),
    # no parameters outside the blocks: torch's root group is empty
    ("mlp", 1, 2, 1, {"zero": 2}),
    ("mlp", 1, 2, 1, {"zero": 3}),
    ("convolutions", 1, 2, 1, {"zero": 2}),
    ("convolutions", 1, 2, 1, {"zero": 3}),
    # parameters that nothing reads: nothing of them is gathered, on stages without others neither
    ("unused", 1, 2, 1, {"zero": 3}),
    ("unused", 2, 2, 1, {"schedule": "gpipe", "zero": 2}),
    ("unused", 2, 1, 1, {"schedule": "interleaved_1f1b", "virtual_stages": 2}),
    ("unused", 1, 2, 2, {"zero": 3}),
]


@pytest.mark.parametrize(("name", "pp", "dp", "tp", "pins"), RUNS)
def test_equals_single_device_and_plan(ranks, tmp_path, references, name, pp, dp, tp, pins):
    check(ranks, tmp_path, references, name, make_plan(name, pp, dp, tp, SMALL | pins))
