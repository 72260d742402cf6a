"""Checkpoints and whole state dicts move between plans without changing a bit."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from itertools import chain, product
from pathlib import Path

import pytest
import torch

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
    {"dp": 4, "tp": 2, "dp_shard": 2, "zero": (2, 2, 3, 3), "ends_zero": 2},
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


FILES = ("__0_0.distcp", "__1_0.distcp", ".metadata", "sha256.json")


def damaged(path, folder):
    """Errors of going on from a checkpoint with one file lost, cut off or changed in one bit."""
    module = load_program(path)
    parallel = module.parallelize(build())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    step(parallel, optimizer, 0)
    parallel.save(f"{folder}/step-3", optimizer)
    found = []
    for kind, name in product(("lost", "cut off", "changed"), FILES):
        parallel.save(f"{folder}/step-5", optimizer)  # in the place of the one before it
        if torch.distributed.get_rank() == 0:
            damage(Path(folder, "step-5", name), kind)
        torch.distributed.barrier()
        with pytest.raises(ValueError, match="expected what was saved") as caught:
            module.resume(parallel, optimizer, folder)
        torch.distributed.barrier()
        found.append((name, str(caught.value)))
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(f"{folder}/step-5")
    torch.distributed.barrier()
    assert module.resume(parallel, optimizer, folder) == 3
    return found


def damage(file, kind):
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    file.unlink()
    if kind != "lost":
        file.write_bytes(content[:middle] if kind == "cut off" else content)


def test_damaged_checkpoint_is_refused(ranks, tmp_path):
    path, folder = write(tmp_path, 0, {"dp": 2, "zero": (3,) * 4}), str(tmp_path / "checkpoints")
    for name, message in chain(*ranks(2).run(damaged, path, folder)):
        # A bit of the sums themselves may belong to the name or the sum of another file.
        assert name == FILES[-1] or f"found {name} in {folder}/step-5 lost or" in message
        assert f"remove {folder}/step-5 to go on" in message
        assert "saved are [3, 5]" in message


def interrupted(path, folder):
    """What is there after a save that ran out of disk, and what the next start leaves of it."""
    module = load_program(path)
    parallel = module.parallelize(build())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    step(parallel, optimizer, 0)
    parallel.save(f"{folder}/step-3", optimizer)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    with pytest.raises(OSError, match=rf"{folder}/step-4\.partial cannot be written"):
        parallel.save(f"{folder}/step-4", optimizer)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    left = sorted(os.listdir(folder))
    return left, module.resume(parallel, optimizer, folder)


def test_a_write_cut_off_is_never_loaded(ranks, tmp_path):
    path, folder = write(tmp_path, 0, {"pp": 2}), tmp_path / "checkpoints"
    for left, resumed in ranks(2).run(interrupted, path, str(folder)):
        assert left == ["step-3", "step-4.partial"]
        assert resumed == 3
    assert os.listdir(folder) == ["step-3"]


def test_only_the_last_checkpoints_stay(tmp_path):
    module = load_program(write(tmp_path, 0, {}))
    names = [f"step-{n}" for n in (2, 8, 10)]
    for name in [*names, "step-12.partial", "step-8.old.partial", "step-last", "notes"]:
        (tmp_path / "saved" / name).mkdir(parents=True)
    module.prune(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == sorted([*names, "step-last", "notes"])
    module.prune(tmp_path / "saved", 2)
    assert sorted(os.listdir(tmp_path / "saved")) == ["notes", "step-10", "step-8", "step-last"]
    assert module.saved_steps(tmp_path / "saved") == [8, 10]
    assert module.saved_steps(tmp_path / "nowhere") == module.saved_steps(None) == []
