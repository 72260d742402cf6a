"""Models of kinds that users bring (``shapes.py``, ``tables.py``, ...), equal to one device."""

from __future__ import annotations

import pytest

from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_training,
    make_plan,
    single_device,
    train,
)

pytestmark = pytest.mark.multiprocess
RUNS = [
    # straight-through gradients, the nearest of learned codes, a dataclass with the loss
    ("vq-vae", (1, 2, 1)),
    # routing by agreement: einsums of five names in a loop
    ("capsules", (1, 1, 2)),
    # sums at the nodes where edges end
    ("graph-attention", (2, 1, 1)),
    # one head for lists of features, three losses
    ("pyramid", (1, 1, 2)),
    # splines on edges, whose knots are a buffer
    ("kan", (1, 1, 2)),
    # torch's own flag for shared keys, under a mask of inputs
    ("grouped-flag", (2, 1, 1)),
    # derivatives within the forward: the whole model is one operation
    ("physics", (1, 2, 1)),
    # complex weights
    ("complex", (1, 1, 2)),
    # weights per sample, by a convolution with as many groups as samples
    ("style-gan", (1, 1, 2)),
    # a function of torch's that asks for values before it computes
    ("deep-ar", (1, 2, 1)),
]


@pytest.mark.parametrize(("name", "degrees"), RUNS)
def test_equals_single_device(ranks, tmp_path, name, degrees):
    plan = make_plan(name, *degrees, {"microbatch_size": 2})
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(plan.world_size).run(train, path, name, timeout=120.0)
    compare_training(results, single_device(name))
    compare_collectives(plan, results)
