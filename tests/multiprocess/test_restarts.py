"""Ranks that are killed under torchrun: what a restarted run ends with, and what it has read."""

from __future__ import annotations

import json
import os
import re
import time
from argparse import Namespace
from random import Random
from types import SimpleNamespace

import pytest
import torch

from autopar.emit.chassis import render
from benchmarks.bench_kills import disturb
from examples.systems import find
from tests.emit.gpt_program import gpt_program
from tests.multiprocess.programs import load_program
from tests.multiprocess.restarts import Killer, differing, started

pytestmark = pytest.mark.multiprocess
SAMPLES = 40
TRAINING = {"steps": 7, "checkpoint_every": 2, "keep": 1}
# Rank 1 dies in the second micro-batch of step 3, then rank 0 while it writes step 4.
WORKLOAD = """
import json, os, signal
from pathlib import Path
import torch
from torch.utils.data import TensorDataset
from autopar.data import Loader
from examples.gpt import GPT, GPTConfig

FOLDER = Path(os.environ["READ"])
tokens = torch.randint(64, (40, 17), generator=torch.Generator().manual_seed(0))
tokens[:, 0] = torch.arange(40)
loader, now = Loader(TensorDataset(tokens[:, :-1], tokens[:, 1:])), []

def batches(step, batch_size, rank, size):
    now[:] = [step]
    inputs, target = loader(step, batch_size, rank, size)
    with open(FOLDER / f"rank{rank}.txt", "a") as file:
        print(json.dumps([step, inputs[0][:, 0].tolist()]), file=file)
    return inputs, target

def die(rank, name):
    if int(os.environ["RANK"]) == rank and (FOLDER / name).exists():
        (FOLDER / name).unlink()
        os.kill(os.getpid(), signal.SIGKILL)

def in_step(*_):
    now.append("micro-batch")
    if now == [3, "micro-batch", "micro-batch"]:
        die(1, "step")

def in_write(number, fsync=os.fsync):
    fsync(number)
    if now[0] == 3:
        die(0, "write")

os.fsync = in_write

def make():
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, 16, 4, 4, 32, dropout=0.2))
    model.transformer.h[2].register_forward_hook(in_step)
    return {"model": model}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a program and its workload, and returns the program's path."""
    (tmp_path / "read.py").write_text(WORKLOAD, encoding="utf-8")

    def program(**options):
        path = tmp_path / f"program{options.get('dp', 1)}.py"
        made = gpt_program(**options, workload=f"{tmp_path / 'read.py'}:make")
        path.write_text(render(made), encoding="utf-8")
        return str(path)

    return program


def undisturbed(path, checkpoint, steps, read):
    """Trains as the command does, in a rank of the pool."""
    os.environ["READ"] = str(read)
    program = load_program(path)
    torch.manual_seed(program.SEED)
    parallel = program.parallelize(program.load(program.WORKLOAD)()["model"])
    batches = program.load(program.WORKLOAD.replace(":make", ":batches"))
    args = Namespace(**TRAINING | {"steps": steps}, clip=1.0, checkpoint=checkpoint)
    program.train(parallel, program.optimizer_for(parallel, 3e-4), batches, args)


def read_samples(folder):
    """What was read for each step, by rank; a step that was repeated has read the same again."""
    found: dict[int, dict[str, list[int]]] = {}
    for path in sorted(folder.glob("rank*.txt")):
        for step, indices in map(json.loads, path.read_text().splitlines()):
            assert found.setdefault(step, {}).setdefault(path.name, indices) == indices
    return [index for step in sorted(found) for part in found[step].values() for index in part]


def test_killed_ranks_lose_nothing(ranks, tmp_path, write, monkeypatch):
    two, folders = write(dp=2), [tmp_path / name for name in ("plain", "killed", "one rank")]
    for folder in folders:
        folder.mkdir()
    plain, killed, one_rank = folders
    ranks(2).run(undisturbed, two, str(plain / "saved"), TRAINING["steps"], plain)

    monkeypatch.setenv("READ", str(killed))
    for name in ("step", "write"):
        (killed / name).touch()
    command = [two, "--data", f"{tmp_path / 'read.py'}:batches"]
    for name, value in (TRAINING | {"checkpoint": killed / "saved"}).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with started(command, 2, killed, restarts=2) as run:
        assert not run.wait(lambda: False, time.monotonic() + 150)
        assert [agent.poll() for agent in run.agents] == [0], run.output()
        assert re.findall(r"starting at step (\d+)", run.output()) == ["0", "2", "2"]
    assert os.listdir(killed / "saved") == ["step-7"], "what was half written is gone"
    assert differing(plain / "saved" / "step-7", killed / "saved" / "step-7") == []

    ranks(1).run(undisturbed, write(), str(killed / "saved"), 3 * SAMPLES // 8, one_rank)
    seen = read_samples(killed) + read_samples(one_rank)
    for epoch in range(3):
        assert sorted(seen[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == list(range(SAMPLES))


def test_random_kills(tmp_path):
    """What `benchmarks/bench_kills.py` does two hundred times."""
    found = disturb(find("1f1b"), 2, 0, tmp_path)
    assert found["kills"] > 0, "the run may end before the second"
    assert found["different"] == []


def test_a_rank_that_stays_is_killed_again_when_it_goes_on():
    steps = [(0, "2.5"), (1, "2.4"), (2, "2.3")]
    run = SimpleNamespace(size=2, steps=lambda: steps)
    killer = Killer(run, Random(0), 0.0, gone={1, 2}, steps_then=3)
    assert not killer.whole({2})
    assert not killer.whole({2, 3}), "2 may be about to follow 1"
    assert killer.whole({3, 4})
    steps.append((3, "2.2"))
    assert not killer.whole({2, 3}), "1 may have died behind its part of the step"
    steps.append((4, "2.1"))
    assert killer.whole({2, 3})
