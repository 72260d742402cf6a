"""Checkpoints and whole state dicts move between plans without changing a bit."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException

from autopar.emit.chassis import render
from tests.emit.gpt_program import gpt_program
from tests.multiprocess.programs import batch, build, load_program, share

pytestmark = pytest.mark.multiprocess
# Each loads what the one before it saved. Uneven: 3 does not divide the biases' 32 nor the 3 C.
PLANS = [
    {"pp": 2},
    {"tp": 2},
    {"dp": 2, "zero": (3,) * 4, "ends_zero": 3},
    {"dp": 2, "tp": 2, "zero": (2,) * 4, "ends_zero": 2},
    {"pp": 2, "dp": 2, "tp": 2, "zero": (0, 2, 3, 0), "precision": "bf16"},
    {"dp": 3, "global_batch": 9, "microbatch": 1, "zero": (3,) * 4, "ends_zero": 2},
    {"pp": 1},
]


def write(folder, number, options):
    path = folder / f"program{number}.py"
    path.write_text(render(gpt_program(**options)), encoding="utf-8")
    return str(path)


def step(parallel, optimizer, number):
    inputs, target = (share(t, parallel) for t in batch(number))
    loss = parallel.forward_backward((inputs,), target)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def exchange(path, load_from, save_to, steps):
    """Loads if told to, trains, saves; (parameters before training, after it, last loss)."""
    parallel = load_program(path).parallelize(build(seed=len(path)))
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    if load_from:
        parallel.load(load_from, optimizer)
    loaded = parallel.full_state_dict()
    losses = [step(parallel, optimizer, number) for number in steps]
    if save_to:
        parallel.save(save_to, optimizer)
    return loaded, parallel.full_state_dict(), losses


def test_checkpoint_goes_through_every_plan(ranks, tmp_path):
    saved, previous = None, ""
    for number, options in enumerate(PLANS):
        size = options.get("pp", 1) * options.get("dp", 1) * options.get("tp", 1)
        folder = str(tmp_path / f"checkpoint{number}")
        steps = (0, 1) if number == 0 else ()
        path = write(tmp_path, number, options)
        loaded, after, _ = ranks(size).run(exchange, path, previous, folder, steps)[0]
        if saved is not None:
            assert set(loaded) == set(saved)
            assert all(torch.equal(loaded[name], saved[name]) for name in saved), options
        saved, previous = after, folder


@pytest.mark.parametrize("number", [1, 2, 3])
def test_training_goes_on_with_the_optimizer_state(ranks, tmp_path, number):
    path, folder = write(tmp_path, 0, {}), str(tmp_path / "checkpoint")
    ranks(1).run(exchange, path, "", folder, (0, 1))
    _, _, wanted = ranks(1).run(exchange, path, folder, "", (2, 3))[0]
    options = PLANS[number]
    other = write(tmp_path, number, options)
    size = options.get("dp", 1) * options.get("tp", 1)
    _, _, found = ranks(size).run(exchange, other, folder, "", (2, 3))[0]
    assert found == pytest.approx(wanted, rel=1e-5)


def reload(path):
    """A state dict of rank 0 given to models that started otherwise."""
    module = load_program(path)
    parallel = module.parallelize(build())
    wanted = {name: value + 1 for name, value in parallel.full_state_dict().items()}
    parallel.load_full_state_dict(wanted)
    found = parallel.full_state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    return len(found)


@pytest.mark.parametrize("options", PLANS[:-1], ids=str)
def test_load_full_state_dict(ranks, tmp_path, options):
    size = options.get("pp", 1) * options.get("dp", 1) * options.get("tp", 1)
    found = ranks(size).run(reload, write(tmp_path, 0, options))
    assert found == [len(build().state_dict())] + [0] * (size - 1)


def damaged(path, folder, damage):
    """The error of loading a checkpoint with one file lost, cut off or changed in one byte."""
    module = load_program(path)
    parallel = module.parallelize(build())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    step(parallel, optimizer, 0)
    parallel.save(folder, optimizer)
    parallel.save(folder, optimizer)  # in the place of the first
    shard = max(Path(folder).glob("*.distcp"), key=lambda file: file.stat().st_size)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        kept = {"lost": None, "cut off": content[: len(content) // 2], "changed": content}[damage]
        shard.unlink() if kept is None else shard.write_bytes(kept)
    torch.distributed.barrier()
    with pytest.raises(CheckpointException) as caught:
        parallel.load(folder, optimizer)
    return str(caught.value), shard.name


@pytest.mark.parametrize("damage", ["lost", "cut off", "changed"])
def test_damaged_checkpoint_is_refused(ranks, tmp_path, damage):
    path, folder = write(tmp_path, 0, {"dp": 2, "zero": (3,) * 4}), str(tmp_path / "checkpoint")
    for message, name in ranks(2).run(damaged, path, folder, damage):
        # torch finds the others by their checksums and tells the rank, but not the file.
        assert (name in message) == (damage == "lost")


def interrupted(path, folder):
    """What is there after a save that ran out of disk."""
    module = load_program(path)
    parallel = module.parallelize(build())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    step(parallel, optimizer, 0)
    parallel.save(f"{folder}/step-3", optimizer)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    with pytest.raises(CheckpointException, match=r"write|File too large"):
        parallel.save(f"{folder}/step-4", optimizer)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    parallel.load(f"{folder}/step-{module.steps_done(folder)}", optimizer)
    return module.steps_done(folder)


def test_a_write_cut_off_is_never_loaded(ranks, tmp_path):
    path = write(tmp_path, 0, {"pp": 2})
    assert ranks(2).run(interrupted, path, str(tmp_path / "checkpoints")) == [3, 3]
