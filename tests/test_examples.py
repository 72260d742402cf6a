"""The example can be learnt, and its data are cut into shares as a plan needs them."""

from __future__ import annotations

import math

import torch

from examples.gpt import GPT, GPTConfig, batches, loss_fn, make


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
