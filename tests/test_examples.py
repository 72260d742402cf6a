"""The example can be learnt, and its data are cut into shares as a plan needs them."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch.utils._pytree import tree_leaves

from examples.gpt import GPT, GPTConfig, batches, loss_fn, make
from examples.run import list_systems
from examples.systems import SYSTEMS
from examples.table import README, read_measured, readme


def test_loss_falls_well_below_guessing():
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(20):
        (idx,), target = batches(step, 8)
        loss = loss_fn(model(idx), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            assert abs(loss.item() - math.log(config.vocab_size)) < 0.2
    assert loss.item() < math.log(config.vocab_size) - 1


def test_shares_make_up_the_global_batch():
    (whole,), target = batches(3, 8)
    shares = [batches(3, 2, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([inputs[0] for inputs, _ in shares]), whole)
    assert torch.equal(torch.cat([part for _, part in shares]), target)
    assert torch.equal(whole[:, 1:], target[:, :-1])
    assert not torch.equal(batches(4, 8)[1], target)


def test_make_is_a_plain_mapping():
    workload = make()
    output = workload["model"](*workload["example_inputs"])
    assert workload["loss_fn"](output, workload["example_target"]).ndim == 0
    assert workload["model"].lm_head.weight is workload["model"].transformer["wte"].weight


def test_readme_is_the_table():
    assert README.read_text(encoding="utf-8") == readme(read_measured()), (
        "run python examples/table.py"
    )


def test_measured_losses_fell():
    measured = read_measured()["systems"]
    assert set(measured) <= {system.name for system in SYSTEMS}
    for name, found in measured.items():
        for kind in ("system", "choice"):
            first, last = found[kind]["losses"]
            assert last < 0.8 * first, (name, kind)


@pytest.mark.parametrize("file", sorted({(s.workload, s.make) for s in SYSTEMS}))
def test_shares_of_every_workload(file):
    module = importlib.import_module(f"examples.{file[0].removesuffix('.py')}")
    made = getattr(module, file[1])()
    whole = tree_leaves(module.batches(3, 8))
    shares = [tree_leaves(module.batches(3, 2, rank, 4)) for rank in range(4)]
    for tensor, *parts in zip(whole, *shares, strict=True):
        assert tensor is None or torch.equal(torch.cat(parts), tensor)
    assert not torch.equal(tree_leaves(module.batches(4, 8))[0], whole[0])
    inputs = made["example_inputs"]
    output = made["model"](**inputs) if isinstance(inputs, dict) else made["model"](*inputs)
    loss = made["loss_fn"](output, made["example_target"]) if "loss_fn" in made else output.loss
    assert loss.ndim == 0


def test_list(capsys):
    list_systems()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [system.name for system in SYSTEMS]
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
