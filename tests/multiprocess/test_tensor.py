"""The program's tensor-parallel functions: values, gradients, and what each one sends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autopar.emit.chassis import render
from autopar.emit.uses import HELPERS
from tests.emit.gpt_program import BLOCK, gpt_program
from tests.multiprocess.collectives import CountCollectives
from tests.multiprocess.programs import load_program

pytestmark = pytest.mark.multiprocess
TP = (2, 4)
# function, arguments, state in, state out, collectives of forward and backward
MOVES = [
    ("enter", {}, "R", "V", {}, {"all_reduce": 1}),
    ("all_gather", {"dim": 1}, "S1", "V", {"all_gather": 1}, {"reduce_scatter": 1}),
    ("all_gather", {"dim": 0}, "S0", "V", {"all_gather": 1}, {"reduce_scatter": 1}),
    ("gather", {"dim": 1}, "S1", "R", {"all_gather": 1}, {}),
    ("all_reduce", {}, "P", "R", {"all_reduce": 1}, {}),
    ("all_reduce_enter", {}, "P", "V", {"all_reduce": 1}, {"all_reduce": 1}),
    ("reduce_scatter", {"dim": 1}, "P", "S1", {"reduce_scatter": 1}, {"all_gather": 1}),
    ("scatter", {"dim": 1}, "R", "S1", {}, {"all_gather": 1}),
    ("narrow", {"dim": 1}, "V", "S1", {}, {}),
    ("all_to_all", {"from_dim": 0, "to_dim": 1}, "S0", "S1", {"all_to_all": 1}, {"all_to_all": 1}),
]


def program_with_all_helpers(tp):
    calls = "\n".join(f"        {name}()" for name in HELPERS)
    unused = (
        f'class All(nn.Module):\n    """Names every helper."""\n\n    def forward(self):\n{calls}'
    )
    return render(gpt_program(1, 1, tp, classes=(unused, BLOCK)))


@pytest.fixture
def path(tmp_path):
    def write(tp):
        file = tmp_path / f"tp{tp}.py"
        file.write_text(program_with_all_helpers(tp), encoding="utf-8")
        return str(file)

    return write


def part(whole, state, tp, rank, seed=0):
    """What a rank holds of ``whole``; ``gradient`` states V and P are random parts of the sum."""
    if state.startswith("S"):
        return whole.chunk(tp, int(state[1]))[rank].clone()
    if state == "P":
        noise = torch.randn(tp, *whole.shape, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(whole.dtype)
        return noise[rank] if rank else whole - noise[1:].sum(0)
    return whole.clone()


DUAL = {"R": "R", "V": "P", "P": "R"}  # state of the gradient


def move(path, name, kwargs, source, target):
    """(largest error of value, of gradient, collectives forward, backward) on this rank."""
    module = load_program(path)
    module.setup()
    tp, rank = module.TP, module.MESH.get_local_rank("tp")
    generator = torch.Generator().manual_seed(1)
    whole, gradient = torch.randn(2, 4, 8, 3, generator=generator, dtype=torch.float64)
    x = part(whole, source, tp, rank).requires_grad_()
    with CountCollectives() as forward:
        y = getattr(module, name)(x, **kwargs)
    with CountCollectives() as backward:
        y.backward(part(gradient, DUAL.get(target, target), tp, rank, seed=2))
    errors = (
        (y.detach() - part(whole, DUAL_VALUE.get(target, target), tp, rank)).abs().max().item(),
        gradient_error(module, x.grad, gradient, DUAL.get(source, source), tp, rank),
    )
    return errors, forward.kinds, backward.kinds


DUAL_VALUE = {"V": "R"}


def gradient_error(module, found, wanted, state, tp, rank):
    """Partial gradients are right if their sum is."""
    if state == "P":
        torch.distributed.all_reduce(found)
        return (found - wanted).abs().max().item()
    return (found - part(wanted, state, tp, rank)).abs().max().item()


@pytest.mark.parametrize("tp", TP)
@pytest.mark.parametrize(("name", "kwargs", "source", "target", "forward", "backward"), MOVES)
def test_move(ranks, path, tp, name, kwargs, source, target, forward, backward):
    for errors, *kinds in ranks(tp).run(move, path(tp), name, kwargs, source, target):
        assert max(errors) < 1e-12
        assert kinds == [forward, backward]


def exchange_images(path):
    module = load_program(path)
    module.setup()
    x = torch.randn(4, 4, 2, 3).to(memory_format=torch.channels_last)
    there = module.all_to_all(x, from_dim=0, to_dim=1).to(memory_format=torch.channels_last)
    return torch.equal(module.all_to_all(there, from_dim=1, to_dim=0), x)


def test_all_to_all_of_channels_that_lie_last(ranks, path):
    assert ranks(2).run(exchange_images, path(2)) == [True, True]


def lookup(path):
    module = load_program(path)
    module.setup()
    tp, rank = module.TP, module.MESH.get_local_rank("tp")
    table = torch.randn(16, 3, dtype=torch.float64)
    index = torch.randint(16, (5, 4))
    shard = table.chunk(tp)[rank].clone().requires_grad_()
    with CountCollectives() as seen:
        rows = module.sharded_embedding(index, shard)
    assert seen.kinds == {}
    summed = module.all_reduce(rows)
    whole = table.clone().requires_grad_()
    expected = F.embedding(index, whole)
    weight = torch.randn_like(expected)
    (summed * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(summed, expected)
    torch.testing.assert_close(shard.grad, whole.grad.chunk(tp)[rank])


@pytest.mark.parametrize("tp", TP)
def test_sharded_embedding(ranks, path, tp):
    assert ranks(tp).run(lookup, path(tp)) == [None] * tp


def loss(path):
    module = load_program(path)
    module.setup()
    tp, rank = module.TP, module.MESH.get_local_rank("tp")
    logits = 30 * torch.randn(7, 16, dtype=torch.float64)
    target = torch.randint(16, (7,))
    target[2] = -100
    shard = logits.chunk(tp, 1)[rank].clone().requires_grad_()
    with CountCollectives() as forward:
        found = module.sharded_cross_entropy(shard, target)
    with CountCollectives() as backward:
        found.backward()
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole, target)
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(shard.grad, whole.grad.chunk(tp, 1)[rank])
    assert module.sharded_cross_entropy(shard.bfloat16(), target).dtype == torch.float32
    return forward.kinds, backward.kinds


@pytest.mark.parametrize("tp", TP)
def test_sharded_cross_entropy(ranks, path, tp):
    assert ranks(tp).run(loss, path(tp)) == [({"all_reduce": 3}, {})] * tp


def random_numbers(path):
    module = load_program(path)
    module.setup()
    with module.shard_rng():
        sharded = torch.rand(4).tolist()
    with module.shard_rng():
        again = torch.rand(4).tolist()
    return sharded, again, torch.rand(4).tolist()


@pytest.mark.parametrize("tp", TP)
def test_shard_rng(ranks, path, tp):
    results = ranks(tp).run(random_numbers, path(tp))
    assert len({tuple(sharded) for sharded, _, _ in results}) == tp
    assert all(sharded != again for sharded, again, _ in results)
    assert len({tuple(replicated) for _, _, replicated in results}) == 1
