"""Samples shared over tp in some layers while others divide their weights."""

from __future__ import annotations

import pytest

from autopar.solve.shardings import Shardings
from tests.machine import HOST
from tests.multiprocess.test_fidelity import check, make_plan

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def references():
    return {}


def shardings_of(plan):
    return plan.program["shardings"].values()


@pytest.mark.parametrize(
    ("dp", "tp", "pins"),
    [(1, 2, {}), (2, 2, {"zero": 0}), (2, 2, {"zero": 2, "microbatch_size": 2})],
)
def test_convolutions_share_samples_and_linears_divide_weights(
    ranks, tmp_path, references, dp, tp, pins
):
    """Chosen freely, as the layers of this AlexNet have the proportions of the real one."""
    plan = make_plan("alexnet", 1, dp, tp, pins, cluster=HOST)
    assert any(sharding["divides_samples"] for sharding in shardings_of(plan))
    placements = {n: p for layer in plan.layers for n, p in layer.placements.items()}
    assert placements["features.3.weight"] == ("Replicate()",)
    assert placements["classifier.4.weight"][0].startswith("Shard")
    check(ranks, tmp_path, references, "alexnet", plan)


@pytest.mark.parametrize(
    ("pp", "dp", "tp", "pins"),
    [(1, 1, 2, {}), (1, 2, 2, {"zero": 2, "microbatch_size": 2}),
     (2, 1, 2, {"microbatch_size": 2, "recompute": "full"})],
)  # fmt: skip
@pytest.mark.parametrize("name", ["gpt", "gpt2", "llama"])
def test_transformers_that_share_samples(
    ranks, tmp_path, references, monkeypatch, name, pp, dp, tp, pins
):
    """The layouts that the optimisation over all classes proposes, also those that cost more."""
    monkeypatch.setattr(Shardings, "_is_new", lambda *_: True)
    monkeypatch.setattr(Shardings, "layouts", lambda self, tp, **_: list(self._open_layouts(tp)))
    plan = make_plan(name, pp, dp, tp, pins)
    assert any(sharding["divides_samples"] for sharding in shardings_of(plan))
    check(ranks, tmp_path, references, name, plan)
