"""Models that are called, that share and that freeze in unusual ways, equal to one device."""

from __future__ import annotations

import pytest

from tests.multiprocess.models import CASES
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_training,
    make_plan,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess
RUNS = [
    # numbers, texts and nests among the inputs
    ("configured", (2, 1, 1), 2),
    # blocks that are sequences; frozen weights between learned ones
    ("lora", (1, 1, 2), 2),
    # no reductions for what is frozen, nor a backward
    ("frozen-trunk", (1, 2, 1), 2),
    # one trunk run twice: each run is cut into stages, its weights are on both
    ("siamese", (2, 1, 1), 2),
    # weights of a block read outside of it, an autograd function with a backward of its own
    ("binary", (2, 1, 1), 2),
    # values that hooks take out of blocks
    ("hooked", (2, 1, 1), 2),
    # modules with keywords, nests and several results, and a loss, all run whole
    ("transcribing", (1, 1, 2), 2),
    # experts in blocks that are no layers, whose router's loss reads them all: no tp axis
    ("hf-mixtral-router", (2, 1, 1), 2),
    # a loss of margins, which torch's function of the operator's name leaves one per sample
    ("triplet", (1, 1, 2), 2),
    # a loss in float64, summed over stages that hold none
    ("loss-float64", (2, 1, 1), 2),
    # losses that are sums over the samples, one of them by a function that is run whole
    ("loss-sum", (1, 2, 1), 2),
    ("loss-sum", (2, 1, 1), 2),
    ("transcribing-sum", (1, 2, 1), 2),
    # a counter that nothing reads
    ("ema", (1, 1, 2), 2),
    # parameters whose elements do not lie in the order of their dims
    ("glow", (1, 2, 1), 2),
    ("glow", (1, 1, 2), 2),
]


@pytest.mark.parametrize(("name", "degrees", "microbatch"), RUNS)
def test_equals_single_device(ranks, tmp_path, name, degrees, microbatch):
    plan = make_plan(name, *degrees, {"microbatch_size": microbatch})
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(plan.world_size).run(train, path, name, timeout=120.0)
    dp = plan.mesh.dp if CASES[name].mixes else 1
    reference = (microbatch, dp) if CASES[name].mixes else ()
    compare_training(results, single_device(name, *reference))
    compare_collectives(plan, results)
