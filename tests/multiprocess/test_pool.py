"""The harness itself: ranks, results, failures, and what is left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.multiprocess.collectives import Collective, CountCollectives
from tests.multiprocess.pool import RankError

pytestmark = pytest.mark.multiprocess


def identity(offset, scale=1):
    assert int(os.environ["RANK"]) == dist.get_rank()
    return scale * dist.get_rank() + offset, torch.ones(2)


def test_results_come_by_rank(ranks):
    results = ranks(4).run(identity, 10, scale=2)
    assert [number for number, _ in results] == [10, 12, 14, 16]
    assert all(torch.equal(ones, torch.ones(2)) for _, ones in results)


def fail(folder, how):
    (Path(folder) / str(dist.get_rank())).write_text(str(os.getpid()))
    if dist.get_rank() == 1:
        if how == "raise":
            raise ValueError("no such luck")
        os._exit(3)
    dist.barrier()


def assert_nothing_left(folder):
    pids = [path.read_text() for path in folder.iterdir()]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_exception_is_told_with_its_rank(ranks, tmp_path):
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2:.*in fail.*ValueError: no such luck"):
        ranks(2).run(fail, str(tmp_path), "raise")
    assert_nothing_left(tmp_path)


def test_death_is_told(ranks, tmp_path):
    with pytest.raises(RankError, match="rank 1 of 2:\nthe process died"):
        ranks(2).run(fail, str(tmp_path), "exit")
    assert_nothing_left(tmp_path)


def hang(folder):
    (Path(folder) / str(dist.get_rank())).write_text(str(os.getpid()))
    if dist.get_rank() == 0:
        time.sleep(60)


def test_time_is_bounded(ranks, tmp_path):
    started = time.monotonic()
    with pytest.raises(RankError, match=r"ranks \[0, 1\] of 2 did not end in time"):
        ranks(2).run(hang, str(tmp_path), timeout=3.0)
    assert time.monotonic() - started < 10
    assert_nothing_left(tmp_path)


def talk():
    x, peer = torch.ones(4), 1 - dist.get_rank()
    with CountCollectives() as seen:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(torch.empty(8), x)
        if dist.get_rank():
            dist.recv(x, peer)
        else:
            dist.send(x, peer)
    return seen.calls, seen.kinds


def test_collectives_are_counted(ranks):
    (calls, kinds), (_, others) = ranks(2).run(talk)
    assert calls == [Collective(k, 2, 16) for k in ("all_reduce", "all_gather", "send")]
    assert kinds == {"all_reduce": 1, "all_gather": 1, "send": 1}
    assert others == {"all_reduce": 1, "all_gather": 1, "recv": 1}
