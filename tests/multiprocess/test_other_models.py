"""Convolutions, recurrences and bags under plans that divide what can be divided of them."""

from __future__ import annotations

from functools import partial

import pytest

from tests.multiprocess.case import SAMPLES
from tests.multiprocess.models import CASES
from tests.multiprocess.precision import compare_beyond_rounding
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_memory,
    make_plan,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess
MICROBATCH = 2
# Their kernel on a CPU, oneDNN's, keeps a workspace for backward that is not the plan's.
OWN_WORKSPACE = ("lstm",)
PLANS = [
    # skip connections past several layers, transposed convolutions, statistics
    ("unet", (1, 2, 1)),
    # a loss of two images, sub-pixel convolution
    ("super-resolution", (1, 1, 2)),
    # running statistics without parameters beside them, on the first of two stages
    ("batchnorm-mlp", (2, 1, 1)),
    # modules in evaluation within a model in training
    ("frozen", (1, 2, 1)),
    # a mask that is asked for its values
    ("transformer", (2, 1, 1)),
    # a recurrence that returns a nest
    ("lstm", (2, 1, 1)),
    # offsets that depend on the number of samples
    ("bag", (1, 2, 1)),
    # modules called with other weights than theirs, whose runs all change one buffer
    ("gan", (1, 2, 1)),
    ("gan", (2, 1, 1)),
    # position buckets and scores as large as 63 tokens squared, which variables would hold
    ("hf-wavlm", (2, 1, 2)),
    # a weight of which queries and memory use a part each: backward cannot run in two parts
    ("decoder", (2, 1, 1)),
    # products of transposed tensors, which keep copies
    ("sas-rec", (1, 1, 2)),
]


@pytest.mark.parametrize(("name", "degrees"), PLANS)
def test_equals_single_device(ranks, tmp_path, name, degrees):
    pp, dp, tp = degrees
    plan = make_plan(name, pp, dp, tp, {"microbatch_size": MICROBATCH})
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    run = partial(ranks(pp * dp * tp).run, train, path, name, timeout=120.0)
    results = run()
    microbatch = MICROBATCH if CASES[name].mixes else SAMPLES // dp
    # What a ReLU does at its kink depends on the order of sums, and so on the number of threads.
    compare_beyond_rounding(run, results, partial(single_device, name, microbatch, dp))
    compare_collectives(plan, results)
    if name not in OWN_WORKSPACE:
        compare_memory(plan, results)
