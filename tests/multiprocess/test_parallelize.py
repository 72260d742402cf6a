"""``autopar.parallelize`` runs the emitted program itself, and refuses what was not planned."""

from __future__ import annotations

import pytest
import torch

import autopar
from autopar.errors import UsageError
from tests.multiprocess.models import batch, build
from tests.multiprocess.test_fidelity import make_plan, share, single_device

pytestmark = pytest.mark.multiprocess


def one_step(path: str) -> tuple[float, int]:
    plan = autopar.load_plan(path)
    parallel = autopar.parallelize(build("gpt"), plan)
    loss = parallel.forward_backward(*share(batch("gpt", 0), parallel))
    return loss.item(), parallel.dp_size


def refused(path: str) -> str:
    """The message for a model whose parameters differ from the planned one's."""
    model = build("gpt")
    model.lm_head = torch.nn.Linear(32, 130, bias=False)
    with pytest.raises(UsageError) as error:
        autopar.parallelize(model, autopar.load_plan(path))
    return str(error.value)


@pytest.fixture
def saved(tmp_path):
    path = str(tmp_path / "plan.json")
    make_plan("gpt", 1, 2, 1, {"zero": 2}).save(path)
    return path


def test_trains_like_the_single_device(ranks, saved):
    results = ranks(2).run(one_step, saved)
    wanted = single_device("gpt")["losses"][0]
    assert [dp for _, dp in results] == [2, 2]
    assert all(loss == pytest.approx(wanted, rel=1e-5) for loss, _ in results)


def test_names_the_first_parameter_that_differs(ranks, saved):
    for message in ranks(2).run(refused, saved):
        assert "lm_head.weight [130, 32]" in message
        assert "expected: nothing" in message


def test_refuses_another_number_of_ranks(saved, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="3 ranks"):
        autopar.parallelize(build("gpt"), autopar.load_plan(saved))
