"""``autopar.parallelize`` runs the emitted program itself, and refuses what was not planned."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch

import autopar
from autopar.errors import PlanFormatError, RunError, UsageError
from tests.multiprocess.models import batch, build
from tests.multiprocess.test_fidelity import make_plan, share, single_device

pytestmark = pytest.mark.multiprocess


def one_step(path: str) -> tuple[float, int]:
    plan = autopar.load_plan(path)
    parallel = autopar.parallelize(build("gpt"), plan)
    loss = parallel.forward_backward(*share(batch("gpt", 0), parallel))
    return loss.item(), parallel.dp_size


def written_by(path: str, fails: bool) -> tuple[list[int], str]:
    """Which ranks wrote the program, and the text that this one runs or the error."""
    from autopar.run import load

    rank, asked, emit = torch.distributed.get_rank(), [], load.program_text

    def counted(*args: Any, **kwargs: Any) -> str:
        asked.append(rank)
        if fails:
            raise PlanFormatError("no patterns", where="program")
        return emit(*args, **kwargs)

    load.program_text = counted
    try:
        return asked, load.shared_text(autopar.load_plan(path), "program.py")
    except RunError as error:
        return asked, str(error)


def written_without_group(path: str, port: int) -> tuple[list[int], str]:
    """The same where the ranks have not joined a group yet: they meet in torchrun's store."""
    torch.distributed.barrier()
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.get_rank = lambda: rank
    found = written_by(path, False)
    assert not torch.distributed.is_initialized()
    torch.distributed.barrier = lambda: None
    return found


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


def test_rank_0_alone_emits(ranks, saved):
    (first, text), *others = ranks(2).run(written_by, saved, False)
    assert first == [0]
    assert others == [([], text)]
    assert "def parallelize(" in text
    for asked, message in ranks(2).run(written_by, saved, True)[:2]:
        assert asked in ([0], [])
        assert "no patterns" in message


def test_rank_0_alone_emits_before_there_is_a_group(ranks, saved):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (first, text), *others = ranks(2).run(written_without_group, saved, port)
    assert first == [0]
    assert others == [([], text)]


def test_names_the_first_parameter_that_differs(ranks, saved):
    for message in ranks(2).run(refused, saved):
        assert "lm_head.weight [130, 32]" in message
        assert "expected: nothing" in message


def test_refuses_another_number_of_ranks(saved, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="3 ranks"):
        autopar.parallelize(build("gpt"), autopar.load_plan(saved))
